// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// reexecInHostMountNamespace starts this program anew in the mount namespace of the host's first
// process, where it must be installed under the same name. In that of a container
// the sources of mounts are not what they are for the engine.
//
// It needs the host's PID namespace, and CAP_SYS_ADMIN, CAP_SYS_CHROOT and
// CAP_SYS_PTRACE (setns(2)).
func reexecInHostMountNamespace() error {
	if os.Getpid() == 1 {
		return errors.New("this process is the first of its PID namespace, so that the host's is not in sight; give the pod the host's PID namespace (hostPID: true)")
	}
	const host = "/proc/1/ns/mnt"
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if its, err := os.Stat(host); err != nil || os.SameFile(own, its) {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	fd, err := unix.Open(host, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: host, Err: err}
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := unix.Exec(self, slices.Clone(os.Args), os.Environ()); err != nil {
		return &os.PathError{Op: "exec", Path: self, Err: err}
	}
	return nil
}
