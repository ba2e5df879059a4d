// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// Dir is the runtime directory and its contents. Nothing in it needs to survive a reboot.
type Dir struct {
	Closures      *owndir.Dir // the cache, see closure.Cache
	Views         *owndir.Dir // <layer>: see view.Layer
	Registrations *owndir.Dir // <name>: see closure.RegistrationName
	// In Views and Registrations, an empty file <name>@<id> marks that the container uses
	// name.

	config     config.Config
	store      closure.Store
	path       string      // absolute
	containers *owndir.Dir // <id>.json: records

	// roots is the directory gcroots, for an ordinary user. It has a directory for each
	// container, with links that are indirect GC roots. It is nil for the owner of Nix's
	// state directory.
	roots *owndir.Dir
}

// Open makes the runtime directory that the configuration names. It refuses a directory
// that another user could change, because its contents decide what containers see.
//
// The caller closes the Dir.
func Open(c config.Config) (*Dir, error) {
	if err := EnsurePrivate(c.RuntimeDir); err != nil {
		return nil, err
	}
	d := Dir{config: c, store: c.Store(), path: c.RuntimeDir}
	subs := []struct {
		name string
		to   **owndir.Dir
	}{
		{"containers", &d.containers}, {"closures", &d.Closures},
		{"views", &d.Views}, {"registrations", &d.Registrations},
	}
	// An ordinary user's own installation of Nix keeps GC roots as root's does.
	if c.Rootless && !c.Store().Ours() {
		subs = append(subs, struct {
			name string
			to   **owndir.Dir
		}{"gcroots", &d.roots})
	}
	for _, s := range subs {
		path := c.RuntimeDir + "/" + s.name
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdir(path, 0o700)
		} else if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		*s.to = owndir.At(path)
	}
	return &d, nil
}

// Close closes the open directories. Their names stay valid.
func (d *Dir) Close() {
	for _, dir := range []*owndir.Dir{d.containers, d.Closures, d.Views, d.Registrations, d.roots} {
		if dir != nil {
			dir.Close()
		}
	}
}

// EnsurePrivate makes a directory, or verifies that only this user can access an existing
// one.
//
// Other users may be able to write to the directory above, for example /tmp. They can put
// something there first, but they cannot remove what this user owns. So a directory that
// is private stays private.
func EnsurePrivate(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		info, err = os.Lstat(path)
	}
	if err != nil {
		return err
	}
	return checkPrivate(path, info)
}

func checkPrivate(path string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link; set runtime-dir in the configuration to its target, "+
			"or remove it", path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: cannot find out its owner", path)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to user %d who runs the hook; remove it",
			path, st.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be entered or written by others (mode %04o); "+
			"check who wrote in it, then `chmod 0700 %s`",
			path, info.Mode().Perm(), path)
	}
	return nil
}

// OpenRegistration opens a registration that was made since a time, in nanoseconds since
// 1970. An older one may describe paths that were collected and registered again.
func (d *Dir) OpenRegistration(name string, since int64) (*os.File, error) {
	f, err := d.Registrations.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.ModTime().UnixNano() < since {
		err = fmt.Errorf("%s: %w", f.Name(), errStale)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errStale = errors.New("is older than the last registration of the closure's paths")

// GCRoots returns the place of the containers' GC roots.
func (d *Dir) GCRoots() closure.GCRoots {
	if d.roots != nil {
		return closure.GCRoots{Dir: d.roots.Name(), Indirect: true}
	}
	return d.store.GCRoots()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
