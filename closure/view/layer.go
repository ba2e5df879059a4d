// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// The extended attributes by which overlay finds a file of a lower layer under another
// name (Documentation/filesystems/overlayfs.rst: "Opaque directories", "redirect_dir",
// "Metadata only copy up"). Only a process with CAP_SYS_ADMIN in the initial user
// namespace may set them, so the kernel trusts only root's layers.
const (
	xattrOpaque   = "trusted.overlay.opaque"
	xattrRedirect = "trusted.overlay.redirect"
	xattrMetacopy = "trusted.overlay.metacopy"
)

// shown is the only directory of a layer. The root of an overlay shows the whole store
// beside it, so only what is below shown is ever attached.
const shown = "store"

// Layer is the topmost layer of an overlay: an opaque directory with one entry for each
// store path. An entry redirects to the store path of the same name in the layer below. A
// name without an entry does not exist in the view, even if the store gets it later.
type Layer struct {
	path string
}

// LayerName returns the name of a closure's layer.
func LayerName(digest string, o Options) string {
	if !o.Listed {
		digest += "-unlisted"
	}
	if o.Links {
		digest += "-links"
	}
	return digest
}

// OpenLayer returns a layer that EnsureLayer made or found up to date since a time, in
// nanoseconds since 1970. Otherwise ok is false.
func OpenLayer(views *owndir.Dir, digest string, o Options, since int64) (_ Layer, ok bool) {
	name := LayerName(digest, o)
	st, err := views.Lstat(name)
	if err != nil || st.ModTime().UnixNano() < since {
		return Layer{}, false
	}
	return Layer{filepath.Join(views.Name(), name)}, true
}

// FindLayer returns the layer of a closure if it exists and shows the store paths as they
// are. Otherwise ok is false. It checks every store path.
func FindLayer(views *owndir.Dir, store closure.Store, c closure.Closure, o Options) (_ Layer, ok bool, _ error) {
	storeDir, err := openStore(store)
	if err != nil {
		return Layer{}, false, err
	}
	defer storeDir.Close()
	return currentLayer(views, storeDir, c, o)
}

