// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// Editor changes a file of devices. While a device is in the file, GC roots keep its roots.
type Editor struct {
	Path string
	Nix  closure.NixStore
	// Roots is a directory for the GC roots of all files. Indirect: see closure.GCRoots.
	Roots    string
	Indirect bool
	// Valid fails if a device's closure is not valid.
	Valid func(context.Context, Device) error
}

// lockTimeout bounds the wait for other processes that change the file.
const lockTimeout = 30 * time.Second

// Edit calls change with the file, and writes it. It leaves no moment in which the file has
// a device that is not pinned: GC roots are added before, and removed after. Processes that
// edit the same file wait for each other.
func (e Editor) Edit(ctx context.Context, change func(*File) error) (Err error) {
	path, err := realPath(e.Path)
	if err != nil {
		return err
	}
	release, err := lock(ctx, path)
	if err != nil {
		return err
	}
	defer release()
	f, err := readOrNew(path, e.Nix.Store)
	if err != nil {
		return err
	}
	before := f.Devices()
	if err := change(f); err != nil {
		return err
	}
	if err := f.checkOthers(); err != nil {
		return err
	}
	links := e.links(path)
	defer func() {
		if Err != nil {
			Err = errors.Join(Err, links.Keep(pins(e.Nix.Store, before)))
		}
	}()
	after := f.Devices()
	var changed, others []Device
	for _, d := range after {
		same := func(old Device) bool { return old.Name == d.Name && slices.Equal(old.pins(), d.pins()) }
		if slices.ContainsFunc(before, same) {
			others = append(others, d)
		} else {
			changed = append(changed, d)
		}
	}
	err = links.Add(ctx, pins(e.Nix.Store, changed), func(ctx context.Context) error {
		for _, d := range changed {
			if err := e.Valid(ctx, d); err != nil {
				return fmt.Errorf("device %s: %w", d.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Somebody may have removed links. If they cannot be made again, because the store path
	// is gone, that is no reason against a change of another device.
	if missing := links.Missing(pins(e.Nix.Store, others)); len(missing) > 0 {
		_ = links.Add(ctx, missing, func(context.Context) error { return nil })
	}
	if err := f.write(); err != nil {
		return err
	}
	if err := links.Keep(pins(e.Nix.Store, after)); err != nil {
		return fmt.Errorf("%s is written, but GC roots of before are still there: %w", path, err)
	}
	return nil
}

// Check says why no container can start with a device of the file, or why that may come to
// be: the garbage collector may take its closure.
func (e Editor) Check(ctx context.Context, d Device) error {
	if d.Trouble != nil {
		return d.Trouble
	}
	if err := checkProgram(d.Hook); err != nil {
		return err
	}
	return e.CheckClosure(ctx, d)
}

// ErrUnpinned says that nothing keeps the closure of a device.
var ErrUnpinned = errors.New("is no GC root, so the garbage collector may take it")

// CheckClosure fails if the closure of a device is not valid, or with ErrUnpinned.
func (e Editor) CheckClosure(ctx context.Context, d Device) error {
	if err := e.Valid(ctx, d); err != nil {
		return err
	}
	info, err := os.Lstat(e.Path)
	if err != nil {
		return err
	}
	// A file of NixOS is a link into the store, and keeps what it names by its own text. Of
	// another user's file, that user's GC roots are not known.
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || int(st.Uid) != os.Geteuid() {
		return nil
	}
	path, err := realPath(e.Path)
	if err != nil {
		return err
	}
	if missing := e.links(path).Missing(d.pins()); len(missing) > 0 {
		return fmt.Errorf("%s %w", e.Nix.Store.Path(missing[0]), ErrUnpinned)
	}
	return nil
}

// checkProgram fails unless an engine can run a program.
func checkProgram(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the hook's program: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("the hook's program: %s is not an executable file", path)
	}
	return nil
}

// Sweep lets go of GC roots for devices that are gone: somebody removed them from a file, or
// the file, by hand. It returns the files. What cannot be read or is being changed is left
// alone.
func Sweep(roots string, nix closure.NixStore, dryRun bool) (swept []string, _ error) {
	entries, err := os.ReadDir(roots)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, entry := range entries {
		path, err := url.PathUnescape(entry.Name())
		if err != nil || !filepath.IsAbs(path) {
			continue // is not of this program
		}
		links := closure.Links{Nix: nix, Dir: filepath.Join(roots, entry.Name())}
		is, err := sweepFile(path, links, dryRun)
		if errs = append(errs, err); is {
			swept = append(swept, path)
		}
	}
	return swept, errors.Join(errs...)
}

// sweepFile is Sweep for one file.
func sweepFile(path string, links closure.Links, dryRun bool) (swept bool, _ error) {
	if _, err := os.Stat(filepath.Dir(path)); err == nil && !dryRun {
		release, err := tryLock(path)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer release()
	}
	devices, err := List(path, links.Nix.Store)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("keeping the GC roots for its devices: %w", err)
	}
	keep := pins(links.Nix.Store, devices)
	more, err := links.Others(keep)
	if err != nil || len(more) == 0 || dryRun {
		return len(more) > 0, err
	}
	return true, links.Keep(keep)
}

// links are the GC roots for one file.
func (e Editor) links(path string) closure.Links {
	return closure.Links{Nix: e.Nix, Dir: e.Roots + "/" + url.PathEscape(path), Indirect: e.Indirect}
}

// RootsDir is the directory of the GC roots for the owner of Nix's state directory.
func RootsDir(store closure.Store) string { return store.StateDir + "/gcroots/nix-closure-cdi" }

// pins are the store paths that keep the closure of a device.
func (d Device) pins() []closure.BaseName {
	if d.Request == nil {
		return nil
	}
	return d.Request.Asked()
}

// pins are the store paths that keep what the devices need: their closures, and the hook if
// that is in the store.
func pins(store closure.Store, devices []Device) []closure.BaseName {
	var all []closure.BaseName
	for _, d := range devices {
		all = append(all, d.pins()...)
		if program, err := store.Parse(d.Hook); err == nil {
			all = append(all, program)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkOthers refuses a device that another file beside this one has too: engines then
// know neither.
func (f *File) checkOthers() error {
	for _, extension := range []string{".json", ".yaml"} {
		others, err := filepath.Glob(filepath.Dir(f.path) + "/*" + extension)
		if err != nil {
			return err
		}
		for _, other := range others {
			if other == f.path {
				continue
			}
			read, err := cdi.ReadSpec(other, 0)
			if err != nil || read.Kind != Kind {
				continue // engines do not read it, or it has no device of this kind
			}
			for _, d := range read.Devices {
				if f.index(d.Name) >= 0 {
					return fmt.Errorf("%s has a device %s too, and engines refuse a device that two files have; "+
						"remove it there, or take another name", other, d.Name)
				}
			}
		}
	}
	return nil
}

// realPath is the path of a file without links on the way to its directory, which is made
// if it is not there.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
			return "", err
		}
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// lock has this process be the only one that changes the file, until release. The lock is
// on a file beside it, which goes with the last one who needs it, and which other users
// cannot open.
func lock(ctx context.Context, path string) (release func(), _ error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		release, err := tryLock(path)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process changes the file, and has its lock: %w: %w", err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// tryLock is lock without waiting: it fails with EWOULDBLOCK.
func tryLock(path string) (release func(), _ error) {
	path = filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !samefile.At(f, path) {
		err = unix.EWOULDBLOCK // another process had it, and has removed the file
	}
	if err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return func() {
		_ = os.Remove(path)
		_ = f.Close()
	}, nil
}
