// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
)

// Dir is the runtime directory with what is in it. Nothing in it needs to
// outlive a boot.
type Dir struct {
	Closures      *os.Root // the memo, see closure.Memo
	Views         *os.Root // <layer>: see view.Layer
	Registrations *os.Root // <name>: see closure.RegistrationName
	// In views and registrations, an empty file <name>@<id> says that the
	// container uses what is named so.

	config     config.Config
	store      closure.Store
	path       string   // absolute
	containers *os.Root // <id>.json: records

	// roots is, for an ordinary user, gcroots: links that are indirect GC roots,
	// in a directory for each container. Nil for who owns Nix's state directory.
	roots *os.Root
}

// Open makes the runtime directory that the configuration names, and
// refuses one that another user could change: what is in it decides what
// containers see.
//
// Close it when it is not needed any more.
func Open(c config.Config) (_ *Dir, Err error) {
	if err := EnsurePrivate(c.RuntimeDir); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(c.RuntimeDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	d := Dir{config: c, store: c.Store(), path: c.RuntimeDir}
	subs := []struct {
		name string
		to   **os.Root
	}{
		{"containers", &d.containers}, {"closures", &d.Closures},
		{"views", &d.Views}, {"registrations", &d.Registrations},
	}
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
func (d *Dir) Close() {
	for _, dir := range []*os.Root{d.containers, d.Closures, d.Views, d.Registrations, d.roots} {
		if dir != nil {
			dir.Close()
		}
	}
}

// EnsurePrivate makes a directory, or makes sure that one is this user's alone.
//
// Who else may write in the directory above, /tmp perhaps, can put something
// there before this user does, but cannot take away what is this user's: what is
// seen to be private stays.
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
		return fmt.Errorf("%s is a symbolic link; name where it leads as runtime-dir in the configuration, "+
			"or remove it", path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner cannot be found out", path)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to user %d who runs the hook; remove it",
			path, st.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be entered or written by others (mode %04o); "+
			"`chmod 0700 %s`, after a look at who wrote in it",
			path, info.Mode().Perm(), path)
	}
	return nil
}

// OpenRegistration opens a registration that was made since a time, in nanoseconds
// since 1970: one from before may be of paths that were collected and came back.
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

var errStale = errors.New("is from before the closure's paths were last registered")

// GCRoots is where the GC roots of containers are.
func (d *Dir) GCRoots() closure.GCRoots {
	if d.roots != nil {
		return closure.GCRoots{Dir: d.roots.Name(), Indirect: true}
	}
	return d.store.GCRoots()
}

// names are those in a directory.
func names(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
