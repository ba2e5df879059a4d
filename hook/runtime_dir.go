// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
)

// RuntimeDir is the runtime directory with what is in it. Nothing in it needs to
// outlive a boot.
type RuntimeDir struct {
	Containers    *os.Root // <id>.json: records
	Closures      *os.Root // the memo, see closure.Memo
	Views         *os.Root // <layer>: see view.Layer
	Registrations *os.Root // <name>: see closure.RegistrationName
	// In views and registrations, an empty file <name>@<id> says that the
	// container uses what is named so.

	path string // absolute

	// roots is, for an ordinary user, gcroots: links that are indirect GC roots,
	// in a directory for each container. Nil for who owns Nix's state directory.
	roots *os.Root
}

// OpenRuntimeDir makes the runtime directory that the configuration names, and
// refuses one that another user could change: what is in it decides what
// containers see.
//
// Close it when it is not needed any more.
func OpenRuntimeDir(c config.Config) (_ *RuntimeDir, Err error) {
	if err := ensurePrivate(c.RuntimeDir); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(c.RuntimeDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	d := RuntimeDir{path: c.RuntimeDir}
	subs := []struct {
		name string
		to   **os.Root
	}{{"containers", &d.Containers}, {"closures", &d.Closures}, {"views", &d.Views}, {"registrations", &d.Registrations}}
	// An ordinary user's own installation of Nix has GC roots as root's has.
	if c.Rootless && !c.Store().Ours() {
		subs = append(subs, struct {
			name string
			to   **os.Root
		}{"gcroots", &d.roots})
	}
	defer func() {
		if Err != nil {
			d.Close()
		}
	}()
	for _, s := range subs {
		sub, err := dir.OpenRoot(s.name)
		if errors.Is(err, fs.ErrNotExist) {
			if err := dir.Mkdir(s.name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			sub, err = dir.OpenRoot(s.name)
		}
		if err != nil {
			return nil, err
		}
		*s.to = sub
	}
	return &d, nil
}

// Close releases what was opened. The names of what is in the directory stay valid.
func (d *RuntimeDir) Close() {
	for _, dir := range []*os.Root{d.Containers, d.Closures, d.Views, d.Registrations, d.roots} {
		if dir != nil {
			dir.Close()
		}
	}
}

// ensurePrivate makes a directory, or makes sure that one is this user's alone.
//
// Who else may write in the directory above, /tmp perhaps, can put something
// there before this user does, but cannot take away what is this user's: what is
// seen to be private stays.
func ensurePrivate(path string) error {
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
	return private(path, info)
}

func private(path string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link; name where it leads as runtime-dir in the configuration, or remove it", path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner cannot be found out", path)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to user %d who runs the hook; remove it", path, st.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be entered or written by others (mode %04o); `chmod 0700 %s`, after a look at who wrote in it", path, info.Mode().Perm(), path)
	}
	return nil
}

// Registration opens a registration that was made since a time, in nanoseconds
// since 1970: one from before may be of paths that were collected and came back.
func (d *RuntimeDir) Registration(name string, since int64) (*os.File, error) {
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

var errStale = errors.New("is from before the closure's paths were last registered")

// gcRoots is where the GC roots of containers are.
func (d *RuntimeDir) gcRoots(store closure.Store) closure.GCRoots {
	if d.roots != nil {
		return closure.GCRoots{Dir: d.roots.Name(), Indirect: true}
	}
	return store.GCRoots()
}

// separator is between a name and the id of the container that uses it. Neither
// has it in it.
const separator = "@"

// use says that a container uses name in dir, from before it is looked for until
// release. That order, and not a lock, is what keeps sweeps away from it: see
// sweeper. Hold the lock of the ID.
func (d *RuntimeDir) use(dir *os.Root, name, id string) error {
	path := dir.Name() + "/" + name + separator + id
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

// release ends use. It leaves on name when that was. Hold the lock of the ID.
func (d *RuntimeDir) release(dir *os.Root, name, id string) error {
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

// isUse takes the name of a file apart that use made.
func isUse(file string) (name, id string, ok bool) { return strings.Cut(file, separator) }
