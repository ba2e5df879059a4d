// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readOnly are the attributes of everything that a view mounts.
const readOnly = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// option is a mount option.
type option struct{ key, value string }

// maxOption is the kernel's limit for the value of one option, in bytes (fsconfig(2),
// FSCONFIG_SET_STRING).
const maxOption = 255

// newMount makes a file system that is attached nowhere (fsopen(2) and fsmount(2), Linux
// 5.2). An error includes what the kernel says about the options.
func newMount(kind string, options []option) (_ *os.File, Err error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen "+kind, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if len(o.value) > maxOption {
			return nil, fmt.Errorf("%w: mount option %s is longer than %d bytes: %s",
				ErrUnsupported, o.key, maxOption, o.value)
		}
		if err := unix.FsconfigSetString(fs, o.key, o.value); err != nil {
			return nil, fmt.Errorf("%s option %s=%s: %w%s", kind, o.key, o.value, err, messages(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("making the %s: %w%s", kind, err, messages(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, readOnly)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w%s", kind, err, messages(fs))
	}
	return os.NewFile(uintptr(fd), kind), nil
}

// messages returns what the kernel wrote about a file system context. Each read gives one
// message, after a letter for its severity.
func messages(fs int) string {
	var all strings.Builder
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 2 {
			return all.String()
		}
		fmt.Fprintf(&all, "; kernel: %s", strings.TrimSpace(string(buf[2:n])))
	}
}

// moveMount attaches a mount that is attached nowhere to name in dir, or to dir itself if
// name is empty (move_mount(2), Linux 5.2).
func moveMount(mount int, dir *os.File, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(mount, "", int(dir.Fd()), name, flags); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

// setWritable removes the read-only attribute of a mount.
func setWritable(mount *os.File) error {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return nil
}

// newSizedTmpfs makes a tmpfs of a size in bytes. It has the inodes that such a size needs,
// and as many more. Of the options, only the label counts.
func newSizedTmpfs(size, more int64, mode uint32, o Options) (*os.File, error) {
	// The size does not count the memory of inodes. The kernel's own default is one inode
	// for two pages.
	inodes := more + max(size/4096, 1024)
	return newTmpfs(mode, o.labelled(option{"size", fmt.Sprint(size)}, option{"nr_inodes", fmt.Sprint(inodes)})...)
}

// newTmpfs makes a writable tmpfs that is attached nowhere.
func newTmpfs(mode uint32, options ...option) (*os.File, error) {
	all := []option{{"source", "nix-closure"}, {"mode", fmt.Sprintf("%04o", mode)}}
	tmpfs, err := newMount("tmpfs", append(all, options...))
	if err != nil {
		return nil, err
	}
	if err := setWritable(tmpfs); err != nil {
		tmpfs.Close()
		return nil, err
	}
	return tmpfs, nil
}

// SetPrivate ends the propagation of the mount whose root is dir, and of all mounts below
// it (mount_setattr(2), Linux 5.12).
func SetPrivate(dir *os.File) error { return setPrivate(dir) }

// SetPrivateAlone is SetPrivate without the mounts below.
func SetPrivateAlone(dir *os.File) error {
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(dir.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return nil
}

// setPrivate ends the propagation of a mount and of all mounts below it.
func setPrivate(mount *os.File) error {
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return nil
}

// seal makes a mount, and all mounts below it, read-only and private (mount_setattr(2),
// Linux 5.12).
func seal(mount *os.File) error {
	attr := unix.MountAttr{Attr_set: readOnly, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return nil
}

// Detach unmounts the mount whose root is f, lazily, with everything that is mounted on it.
// To see what was underneath, open the path again.
//
// The mount is made private first: unmounting a shared mount would unmount its peers, also
// those of the host.
func Detach(f *os.File) error {
	err := setPrivate(f)
	if errors.Is(err, unix.EINVAL) {
		return ErrNotMounted
	}
	if err != nil {
		return err
	}
	// umount2(2) takes no descriptor, and the path could lead elsewhere by now. The link in
	// /proc leads to the open file.
	err = unix.Unmount("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		return ErrNotMounted
	}
	if err != nil {
		return &os.PathError{Op: "umount2", Path: f.Name(), Err: err}
	}
	return nil
}

// ErrNotMounted says that a file is not the root of a mount.
var ErrNotMounted = errors.New("not the root of a mount")
