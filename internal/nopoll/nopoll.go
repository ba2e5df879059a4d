// SPDX-License-Identifier: Apache-2.0

// Package nopoll opens and reads files without asking the runtime's poller first, as
// package os does at the cost of four system calls: the hook is on every container's start
// path.
package nopoll

import (
	"os"

	"golang.org/x/sys/unix"
)

// Open is os.OpenFile for a file that never blocks for long: a regular file or a directory.
// It does not need O_CLOEXEC. O_NONBLOCK is for the opening alone.
func Open(path string, flags int, mode uint32) (*os.File, error) {
	fd, err := open(path, flags, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == nil && flags&unix.O_NONBLOCK != 0 {
			if err = unix.SetNonblock(fd, false); err != nil {
				unix.Close(fd)
				return -1, os.NewSyscallError("fcntl", err)
			}
		}
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// firstBuffer is the space for a file's first bytes: most files that a start reads are smaller.
const firstBuffer = 32 << 10

// ReadFile is os.ReadFile. flags are further ones for opening, such as unix.O_NOFOLLOW.
func ReadFile(path string, flags int) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY|flags, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return Read(fd, path, 1<<62)
}

// Read reads an open file to its end, or to one byte after most.
func Read(fd int, path string, most int) ([]byte, error) {
	text := make([]byte, 0, firstBuffer)
	for len(text) <= most {
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			break
		}
		text = text[:len(text)+n]
	}
	return text, nil
}

// Names returns the names in a directory, in no order.
func Names(path string) ([]string, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return NamesIn(fd, path)
}

// NamesIn is Names of an open directory, from its beginning if nothing was read of it.
func NamesIn(fd int, path string) ([]string, error) {
	var names []string
	buffer := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(fd, buffer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getdents64", Path: path, Err: err}
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
}
