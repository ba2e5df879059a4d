// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// bind is a closure as a tmpfs with one mount for each store path. It needs no privilege
// over the initial user namespace. Files open as fast as on the host.
type bind struct {
	store    closure.Store
	closure  closure.Closure
	options  Options
	storeDir *os.File
	tmpfs    *os.File
}

// NewBind makes the tmpfs. Attach mounts the store paths.
func NewBind(store closure.Store, c closure.Closure, o Options) (_ View, Err error) {
	storeDir, err := os.OpenFile(store.Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if Err != nil {
			storeDir.Close()
		}
	}()
	// The tmpfs holds directories, empty files and symbolic links. Without nr_inodes, a
	// host with little memory may allow too few of them. seal makes the tmpfs read-only
	// once it is complete.
	tmpfs, err := newTmpfs(o.mode(), option{"nr_inodes", fmt.Sprint(2*len(c.Names) + 16)})
	if err != nil {
		return nil, err
	}
	return &bind{store: store, closure: c, options: o, storeDir: storeDir, tmpfs: tmpfs}, nil
}

func (b *bind) Close() error { return errors.Join(b.storeDir.Close(), b.tmpfs.Close()) }

// Check does nothing: a mount always shows what is mounted.
func (b *bind) Check(closure.Store, closure.Closure) error { return nil }

// Shows compares dir with the root of the tmpfs.
func (b *bind) Shows(dir *os.File) (bool, error) { return samefile.Open(dir, b.tmpfs) }

// Attach mounts the tmpfs, and the store paths on it, one after the other by descriptor.
// A mount can be cloned only in its own mount namespace. So Attach opens the store
// directory again in the target's namespace, where the host's files are visible until the
// runtime changes the root directory. It must be the same directory.
func (b *bind) Attach(target *os.File) error {
	storeDir, err := os.OpenFile(b.store.Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer storeDir.Close()
	if same, err := samefile.Open(storeDir, b.storeDir); err != nil {
		return err
	} else if !same {
		return fmt.Errorf("%s is another directory in the container's mount namespace than on the host", b.store.Dir)
	}
	if err := moveMount(int(b.tmpfs.Fd()), target, ""); err != nil {
		return err
	}
	// On a shared mount, the tmpfs is shared by now. The store paths are writable until
	// seal, and would show wherever that mount has a peer.
	if err := setPrivate(b.tmpfs); err != nil {
		return err
	}
	for _, name := range b.closure.Names {
		if err := b.attachPath(storeDir, name); err != nil {
			return fmt.Errorf("%s: %w", b.store.Path(name), err)
		}
	}
	if err := b.options.makeLinks(int(b.tmpfs.Fd())); err != nil {
		return err
	}
	if err := setTimes(int(b.tmpfs.Fd()), "", unix.Timespec{Sec: 1}); err != nil {
		return err
	}
	return seal(b.tmpfs)
}

func (b *bind) attachPath(storeDir *os.File, base closure.BaseName) error {
	name, dir := string(base), int(b.tmpfs.Fd())
	tree, err := unix.OpenTree(int(storeDir.Fd()), name,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_RECURSIVE)
	if errors.Is(err, unix.ENOENT) {
		return ErrMissing
	}
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	// Most store paths are directories. The kernel mounts nothing else on a directory, so a
	// stat for each is spared.
	if err := unix.Mkdirat(dir, name, 0o500); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	if unix.MoveMount(tree, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH) == nil {
		return nil
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return os.NewSyscallError("unlinkat", err)
	}
	return b.attachNoDirectory(storeDir, base, tree)
}

// attachNoDirectory attaches a store path that could not be mounted on a directory. tree is
// its mount.
func (b *bind) attachNoDirectory(storeDir *os.File, base closure.BaseName, tree int) error {
	st, err := statPath(storeDir, base)
	if err != nil {
		return err
	}
	name, dir := string(base), int(b.tmpfs.Fd())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return copySymlink(dir, int(storeDir.Fd()), name, &st)
	case unix.S_IFDIR: // once more, for the error
		if err := unix.Mkdirat(dir, name, 0o500); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	case unix.S_IFREG:
		if err := unix.Mknodat(dir, name, unix.S_IFREG|0o400, 0); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
	}
	return moveMount(tree, b.tmpfs, name)
}
