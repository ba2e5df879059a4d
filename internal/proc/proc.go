// SPDX-License-Identifier: Apache-2.0

// Package proc reads what the kernel says about processes (proc(5)). It needs few system
// calls, because the hook is on every container's start path.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
)

// Dir is the directory of the processes. Tests set another.
var Dir = "/proc"

// StartTime returns the time at which a process started, in clock ticks since boot. It
// distinguishes the process from a later one with the same number. For a process that has
// ended, it returns an error for which IsGone is true, also if its parent has not waited
// for it yet.
func StartTime(pid int) (uint64, error) {
	fields, err := Fields(strconv.Itoa(pid))
	if err != nil {
		return 0, err
	}
	return startTime(pid, fields)
}

// StartTimeAt is StartTime of the process whose directory in /proc is open. It is that
// process's as long as the descriptor is, whoever has its number later.
func StartTimeAt(dir, pid int) (uint64, error) {
	text, err := ReadFileAt(dir, "stat")
	if err != nil {
		return 0, err
	}
	fields, err := parseFields("stat", text)
	if err != nil {
		return 0, err
	}
	return startTime(pid, fields)
}

func startTime(pid int, fields []string) (uint64, error) {
	// Where only the first thread has ended, the others are the process.
	if fields[0] == "X" || fields[0] == "Z" && fields[17] == "1" {
		return 0, fmt.Errorf("process %d: %w: it has ended", pid, fs.ErrNotExist)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// IsGone reports whether an error of StartTime says that the process has ended: it does not
// exist, or it ended between opening and reading.
func IsGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// AwaitEnd waits until a process has ended, at most for a time (pidfd_open(2), Linux 5.3).
func AwaitEnd(pid int, most time.Duration) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(most)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != unix.EINTR {
			return
		}
	}
}

// InitProcess returns the container's process, from inside the container's mount namespace,
// where /proc is still the host's. It is the oldest of this process's ancestors in that
// namespace. It is -1 if the ancestors cannot be seen: with another process of the
// namespace, the record would end too early.
func InitProcess() int {
	pid, process := -1, "self"
	for {
		fields, err := Fields(process)
		if err != nil {
			return -1
		}
		if fields[1] == "0" {
			return pid
		}
		process = fields[1]
		same, err := mntns.Same("self", process)
		if errors.Is(err, fs.ErrPermission) {
			// It has more privileges than this process, so it is no process of the
			// container.
			return pid
		}
		if err != nil {
			return -1
		}
		if !same {
			return pid
		}
		if pid, err = strconv.Atoi(process); err != nil {
			return -1
		}
	}
}

// Fields returns the fields of a process's stat file (proc_pid_stat(5)) from the third on:
// state is 0, ppid 1, num_threads 17, starttime 19.
func Fields(process string) ([]string, error) {
	path := Dir + "/" + process + "/stat"
	text, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseFields(path, text)
}

func parseFields(path string, text []byte) ([]string, error) {
	// The second is the program's name in parentheses, which may have anything
	// in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("%s: not understood", path)
	}
	return fields, nil
}

// ReadFile reads a small file with three system calls: a regular file, or a file of /proc
// that is smaller than a page. It does without package os, whose files register with the
// poller.
func ReadFile(path string) ([]byte, error) { return ReadFileAt(unix.AT_FDCWD, path) }

// ReadFileAt is ReadFile for a path relative to an open directory.
func ReadFileAt(dir int, path string) ([]byte, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if text = text[:len(text)+n]; n == 0 || len(text) < cap(text) {
			// A read that does not fill the buffer is the last.
			return text, nil
		}
		text = append(text, make([]byte, len(text))...)[:len(text)]
	}
}

// ReadMountinfo reads a mountinfo file, in few and large parts: the kernel makes each
// anew.
func ReadMountinfo(path string) ([]byte, error) { return ReadMountinfoAt(unix.AT_FDCWD, path) }

// ReadMountinfoAt is ReadMountinfo for a path relative to an open directory.
func ReadMountinfoAt(dir int, path string) ([]byte, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return readMountinfo(fd, path)
}

// ReadMountinfoIn reads the mounts of the calling thread's mount namespace that are in a
// directory, which must be the root of a mount. The kernel leaves out the others, and on a
// host with many containers most are others.
//
// The thread must not share its root directory with other threads (CLONE_FS). For a moment,
// the directory is its root directory. If it cannot be given its own again, that is
// ErrLost, and the thread must end.
func ReadMountinfoIn(dir int) ([]byte, error) {
	var opened [2]int
	for i, path := range []string{"/", "/proc/thread-self"} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		opened[i] = fd
	}
	err := changeRoot(dir)
	fd := -1
	if err == nil {
		fd, err = unix.Openat(opened[1], "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if back := changeRoot(opened[0]); back != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, back)
	}
	if err != nil {
		return nil, err
	}
	return readMountinfo(fd, "/proc/thread-self/mountinfo")
}

// ErrLost says that a thread has another root directory than it should.
var ErrLost = errors.New("returning from the container's root directory")

// changeRoot makes an open directory the root and working directory of the calling thread.
func changeRoot(dir int) error {
	if err := unix.Fchdir(dir); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	return os.NewSyscallError("chroot", unix.Chroot("."))
}

// readMountinfo reads and closes a mountinfo file.
func readMountinfo(fd int, path string) ([]byte, error) {
	defer unix.Close(fd)
	text := make([]byte, 0, 64<<10)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		text = slices.Grow(text[:len(text)+n], 8<<10)
	}
}

// FileName returns the name of an open file in the mount namespace of the calling thread.
func FileName(fd int) (string, error) {
	return os.Readlink("/proc/thread-self/fd/" + strconv.Itoa(fd))
}
