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

// bind is a closure as a tmpfs with one mount for each store path. It needs no privilege in
// the initial user namespace. Opening files is as fast as on the host.
type bind struct {
	store    closure.Store
	closure  closure.Closure
	options  Options
	storeDir *os.File
	tmpfs    *os.File
}

// NewBind makes the tmpfs. Attach mounts the store paths on it.
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
	// The tmpfs has directories, empty files and symbolic links. Without nr_inodes, a host
	// with little memory may allow too few. seal makes it read-only when it is full.
	tmpfs, err := newTmpfs(o.mode(), option{"nr_inodes", fmt.Sprint(2*len(c.Names) + 16)})
	if err != nil {
		return nil, err
	}
	return &bind{store: store, closure: c, options: o, storeDir: storeDir, tmpfs: tmpfs}, nil
}

func (b *bind) Close() error { return errors.Join(b.storeDir.Close(), b.tmpfs.Close()) }

// Check has nothing to check: a mount shows what is mounted.
func (b *bind) Check(closure.Store, closure.Closure) error { return nil }

// Shows compares dir with the root of the tmpfs.
func (b *bind) Shows(dir *os.File) (bool, error) { return samefile.Open(dir, b.tmpfs) }

// Attach mounts the tmpfs, and then the store paths on it, by descriptor. A mount can be
// cloned only in its own mount namespace. So Attach opens the store directory again, in the
// target's namespace, where the host's files are in sight until the runtime changes the
// root directory. It must be the same directory as on the host.
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
	// If the target's mount is shared, this mount is shared now. The store paths are
	// writable until seal, and would show at every peer of that mount.
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
	st, err := statPath(storeDir, base)
	if err != nil {
		return err
	}
	name, dir := string(base), int(b.tmpfs.Fd())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return copySymlink(dir, int(storeDir.Fd()), name, &st)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dir, name, 0o500); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	case unix.S_IFREG:
		if err := unix.Mknodat(dir, name, unix.S_IFREG|0o400, 0); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
	}
	tree, err := unix.OpenTree(int(storeDir.Fd()), name,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	return moveMount(tree, b.tmpfs, name)
}
