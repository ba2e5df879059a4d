// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/internal/cdi"
)

// source is where the named closures are: the file with their names and roots, and Nix's
// database, which has the valid store paths.
type source struct {
	file  string
	store closure.Store

	// What the last answer was read from. Both are from before it was read.
	fileStamp  fileStamp
	storeStamp closure.Stamp
	read       time.Time // zero: read again
}

// fileStamp tells whether the file was written to, or another file has its name. It is zero
// if there is none.
type fileStamp struct {
	inode    uint64
	size     int64
	modified int64
}

// named is a named closure.
type named struct {
	cdi.Device
	// unfit says why pods cannot have the closure: a root is not valid, or this cannot be
	// found out. nil: they can.
	unfit error
}

// longest is how old an answer may become. The stamps show changes sooner.
const longest = time.Minute

// changed reports whether the last answer may not hold any more. It costs three calls of
// stat(2).
func (s *source) changed(now time.Time) bool {
	// A file may be written twice in one tick of the clock, so a stamp says nothing for a
	// second after the last write.
	return now.Sub(s.read) > longest || s.stampFile() != s.fileStamp ||
		s.fileStamp.modified > s.read.Add(-time.Second).UnixNano() || !s.storeStamp.Holds(s.store)
}

func (s *source) stampFile() fileStamp {
	var st unix.Stat_t
	if err := unix.Stat(s.file, &st); err != nil {
		return fileStamp{}
	}
	return fileStamp{st.Ino, st.Size, st.Mtim.Nano()}
}

// look reads the named closures. No file: there are none. It is not sure of their roots if
// Nix's database was written to while it was read.
func (s *source) look(ctx context.Context) (all []named, sure bool, _ error) {
	s.read = time.Now()
	s.fileStamp = s.stampFile()
	// Without a stamp, the next look is soon.
	s.storeStamp, _ = closure.TakeStamp(s.store)
	devices, err := cdi.List(s.file, s.store)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil {
		return nil, true, fmt.Errorf("reading the named closures: %w", err)
	}
	for _, d := range devices {
		all = append(all, named{Device: d})
	}
	sure, err = s.judge(ctx, all)
	for i := range all {
		if err != nil {
			all[i].unfit = err
		}
	}
	return all, sure, nil
}

// judge finds out which closures pods can have.
func (s *source) judge(ctx context.Context, all []named) (sure bool, _ error) {
	db, err := nixdb.Open(ctx, s.store)
	if err != nil {
		return true, err
	}
	defer func() { _ = db.Close() }()
	for i, n := range all {
		if n.Trouble != nil {
			continue
		}
		asked := n.Request.Roots
		if n.Request.ClosureInfo != "" {
			asked = []closure.BaseName{n.Request.ClosureInfo}
		}
		_, err := db.Versions(ctx, asked)
		if invalid := (*closure.NotValidError)(nil); errors.As(err, &invalid) {
			all[i].unfit = fmt.Errorf("%s is not valid in Nix's database; `nix-store --realise %s` on this node "+
				"fetches or builds it", invalid.Path, invalid.Path)
		} else if err != nil {
			return !db.Changed(), err
		}
	}
	return !db.Changed(), nil
}
