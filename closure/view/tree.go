// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
)

// Tree is a view that is attached nowhere: whole, read-only, and one step away from any
// directory of any mount namespace.
type Tree struct{ root *os.File }

// NewTree makes the tree of a view. staging is any directory: in a mount namespace of
// its own, which nobody else sees, the view is attached there, and then cloned. So
// nobody sees a part of it, also where the directory that it will be attached to is
// on a shared mount and the kernel copies it to other mount namespaces.
func NewTree(v View, staging string) (*Tree, error) {
	t := &Tree{}
	err := mntns.OnOwnThread(func() (err error) {
		t.root, err = stage(v, staging)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// stage attaches a view in a mount namespace of the calling thread's own, and returns a
// clone of it.
func stage(v View, staging string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, &os.PathError{Op: "mount", Path: "/", Err: err}
	}
	const directory = unix.O_PATH | unix.O_DIRECTORY
	target, err := os.OpenFile(staging, directory, 0)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if err := v.Attach(target); err != nil {
		return nil, err
	}
	attached, err := os.OpenFile(staging, directory, 0)
	if err != nil {
		return nil, err
	}
	defer attached.Close()
	if ok, err := v.Shows(attached); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("%s does not show what was attached to it", staging)
	}
	const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
	fd, err := unix.OpenTree(int(attached.Fd()), "", clone)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), "view"), nil
}

// Mount identifies the tree's first mount, before and after it is attached (statx(2),
// STATX_MNT_ID, Linux 5.8).
func (t *Tree) Mount() (id int, device string, _ error) { return MountOf(t.root) }

// MountOf identifies the mount that an open file is on.
func MountOf(f *os.File) (id int, device string, _ error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = errors.ErrUnsupported
	}
	if err != nil {
		return 0, "", os.NewSyscallError("statx", err)
	}
	return int(st.Mnt_id), fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), nil
}

// Attach mounts the tree on a directory, in one step. On a shared mount it is shared, and
// copied, as all that is mounted there: so the copies go when it is taken off.
func (t *Tree) Attach(target *os.File) error { return moveMount(int(t.root.Fd()), target, "") }

// Close releases what was opened. What is attached stays.
func (t *Tree) Close() error { return t.root.Close() }
