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

// checkDescriptors refuses a container that is handed a descriptor which shows the host:
// a directory that leads to the host's root directory by `..`, whatever the process's own
// root is, a file of Nix's state or a guarded disk.
//
// Which are handed on, the runtime's command line and environment say. Where they are
// not understood, each of the container's first process counts that has no
// close-on-exec: runc and crun leave those that an engine has open without it until
// after the hooks, and close them then.
func (c *containerMounts) checkDescriptors() error {
	if c.state.Pid <= 0 {
		return nil // gVisor: the container's descriptors are in another process, and not of this kernel
	}
	handed, known := handedOn(os.Getppid(), c.state.ID)
	if known && handed == 0 {
		return nil
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
	names, err := rootfs.Names(dir, mostHanded)
	if err != nil {
		return fmt.Errorf("%s/fd: %w", path, err)
	}
	for _, name := range names {
		if n, err := strconv.Atoi(name); known && err == nil && (n < firstHanded || n >= firstHanded+handed) {
			continue
		}
		err := c.checkDescriptor(process, dir, name)
		if err != nil && !errors.Is(err, unix.ENOENT) { // closed meanwhile
			return fmt.Errorf("file descriptor %s of the container's process: %w", name, err)
		}
	}
	return nil
}

// firstHanded is the first descriptor that can be handed on.
const firstHanded = 3

// mostHanded bounds a number of descriptors.
const mostHanded = 1 << 20

// handedOn tells how many descriptors a runtime hands on to a container that it makes, as
// runc and crun read --preserve-fds and LISTEN_FDS.
func handedOn(runtime int, id string) (count int, known bool) {
	process := strconv.Itoa(runtime)
	_, call, err := readCommandLine(process)
	if err != nil || call.Doubt != nil || !call.Makes || call.ID != id {
		return 0, false
	}
	environment, err := readEnvironment(process)
	if err != nil {
		return 0, false
	}
	numbers := []string{call.PreserveFDs}
	for _, variable := range environment {
		if n, ok := strings.CutPrefix(variable, "LISTEN_FDS="); ok {
			numbers = append(numbers, n)
		}
	}
	for _, number := range numbers {
		if number == "" {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > mostHanded {
			return 0, false
		}
		count += n
	}
	return count, true
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
	if shows == "" && !c.mounts.Inside(c.realRoot, fdinfo(info, "mnt_id")) { // those are looked at with the others
		shows, err = c.leadsTo(dir, name)
	}
	if shows == "" || err != nil {
		return err
	}
	return fmt.Errorf("is %s of the host, and leads to the store; "+
		"close it, or do not hand it on (--preserve-fds)", shows)
}

// directoriesDeep bounds how far a directory may be from the root of its mounts.
const directoriesDeep = 1000

// leadsTo returns what a directory leads to by `..` that must not show, or nothing. That
// of a mount which is attached nowhere, as crun has those that it will attach, leads
// nowhere.
func (c *containerMounts) leadsTo(dir int, name string) (string, error) {
	at, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("openat", err)
	}
	defer func() { unix.Close(at) }()
	var below unix.Stat_t
	for range directoriesDeep {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return "", os.NewSyscallError("fstat", err)
		}
		shows, err := c.host.ShowsFile(&st)
		if err != nil || shows != "" || st.Dev == below.Dev && st.Ino == below.Ino {
			return shows, err
		}
		below = st
		above, err := unix.Openat(at, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", os.NewSyscallError("openat", err)
		}
		unix.Close(at)
		at = above
	}
	return "", fmt.Errorf("is a directory more than %d directories deep", directoriesDeep)
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