func openStore(store closure.Store) (*os.File, error) {
	return os.OpenFile(store.Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// builderTimeout is how long a process waits for another process that makes the same
// layer. Most layers take milliseconds.
var builderTimeout = 5 * time.Second

// half is the suffix of a layer that is being made. Its maker holds a lock on the
// directory (flock). Without a lock, nobody finishes the layer.
const half = ".new"

// EnsureLayer makes the layer of a closure, or returns the existing layer if it still
// shows the store paths as they are. Many processes may call it at once: one makes the
// layer under a temporary name and renames it, and the others wait. They do not wait
// long, because a stopped process must not keep others from starting. After the timeout
// each process makes the layer itself, and the first to finish renames its own.
func EnsureLayer(
	ctx context.Context, views *owndir.Dir, store closure.Store, c closure.Closure, o Options,
) (Layer, error) {
	name := LayerName(c.Digest(), o)
	storeDir, err := openStore(store)
	if err != nil {
		return Layer{}, err
	}
	defer storeDir.Close()

	if l, ok, err := currentLayer(views, storeDir, c, o); ok || err != nil {
		return l, err
	}
	aside := name + half
	work, err := lockedDir(ctx, views, aside, name)
	if errors.Is(err, errBuilding) {
		// No other process uses this name.
		aside = name + "." + rand.Text() + half
		work, err = lockedDir(ctx, views, aside, name)
	}
	if err != nil {
		return Layer{}, err
	}
	defer work.Close()
	if samefile.At(work, views.Name()+"/"+name) {
		return layerIn(views, name), nil
	}
	// Another process may have finished between the first look and the lock.
	if l, ok, err := currentLayer(views, storeDir, c, o); ok || err != nil {
		return l, errors.Join(err, views.RemoveAll(aside))
	}
	began := time.Now()
	err = fill(work, storeDir, store, c, o)
	if err == nil {
		err = views.Chtimes(aside, began, began)
	}
	if err == nil {
		err = publish(views, storeDir, aside, c, o)
	}
	if err != nil {
		return Layer{}, errors.Join(err, views.RemoveAll(aside))
	}
	return layerIn(views, name), nil
}

func layerIn(views *owndir.Dir, name string) Layer { return Layer{filepath.Join(views.Name(), name)} }

// publish renames a finished layer from its temporary name to its own.
func publish(views *owndir.Dir, storeDir *os.File, aside string, c closure.Closure, o Options) error {
	name := LayerName(c.Digest(), o)
	for range publishAttempts {
		err := views.Rename(aside, name)
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		// The name is taken. Either another process made the layer meanwhile, or the
		// existing layer shows the paths as they were before: they were collected and
		// came back different, or someone changed an attribute. Running containers may
		// use the old layer, so it is renamed, which an overlay does not notice.
		if _, ok, err := currentLayer(views, storeDir, c, o); ok || err != nil {
			return errors.Join(err, views.RemoveAll(aside))
		}
		if err := views.Rename(name, name+".stale."+rand.Text()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%s: other processes keep replacing it", filepath.Join(views.Name(), name))
}

// publishAttempts bounds the attempts. Other processes do not come first that often.
const publishAttempts = 10

// currentLayer returns the existing layer, if it is up to date.
func currentLayer(views *owndir.Dir, storeDir *os.File, c closure.Closure, o Options) (Layer, bool, error) {
	began := time.Now()
	l, ok := OpenLayer(views, c.Digest(), o, 0)
	if !ok {
		return Layer{}, false, nil
	}
	ok, err := upToDate(l.path+"/"+shown, storeDir, c)
	if ok && err == nil {
		err = views.Chtimes(LayerName(c.Digest(), o), began, began)
		if errors.Is(err, fs.ErrNotExist) {
			return Layer{}, false, nil // a sweep has just removed it
		}
	}
	return l, ok, err
}

// errBuilding says that another process makes the layer.
var errBuilding = errors.New("another process makes the layer")

// lockedDir returns the directory aside in views, empty and locked by this process alone.
// It makes the directory if it is missing. If the process that held the lock finished the
// layer while this one waited, lockedDir returns that same directory, which has its final
// name by then. After builderTimeout it fails with errBuilding.
func lockedDir(ctx context.Context, views *owndir.Dir, aside, name string) (_ *os.File, Err error) {
	waited, cancel := context.WithTimeout(ctx, builderTimeout)
	defer cancel()
	for {
		if err := views.Mkdir(aside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		dir, err := views.Open(aside)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		err = waitFlock(waited, dir)
		switch {
		case errors.Is(err, errBuilding) && ctx.Err() != nil:
			err = fmt.Errorf("waiting for another process to make %s%s: %w", dir.Name(), flockHolder(dir), ctx.Err())
		case err != nil:
		case samefile.At(dir, views.Name()+"/"+name):
			return dir, nil
		case samefile.At(dir, views.Name()+"/"+aside):
			// Remove what a killed process left in it.
			if err = errors.Join(views.RemoveAll(aside+"/"+shown), views.RemoveAll(aside+"/"+sizeLink)); err == nil {
				return dir, nil
			}
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
	}
}

// waitFlock waits for the lock of a directory. It fails with errBuilding when ctx ends.
func waitFlock(ctx context.Context, dir *os.File) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "flock", Path: dir.Name(), Err: err}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errBuilding
		case <-time.After(pause):
		}
	}
}

// flockHolder names the process that holds the lock of a directory, for a message.
func flockHolder(dir *os.File) string {
	var st unix.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Fstat(int(dir.Fd()), &st) != nil {
		return ""
	}
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 00:1a:7 0 EOF
		f := strings.Fields(line)
		if len(f) == 8 && f[1] == "FLOCK" && strings.HasSuffix(f[5], fmt.Sprintf(":%d", st.Ino)) {
			return fmt.Sprintf(" (process %s has the lock)", f[4])
		}
	}
	return ""
}

// IsHalf reports whether a name in views belongs to a layer that is being made.
func IsHalf(name string) bool { return strings.HasSuffix(name, half) }

// LockAbandoned takes the lock of a half-made layer, if no process holds it because its
// maker was killed. Until release, no process continues the layer. If the caller renames
// it before release, no process ever does.
func LockAbandoned(views *owndir.Dir, name string) (release func(), ok bool) {
	if !IsHalf(name) {
		return nil, false
	}
	dir, err := views.Open(name)
	if err != nil {
		return nil, false
	}
	if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !samefile.At(dir, views.Name()+"/"+name) {
		dir.Close()
		return nil, false
	}
	return func() { dir.Close() }, true
}

// fill makes the layer's directory tree in work, which is empty.
func fill(work, storeDir *os.File, store closure.Store, c closure.Closure, o Options) error {
	dirfd := int(work.Fd())
	// Write the cost first, so that the layer counts while it is being made.
	cost, err := layerCost(dirfd, c)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(cost.String(), dirfd, sizeLink); err != nil {
		return &os.PathError{Op: "symlink", Path: sizeLink, Err: err}
	}
	if err := unix.Mkdirat(dirfd, shown, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: shown, Err: err}
	}
	fd, err := unix.Openat(dirfd, shown, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: shown, Err: err}
	}
	dir := os.NewFile(uintptr(fd), work.Name()+"/"+shown)
	defer dir.Close()
	if err := setXattr(fd, xattrOpaque, "y"); err != nil {
		return err
	}
	for _, name := range c.Names {
		if err := fillPath(dir, storeDir, name); err != nil {
			return fmt.Errorf("%s: %w", store.Path(name), err)
		}
	}
	if err := o.makeLinks(fd); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, o.mode()); err != nil {
		return &os.PathError{Op: "chmod", Path: dir.Name(), Err: err}
	}
	return setTimes(fd, "", unix.Timespec{Sec: 1})
}

