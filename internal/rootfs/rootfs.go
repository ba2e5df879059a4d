// SPDX-License-Identifier: Apache-2.0

// Package rootfs finds, makes and reads files in the root of a container, which an image
// filled: every path is resolved by descriptor, in that root.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Owner is a user and a group, as the user namespace of the calling thread numbers them.
type Owner struct{ UID, GID int }

// Open opens a path as a process in the container would find it, without
// leaving the root by a symbolic link, `..` or a link of /proc (openat2, Linux
// 5.6). The descriptor is no more than a name (O_PATH): nothing can be read by it.
func Open(root *os.File, unsafePath string) (*os.File, error) {
	return OpenResolving(root, unsafePath, 0)
}

// OpenResolving is Open with more restrictions, such as unix.RESOLVE_NO_SYMLINKS.
func OpenResolving(root *os.File, unsafePath string, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	err := error(unix.EAGAIN)
	// EAGAIN: something was renamed or mounted meanwhile.
	for try := 0; try < 100 && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); try++ {
		var fd int
		if fd, err = unix.Openat2(int(root.Fd()), unsafePath, &how); err == nil {
			return os.NewFile(uintptr(fd), unsafePath), nil
		}
	}
	return nil, &os.PathError{Op: "openat2", Path: unsafePath, Err: err}
}

// Directory opens a directory of a container, and makes it and what is missing above it,
// for an owner; nil: this process's user. A symbolic link in the image, say /nix to
// /etc, leads to a place in the image. It may lead to a mount, but nothing is made
// there: an image could have the hook write in any directory of the host that its user
// mounts.
func Directory(root *os.File, path string, owner *Owner) (*os.File, error) {
	target, err := Open(root, path)
	if errors.Is(err, os.ErrNotExist) {
		target, err = mkdirAll(root, path, owner, unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(err, unix.ELOOP) {
			target, err = mkdirAll(root, path, owner, unix.RESOLVE_NO_XDEV)
		}
		if errors.Is(err, unix.EXDEV) {
			err = errors.New("a symbolic link in the image leads to a mount that has no such directory")
		}
	}
	if err != nil {
		return nil, err
	}
	if st, err := target.Stat(); err != nil || !st.IsDir() {
		target.Close()
		return nil, errors.Join(errors.New("not a directory"), err)
	}
	return target, nil
}

// mkdirAll makes a directory and what is missing above it, in the root, and
// opens it. Each component is found and made by descriptor.
func mkdirAll(root *os.File, path string, owner *Owner, resolve uint64) (*os.File, error) {
	dir, err := OpenResolving(root, "/", resolve)
	if err != nil {
		return nil, err
	}
	done := ""
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		done += "/" + name
		next, err := OpenResolving(root, done, resolve)
		if errors.Is(err, os.ErrNotExist) {
			err = unix.Mkdirat(int(dir.Fd()), name, 0o755)
			// The directory that another container makes in the same volume meanwhile is
			// as good.
			if errors.Is(err, unix.EEXIST) {
				next, err = OpenResolving(root, done, resolve)
				if errors.Is(err, os.ErrNotExist) && isSymlink(dir, name) {
					err = fmt.Errorf("%s is a symbolic link in the image that leads nowhere", done)
				}
			} else if err != nil {
				err = &os.PathError{Op: "mkdirat", Path: done, Err: err}
			} else if next, err = OpenResolving(root, done, resolve); err == nil && owner != nil {
				err = give(root, next, done, *owner)
			}
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

func isSymlink(dir *os.File, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// give makes a directory that was just made the owner's, if it is on the root's own
// mount. In a volume somebody else may have put another in its place.
func give(root, dir *os.File, path string, owner Owner) error {
	own, err := OpenResolving(root, path, unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.Close()
	a, err := own.Stat()
	if err != nil {
		return err
	}
	if b, err := dir.Stat(); err != nil || !os.SameFile(a, b) {
		return err
	}
	if err := unix.Fchownat(int(own.Fd()), "", owner.UID, owner.GID, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "fchownat", Path: path, Err: err}
	}
	return nil
}

// ErrTooMany says that a directory has more names than are read.
var ErrTooMany = errors.New("the directory has too many names")

// Names returns the names in an open directory, without `.` and `..`, in no order. The
// directory may be open with O_PATH. One with some more names than most is
// ErrTooMany: a container's can have any number.
func Names(dir, most int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, os.NewSyscallError("getdents64", err)
		}
		if n <= 0 {
			return names, nil
		}
		if _, _, names = unix.ParseDirent(buf[:n], -1, names); len(names) > most {
			return nil, ErrTooMany
		}
	}
}
