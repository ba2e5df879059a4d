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
	use, err := s.dir.cacheUse()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || time.Since(use.last) < remembered(s.unused) {
		return err
	}
	_, err = s.removeCache()
	return err
}

// cacheUse is what the cache takes of its file system, and when anything in it was last
// written.
type cacheUse struct {
	cost view.Cost
	last time.Time
}

func (d *Dir) cacheUse() (cacheUse, error) {
	var u cacheUse
	err := filepath.WalkDir(d.CacheDir(), u.add)
	return u, err
}

// add adds one file, for filepath.WalkDir.
func (u *cacheUse) add(_ string, e fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	info, err := e.Info()
	if err != nil {
		return err
	}
	u.cost = u.cost.Add(view.Cost{Inodes: 1, Bytes: view.InodeBytes + info.Size()})
	if info.ModTime().After(u.last) {
		u.last = info.ModTime()
	}
	return nil
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