// linksDir is the directory in which Nix keeps hard links of identical files.
const linksDir = ".links"

func (o Options) makeLinks(storeDir int) error {
	if !o.Links {
		return nil
	}
	if err := unix.Mkdirat(storeDir, linksDir, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: linksDir, Err: err}
	}
	return setTimes(storeDir, linksDir, unix.Timespec{Sec: 1})
}

// setXattr sets an attribute. If that is not permitted, the error explains why.
func setXattr(fd int, name, value string) error {
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: setting %s needs root in the initial user namespace: %w", ErrUnsupported, name, err)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: the file system of the runtime directory keeps no trusted extended attributes: %w",
			ErrUnsupported, err)
	}
	return os.NewSyscallError("fsetxattr "+name, err)
}

// fillPath makes the entry of one store path. The entry gets the attributes of the store
// path, because the overlay shows the attributes of the entry.
func fillPath(dir, storeDir *os.File, base closure.BaseName) error {
	name, dirfd := string(base), int(dir.Fd())
	st, err := statPath(storeDir, base)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return copySymlink(dirfd, int(storeDir.Fd()), name, &st)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	}
	flags := unix.O_RDONLY
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if err := unix.Ftruncate(fd, st.Size); err != nil {
			return os.NewSyscallError("ftruncate", err)
		}
		if err := setXattr(fd, xattrMetacopy, ""); err != nil {
			return err
		}
	}
	// The redirect is absolute: it starts at the root of the lower layers, which is the
	// store directory.
	if err := setXattr(fd, xattrRedirect, "/"+name); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	return setTimes(fd, "", st.Mtim)
}

// ErrMissing says that a registered store path has no file.
var ErrMissing = errors.New("is registered, but not in the store; " +
	"`nix-store --verify --check-contents --repair` mends the store")

// statPath returns the stat of a store path, which must be a directory, a regular file or
// a symbolic link.
func statPath(storeDir *os.File, base closure.BaseName) (st unix.Stat_t, _ error) {
	err := unix.Fstatat(int(storeDir.Fd()), string(base), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return st, ErrMissing
	}
	if err != nil {
		return st, os.NewSyscallError("fstatat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK:
		return st, nil
	}
	return st, errors.New("neither a directory nor a regular file nor a symbolic link")
}

// copySymlink copies a symbolic link to another directory, with its owner and time.
func copySymlink(to, from int, name string, st *unix.Stat_t) error {
	target, err := readlink(from, name)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(target, to, name); err != nil {
		return os.NewSyscallError("symlinkat", err)
	}
	err = unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	// EINVAL: the user namespace has no mapping for the owner.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("fchownat", err)
	}
	return setTimes(to, name, st.Mtim)
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

// setTimes sets both times of name in a directory. If name is empty, it sets those of the
// open file itself (utimensat(2) with AT_EMPTY_PATH, Linux 5.8).
func setTimes(fd int, name string, t unix.Timespec) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH
	if err := unix.UtimesNanoAt(fd, name, []unix.Timespec{t, t}, flags); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	return nil
}

// upToDate reports whether the entries of a layer have the current attributes of the
// store paths.
func upToDate(layer string, storeDir *os.File, c closure.Closure) (bool, error) {
	dir, err := os.OpenFile(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, nil
	}
	defer dir.Close()
	for _, name := range c.Names {
		want, err := statPath(storeDir, name)
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		var have unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), string(name), &have, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, nil
		}
		if have.Mode != want.Mode || have.Uid != want.Uid || have.Gid != want.Gid || have.Mtim != want.Mtim {
			return false, nil
		}
		switch want.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if have.Size != want.Size {
				return false, nil
			}
		case unix.S_IFLNK:
			a, err := readlink(int(dir.Fd()), string(name))
			b, err2 := readlink(int(storeDir.Fd()), string(name))
			if err != nil || err2 != nil || a != b {
				return false, errors.Join(err, err2)
			}
		}
	}
	return true, nil
}
