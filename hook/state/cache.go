// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// CacheDir is the directory in which Nix notes what substituters have, while it
// fetches for a container. Nix makes what is in it. Who fetches has a shared lock on
// the directory (flock), and a sweep an exclusive one: SQLite, whose file is in it,
// does not work on where that is taken away.
func (d *Dir) CacheDir() string { return d.path + "/cache" }

// HoldCache makes the directory and keeps sweeps from it until release.
func (d *Dir) HoldCache() (release func(), _ error) {
	path := d.CacheDir()
	for range 100 {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a sweep came in between
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil && samefile.At(f, path) {
			return func() { f.Close() }, nil
		} else if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		f.Close()
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s: a sweep that does not end has its lock; end it, or remove the directory", path)
}

// cache removes what Nix noted of substituters, if nobody fetches and nobody fetched
// for some time.
func (s *sweeper) cache(context.Context) error {
	_, last, err := s.dir.lookAtCache()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || time.Since(last) < remembered(s.unused) {
		return err
	}
	_, err = s.removeCache()
	return err
}

// lookAtCache tells what the cache takes of its file system, and when anything in it was
// last written.
func (d *Dir) lookAtCache() (cost view.Cost, last time.Time, _ error) {
	err := filepath.WalkDir(d.CacheDir(), func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		cost = cost.Add(view.Cost{Inodes: 1, Bytes: view.InodeBytes + info.Size()})
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
		return nil
	})
	return cost, last, err
}

// removeCache removes the cache, unless somebody fetches.
func (s *sweeper) removeCache() (removed bool, _ error) {
	path := s.dir.CacheDir()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || err == nil && !samefile.At(f, path) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	if !s.dryRun {
		if err := os.RemoveAll(path); err != nil {
			return false, err
		}
	}
	s.swept.Cache = append(s.swept.Cache, names...)
	return true, nil
}
