// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A mount of /proc shows the processes of a PID namespace, and, by /proc/PID/root, what
// those processes see (proc_pid_root(5)). A container may have the /proc of its own PID
// namespace, which its runtime mounts. Since Linux 5.8 each such mount is a file system of
// its own, so the device does not tell which it is.

// showsProcesses reports whether a mount shows processes by which the store could be seen:
// any processes but those of the container's own PID namespace.
func (h *Host) showsProcesses(m mountPoint) bool {
	if m.kind != "proc" || h.ProcessesAllowed || !hasProcesses(m.path) {
		return false
	}
	return h.OwnPIDs == nil || m.path != "/" || !showsPIDs(m, h.OwnPIDs)
}

// hasProcesses reports whether a directory of /proc has processes in it or below.
func hasProcesses(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return first == "" || isNumber(first) || first == "self" || first == "thread-self"
}

// showsPIDs reports whether a mount of /proc belongs to a PID namespace: each PID namespace
// has one first process, which is in it.
func showsPIDs(m mountPoint, namespace os.FileInfo) bool {
	fd, err := openMount(m)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// Go through the mount itself: in another container's mount namespace, /proc does not
	// know this process.
	var first unix.Stat_t
	if err := unix.Fstatat(fd, "1/ns/pid", &first, 0); err != nil {
		return false
	}
	own, ok := namespace.Sys().(*syscall.Stat_t)
	return ok && first.Dev == own.Dev && first.Ino == own.Ino
}
