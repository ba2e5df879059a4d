// SPDX-License-Identifier: Apache-2.0

// Package rootfs reads directories of a container by descriptor.
package rootfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// Names returns the names in an open directory, without `.` and `..`, in no order. The
// directory may be open with O_PATH.
func Names(dir int) ([]string, error) {
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
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
