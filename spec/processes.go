// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A mount of /proc shows the processes of a PID namespace, and by a process's root what
// that sees (proc_pid_root(5)). A container may have that of its own PID namespace,
// which its runtime mounts. Since Linux 5.8 each is a file system of its own, so that
// its device tells nothing.

// showsProcesses tells whether a mount shows processes by which the store could be seen:
// any, but those of the container's own PID namespace.
func (h *Host) showsProcesses(m mountPoint) bool {
	if m.kind != "proc" || h.ProcessesAllowed || !hasProcesses(m.path) {
		return false
	}
	return h.OwnPIDs == nil || m.path != "/" || !showsPIDs(m, h.OwnPIDs)
}

// hasProcesses tells whether a directory of /proc has processes in it or below.
func hasProcesses(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return first == "" || isNumber(first) || first == "self" || first == "thread-self"
}

// showsPIDs tells whether a mount of /proc is of a PID namespace: the first process there
// is in it, and each PID namespace has one.
func showsPIDs(m mountPoint, namespace os.FileInfo) bool {
	fd, err := openMount(m)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// By the mount itself: in another container's mount namespace, /proc does not know this
	// process.
	var first unix.Stat_t
	if err := unix.Fstatat(fd, "1/ns/pid", &first, 0); err != nil {
		return false
	}
	own, ok := namespace.Sys().(*syscall.Stat_t)
	return ok && first.Dev == own.Dev && first.Ino == own.Ino
}
