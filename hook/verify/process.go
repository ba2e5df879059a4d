// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/proc"
)

// process is a container's first process, by descriptor: what is read by it is of no
// later process with the same number.
type process struct {
	pid           int
	dir           *os.File // in /proc
	mounts        *os.File // its mount namespace
	pidNamespace  os.FileInfo
	isOfHost      bool // the mount namespace is this process's own
	procDirectory *os.File
}

var errEnded = errors.New("its process has ended")

// openProcess opens a process that started at a time; 0: whenever it did.
func openProcess(pid int, start uint64) (_ *process, Err error) {
	p := &process{pid: pid}
	defer func() {
		if Err != nil {
			p.close()
		}
		if proc.IsGone(Err) {
			Err = fmt.Errorf("process %d: %w", pid, errEnded)
		}
	}()
	var err error
	// For use in another mount namespace, where /proc is another or none.
	if p.procDirectory, err = os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	name := "/proc/" + strconv.Itoa(pid)
	if p.dir, err = os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	if err := p.check(start); err != nil {
		return nil, err
	}
	namespace := name + "/ns/mnt"
	fd, err := unix.Openat(int(p.dir.Fd()), "ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: namespace, Err: err}
	}
	p.mounts = os.NewFile(uintptr(fd), namespace)
	its, err := p.mounts.Stat()
	if err != nil {
		return nil, err
	}
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	p.isOfHost = os.SameFile(own, its)
	fd, err = unix.Openat(int(p.dir.Fd()), "ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name + "/ns/pid", Err: err}
	}
	pids := os.NewFile(uintptr(fd), name+"/ns/pid")
	defer pids.Close()
	p.pidNamespace, err = pids.Stat()
	return p, err
}

// check fails where the process has ended, or is not the one that started at a time.
func (p *process) check(start uint64) error {
	now, err := proc.StartTimeAt(int(p.dir.Fd()), p.pid)
	if err == nil && start != 0 && now != start {
		err = errEnded
	}
	if proc.IsGone(err) || errors.Is(err, errEnded) {
		return fmt.Errorf("process %d: %w", p.pid, errEnded)
	}
	return err
}

// isGVisors tells whether the process is a part of gVisor, which has the container's files
// open and serves them: what is mounted there is not what the container sees. A container
// whose program has that name says so too, and is unknown then.
func (p *process) isGVisors() bool {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(p.dir.Fd()), "exe", buf)
	return err == nil && strings.HasPrefix(path.Base(string(buf[:n])), "runsc")
}

// threadMounts is the mountinfo of the calling thread's mount namespace.
func (p *process) threadMounts() ([]byte, error) {
	return proc.ReadMountinfoAt(int(p.procDirectory.Fd()), "thread-self/mountinfo")
}

// fileName is the name of an open file in the mount namespace of the calling thread.
func (p *process) fileName(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(p.procDirectory.Fd()), "thread-self/fd/"+strconv.Itoa(int(f.Fd())), buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

func (p *process) close() {
	for _, f := range []*os.File{p.dir, p.mounts, p.procDirectory} {
		if f != nil {
			f.Close()
		}
	}
}
