// SPDX-License-Identifier: Apache-2.0

// Package mntns joins mount namespaces of other processes.
package mntns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/nopoll"
)

// path returns the mount namespace of a process: a number, `self` or `thread-self`.
func path(process string) string { return "/proc/" + process + "/ns/mnt" }

// Same reports whether two processes are in the same mount namespace.
func Same(process, other string) (bool, error) {
	a, err := os.Stat(path(process))
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path(other))
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// Open opens the mount namespace of a process.
func Open(process string) (*os.File, error) {
	return nopoll.Open(path(process), unix.O_RDONLY, 0)
}

// Join puts the calling goroutine's thread into a mount namespace (setns(2)), and locks the
// goroutine to that thread. It needs CAP_SYS_ADMIN and CAP_SYS_CHROOT in this process's user
// namespace, and CAP_SYS_ADMIN in the one that owns the mount namespace.
func Join(namespace *os.File) error {
	runtime.LockOSThread()
	// setns(2) refuses a thread that shares its root directory with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return setns(namespace)
}

func setns(namespace *os.File) error {
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("joining the mount namespace of %s: %w", namespace.Name(), err)
	}
	return nil
}

// Do calls f in a mount namespace, and returns to the one from before. If it cannot return,
// that is an error. The calling goroutine stays locked to its thread: a thread of its own
// would have to be made and waited for at each start.
func Do(namespace *os.File, f func() error) (Err error) {
	runtime.LockOSThread()
	home, err := Open("thread-self")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := Join(namespace); err != nil {
		return err
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS); err != nil {
			Err = errors.Join(Err, fmt.Errorf("returning to the host's mount namespace: %w", err))
		}
	}()
	return f()
}

// DoInProcess is Do for the mount namespace of a process.
func DoInProcess(pid int, f func() error) error {
	namespace, err := Open(strconv.Itoa(pid))
	if err != nil {
		return err
	}
	defer namespace.Close()
	return Do(namespace, f)
}
