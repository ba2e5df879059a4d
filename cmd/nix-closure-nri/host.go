// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
)

// reexecInHostMountNamespace starts this program again in the mount namespace of the host's
// first process. The program must be installed there under the same name. In a container's
// mount namespace, the sources of mounts are not those that the engine sees.
//
// It needs the host's PID namespace, and CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE
// (setns(2)).
func reexecInHostMountNamespace() error {
	if os.Getpid() == 1 {
		return errors.New("this process is the first of its PID namespace, so that the host's is not in sight; " +
			"give the pod the host's PID namespace (hostPID: true)")
	}
	if same, err := mntns.Same("self", "1"); err != nil || same {
		return err
	}
	host, err := mntns.Open("1")
	if err != nil {
		return err
	}
	if err := mntns.Join(host); err != nil {
		return err
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
