// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/owndir"
)

// separator is between a name and the ID of the container that uses it. Neither contains
// it.
const separator = "@"

// addRef marks that a container uses name in dir. Call it before looking for name; the
// mark stays until dropRef. That order, and not a lock, protects name from sweeps: see
// sweeper. Hold the lock of the ID.
func (d *Dir) addRef(dir *owndir.Dir, name, id string) error {
	path := dir.Name() + "/" + name + separator + id
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

// dropRef removes the mark that addRef made, and sets the access time of name to now.
// Hold the lock of the ID.
func (d *Dir) dropRef(dir *owndir.Dir, name, id string) error {
	if name == "" {
		return nil
	}
	path := dir.Name() + "/" + name
	err := unix.Unlink(path + separator + id)
	if err == nil {
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, now, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: path + separator + id, Err: err}
	}
	return nil
}

// parseRef splits the file name of a mark.
func parseRef(file string) (name, id string, ok bool) { return strings.Cut(file, separator) }
