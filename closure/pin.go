// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// gcRootsBelow is the directory of this program's GC roots, below Nix's.
const gcRootsBelow = "nix-closure"

// ErrCollecting says that the garbage collector of Nix is running.
var ErrCollecting = errors.New("the garbage collector of Nix is running")

// HoldCollector keeps Nix's garbage collector from starting until the file is
// closed. What is found valid and made a GC root in between stays. It does not
// wait: where the collector runs, it fails with ErrCollecting.
//
// Nix takes the same lock, gc.lock, exclusively for a whole collection (flock).
func HoldCollector(store Store) (*os.File, error) {
	if err := ownedByUs(store.StateDir); err != nil {
		return nil, err
	}
	path := store.StateDir + "/gc.lock"
	// Nix makes the file when it first opens the store, with the same mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrCollecting
	} else if err != nil {
		err = &os.PathError{Op: "flock", Path: path, Err: err}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ownedByUs refuses a directory that another user can change: what is in it is
// believed, and written to.
func ownedByUs(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s belongs to user %d and has mode %04o, and so can be changed by others than user %d who runs the hook; a single-user installation of Nix cannot be used", dir, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	return nil
}

// GCRootsDir is where a container's GC roots are.
func (s Store) GCRootsDir(container string) string {
	return fmt.Sprintf("%s/gcroots/%s/%s", s.StateDir, gcRootsBelow, container)
}

// AddGCRoots makes the pins GC roots of a container, in place of any that it
// has. The container's id must be a plain file name.
//
// They hold from the next collection on. To be sure of the present, do it while
// HoldCollector's file is open, or follow it with NixStore.Realise.
func AddGCRoots(store Store, container string, pins []BaseName) error {
	dir, err := os.OpenRoot(store.StateDir + "/gcroots")
	if err != nil {
		return err
	}
	defer dir.Close()
	own := gcRootsBelow + "/" + container
	err = dir.Mkdir(own, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := dir.Mkdir(gcRootsBelow, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = dir.Mkdir(own, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		if err = dir.RemoveAll(own); err == nil {
			err = dir.Mkdir(own, 0o755)
		}
	}
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := dir.Symlink(store.Path(p), own+"/"+string(p)); err != nil {
			return err
		}
	}
	return nil
}

// RemoveGCRoots removes what AddGCRoots made. That nothing is there is no error.
func RemoveGCRoots(store Store, container string) error {
	dir, err := os.OpenRoot(store.StateDir + "/gcroots")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	return dir.RemoveAll(gcRootsBelow + "/" + container)
}
