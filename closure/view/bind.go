// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// bind is a closure as a tmpfs with a mount for each store path. It needs no
// privilege over the initial user namespace, and files are opened as fast as on
// the host.
type bind struct {
	store    closure.Store
	closure  closure.Closure
	options  Options
	storeDir *os.File
	tmpfs    *os.File
}

// NewBind makes the tmpfs. The store paths are mounted by Attach.
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
	// It holds directories, empty files and symbolic links; without nr_inodes, a
	// host with little memory may have too few.
	tmpfs, err := newMount("tmpfs", []option{
		{"source", "nix-closure"}, {"mode", fmt.Sprintf("%04o", o.mode())}, {"nr_inodes", fmt.Sprint(2*len(c.Names) + 16)},
	})
	if err != nil {
		return nil, err
	}
	// fsmount made it read-only, which is for seal to do when it is full.
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(tmpfs.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		tmpfs.Close()
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return &bind{store, c, o, storeDir, tmpfs}, nil
}

func (b *bind) Close() error { return errors.Join(b.storeDir.Close(), b.tmpfs.Close()) }

// Shows compares with the root of the tmpfs.
func (b *bind) Shows(dir *os.File) (bool, error) { return sameFile(dir, b.tmpfs) }

// entry is a store path on its way from the host's mount namespace into the
// container's.
type entry struct {
	name closure.BaseName
	stat unix.Stat_t
	link string // of a symbolic link: its target
	tree int    // of anything else: a clone of its mount, attached nowhere
}

// Attach mounts the tmpfs, and on it the store paths. A mount can be cloned only
// in its own mount namespace and attached only in the target's, so two threads
// do it: the calling one, which has joined the target's, and another, which has
// not. Few descriptors are open at once, whatever the closure's size.
func (b *bind) Attach(target *os.File) error {
	entries := make(chan entry, 64)
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(entries)
		failed <- b.clone(entries, stop)
	}()
	err := b.attach(target, entries)
	close(stop)
	for e := range entries {
		if e.tree >= 0 {
			unix.Close(e.tree)
		}
	}
	return errors.Join(<-failed, err)
}

// clone runs on a thread that never left the host's mount namespace: the Go
// runtime starts no thread from one that is locked to a goroutine.
func (b *bind) clone(to chan<- entry, stop <-chan struct{}) error {
	for _, name := range b.closure.Names {
		e := entry{name: name, tree: -1}
		var err error
		if e.stat, err = statPath(b.storeDir, name); err == nil {
			if e.stat.Mode&unix.S_IFMT == unix.S_IFLNK {
				e.link, err = readlink(b.storeDir, string(name))
			} else {
				e.tree, err = unix.OpenTree(int(b.storeDir.Fd()), string(name),
					unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_RECURSIVE)
				err = os.NewSyscallError("open_tree", err)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.store.Path(name), err)
		}
		select {
		case to <- e:
		case <-stop:
			if e.tree >= 0 {
				unix.Close(e.tree)
			}
			return nil
		}
	}
	return nil
}

func (b *bind) attach(target *os.File, entries <-chan entry) error {
	if err := moveMount(int(b.tmpfs.Fd()), target, ""); err != nil {
		return err
	}
	for e := range entries {
		if err := b.attachPath(e); err != nil {
			return fmt.Errorf("%s: %w", b.store.Path(e.name), err)
		}
	}
	if err := setTimes(int(b.tmpfs.Fd()), "", unix.Timespec{Sec: 1}); err != nil {
		return err
	}
	return seal(b.tmpfs)
}

func (b *bind) attachPath(e entry) error {
	if e.tree >= 0 {
		defer unix.Close(e.tree)
	}
	name, dir := string(e.name), int(b.tmpfs.Fd())
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if err := unix.Symlinkat(e.link, dir, name); err != nil {
			return os.NewSyscallError("symlinkat", err)
		}
		if err := unix.Fchownat(dir, name, int(e.stat.Uid), int(e.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
		return setTimes(dir, name, e.stat.Mtim)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dir, name, 0o500); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	default:
		if err := unix.Mknodat(dir, name, unix.S_IFREG|0o400, 0); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
	}
	return moveMount(e.tree, b.tmpfs, name)
}
