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
	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
)

// ensureRegistration makes the registration of a closure, if there is none or it
// is out of date.
func ensureRegistration(ctx context.Context, c config.Config, dir *hook.RuntimeDir, q closure.Query, res closure.Resolution) (Err error) {
	name := closure.RegistrationName(res.Digest, q.Info)
	if f, err := dir.Registration(name, res.Since); err == nil {
		return f.Close()
	}
	began := time.Now()
	resolved, err := closure.Memo{Dir: dir.Closures, Store: c.Store()}.Load(res.Digest)
	if err != nil {
		return err
	}
	infos, err := pathInfos(ctx, c, q, resolved)
	if err != nil {
		return err
	}
	temporary := "." + name + "." + rand.Text()
	defer func() {
		if err := dir.Registrations.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) && Err == nil {
			Err = err
		}
	}()
	if err := nixdb.WriteRegistration(ctx, dir.Registrations.Name()+"/"+temporary, c.Store(), infos); err != nil {
		return err
	}
	// What changed since is newer than the file.
	if err := dir.Registrations.Chtimes(temporary, began, began); err != nil {
		return err
	}
	return dir.Registrations.Rename(temporary, name)
}

// pathInfos returns the registration of a closure: of what the closure-info lists that
// was asked for, as that says; of everything else, as Nix does.
func pathInfos(
	ctx context.Context, c config.Config, q closure.Query, resolved closure.Closure,
) ([]closure.PathInfo, error) {
	if q.Info == "" {
		return nixInfos(ctx, c, resolved)
	}
	if len(q.Roots) == 0 {
		return closure.ReadRegistration(c.Store(), resolved, q.Info)
	}
	listed, err := closure.ReadInfo(c.Store(), q.Info, c.MaxPaths)
	if err != nil {
		return nil, err
	}
	ofInfo := closure.New(c.Store(), listed)
	all, err := closure.ReadRegistration(c.Store(), ofInfo, q.Info)
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

// nixInfos is what Nix's database says or, if that cannot be read, Nix's own program.
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
