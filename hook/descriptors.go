// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// checkDescriptors refuses a container whose first process has a descriptor that shows
// the host: a directory outside of the container's mounts (by `..` it leads to all of
// the host, whatever the process's root is), a file of Nix's state or a guarded disk.
//
// Only descriptors without close-on-exec count. runc and crun leave an engine's
// descriptors without it until after the hooks, those that --preserve-fds hands on and
// those that are closed in the end, and nothing tells one from the other here. Their own
// have it, or are no such files, or are in the container's root.
func (c *containerMounts) checkDescriptors() error {
	if c.state.Pid <= 0 {
		return nil // gVisor: the container's descriptors are in another process, and not of this kernel
	}
	path := "/proc/" + strconv.Itoa(c.state.Pid)
	process, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(process)
	dir, err := unix.Openat(process, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path + "/fd", Err: err}
	}
	defer unix.Close(dir)
	names, err := rootfs.Names(dir)
	if err != nil {
		return fmt.Errorf("%s/fd: %w", path, err)
	}
	for _, name := range names {
		err := c.checkDescriptor(process, dir, name)
		if err != nil && !errors.Is(err, unix.ENOENT) { // closed meanwhile
			return fmt.Errorf("file descriptor %s of the container's process: %w", name, err)
		}
	}
	return nil
}

// checkDescriptor looks at one descriptor. dir is the open directory fd of the process.
func (c *containerMounts) checkDescriptor(process, dir int, name string) error {
	var first [1]byte
	if _, err := unix.Readlinkat(dir, name, first[:]); err != nil {
		return os.NewSyscallError("readlinkat", err)
	}
	if first[0] != '/' {
		return nil // a pipe, a socket that has no name, or the like
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, 0); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	shows, err := c.host.ShowsFile(&st)
	if err != nil || shows == "" && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	info, err := proc.ReadFileAt(process, "fdinfo/"+name)
	if err != nil {
		return err
	}
	flags, err := strconv.ParseUint(fdinfo(info, "flags"), 8, 64)
	if err != nil {
		return fmt.Errorf("fdinfo is not understood: %w", err)
	}
	if flags&unix.O_CLOEXEC != 0 {
		return nil
	}
	if shows == "" {
		if c.mounts.Inside(c.realRoot, fdinfo(info, "mnt_id")) {
			return nil // what that mount shows is looked at with the others
		}
		shows = "a directory that is on none of the container's mounts"
	}
	return fmt.Errorf("is %s of the host, and leads to the store; close it, or do not hand it on (--preserve-fds)", shows)
}

// fdinfo returns a field of a file in /proc/PID/fdinfo.
func fdinfo(text []byte, name string) string {
	for line := range bytes.Lines(text) {
		if key, value, ok := strings.Cut(string(line), ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
