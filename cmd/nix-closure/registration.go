// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/config"
)

// ensureRegistration makes the registration of a closure if it is missing or out of date.
func ensureRegistration(
	ctx context.Context, c config.Config, dir *state.Dir,
	q closure.Query, res closure.Resolution, resolved closure.Closure,
) (Err error) {
	name := closure.RegistrationName(res.Digest, q.Info)
	if f, err := dir.OpenRegistration(name, res.Since); err == nil {
		return f.Close()
	}
	began := time.Now()
	infos, err := pathInfos(ctx, c, q, resolved)
	if err != nil {
		return err
	}
	if _, err := dir.MakeRoom(ctx, registrationCost(infos)); err != nil {
		return err
	}
	held := "." + name + "." + rand.Text()
	lock, err := atomicfile.CreateTemporary(dir.Registrations, held)
	if err != nil {
		return err
	}
	defer lock.Close()
	temporary := held + "-db"
	defer func() {
		for _, file := range []string{temporary, held} {
			if err := dir.Registrations.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) && Err == nil {
				Err = err
			}
		}
	}()
	if err := nixdb.WriteRegistration(ctx, dir.Registrations.Name()+"/"+temporary, c.Store(), infos); err != nil {
		return err
	}
	// A change since then is newer than the file.
	if err := dir.Registrations.Chtimes(temporary, began, began); err != nil {
		return err
	}
	return dir.Registrations.Rename(temporary, name)
}

// registrationCost estimates what the registration of a closure takes: a page for each
// table and index, and the rows.
func registrationCost(infos []closure.PathInfo) view.Cost {
	const pages, row, reference = 64 << 10, 1 << 10, 64
	cost := view.Cost{Inodes: 1, Bytes: view.InodeBytes + pages}
	for _, info := range infos {
		cost.Bytes += int64(row + reference*len(info.References))
	}
	return cost
}

// pathInfos returns the registration of a closure. What the closure-info lists is as the
// closure-info says, if one was asked for. Everything else is as Nix says.
func pathInfos(
	ctx context.Context, c config.Config, q closure.Query, resolved closure.Closure,
) ([]closure.PathInfo, error) {
	if q.Info == "" {
		return nixInfos(ctx, c, resolved)
	}
	if len(q.Roots) == 0 {
		return closure.ReadDump(c.Store(), resolved, q.Info)
	}
	listed, err := closure.ReadInfo(c.Store(), q.Info, c.MaxPaths)
	if err != nil {
		return nil, err
	}
	ofInfo := closure.New(c.Store(), listed)
	all, err := closure.ReadDump(c.Store(), ofInfo, q.Info)
	if err != nil {
		return nil, err
	}
	others, err := nixInfos(ctx, c, resolved)
	if err != nil {
		return nil, err
	}
	for _, info := range others {
		if _, found := slices.BinarySearch(ofInfo.Names, info.Name); !found {
			all = append(all, info)
		}
	}
	return closure.Restrict(resolved, all)
}

// nixInfos returns what Nix's database says or, if that cannot be read, what Nix's own
// program says.
func nixInfos(ctx context.Context, c config.Config, resolved closure.Closure) ([]closure.PathInfo, error) {
	if snapshot, err := nixdb.Open(ctx, c.Store()); err == nil {
		defer func() { _ = snapshot.Close() }()
		infos, err := snapshot.Infos(ctx, resolved.Names)
		if err == nil {
			return closure.Restrict(resolved, infos)
		}
		if !snapshot.Changed() {
			return nil, err
		}
	}
	return closure.NixStore{Program: c.NixStore, Store: c.Store()}.Infos(ctx, resolved)
}
