// SPDX-License-Identifier: Apache-2.0

// Package rootfs reads directories of a container by descriptor.
package rootfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooMany says that a directory has more names than are read.
var ErrTooMany = errors.New("the directory has too many names")

// Names returns the names in an open directory, without `.` and `..`, in no order. The
// directory may be open as a place only (O_PATH). One with some more names than most is
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
