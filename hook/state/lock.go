// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// idLock is the lock of one container ID, held until release. It is an open file
// description of the file `locks`, with a lock on one byte (fcntl(2), F_OFD_SETLK, Linux
// 3.15). The offset of the byte is a hash of the ID, so nothing is made per ID. Two IDs
// with the same hash wait for each other, which is harmless because the lock is held for
// a few system calls only.
//
// While a process holds it, no other process changes what the runtime directory has for
// this ID: its record, its GC roots and its use marks. Never hold it during anything that
// can wait for other processes, and never while touching a container's file systems.
type idLock int

// LockTimeout bounds every wait for the lock of a container ID.
const LockTimeout = 5 * time.Second

// errLocked says that another process has the lock.
var errLocked = errors.New("another process has the lock of this container ID")

// lockOffset is the offset of an ID's byte in the file.
func lockOffset(id string) int64 {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(id))
	return int64(hash.Sum64() >> 2)
}

func (d *Dir) locksFile() string { return d.path + "/locks" }

// tryLockID takes the lock of an ID, or fails at once with errLocked. Each call opens its
// own file description, so it excludes other goroutines too.
func (d *Dir) tryLockID(id string) (idLock, error) {
	path := d.locksFile()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return noLock, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := setLock(fd, id); err != nil {
		unix.Close(fd)
		return noLock, err
	}
	return idLock(fd), nil
}

func setLock(fd int, id string) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: lockOffset(id), Len: 1}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return errLocked
	}
	if err != nil {
		return fmt.Errorf("locking the container ID: %w", os.NewSyscallError("fcntl", err))
	}
	return nil
}

// lockID waits for the lock of an ID, at most for LockTimeout.
func (d *Dir) lockID(ctx context.Context, id string) (idLock, error) {
	if lock, err := d.tryLockID(id); !errors.Is(err, errLocked) {
		return lock, err // without a timer, which would wake another thread
	}
	ctx, cancel := context.WithTimeout(ctx, LockTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		lock, err := d.tryLockID(id)
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return noLock, fmt.Errorf("waiting for the lock of the container ID in %s: %w%s; "+
				"let that process continue, or kill it",
				d.locksFile(), ctx.Err(), d.holder(id))
		case <-time.After(pause):
		}
	}
}

// noLock stands for a lock that is not needed.
const noLock idLock = -1

func (l idLock) release() {
	if l != noLock {
		unix.Close(int(l))
	}
}

// holder names the process that holds the lock of an ID, for a message. /proc/locks does
// not name the process of such a lock; /proc/PID/fdinfo does. Only processes of this
// program take the lock.
func (d *Dir) holder(id string) string {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	locked := fmt.Sprintf(" %d %[1]d", lockOffset(id)) // first and last byte
	for _, p := range processes {
		comm, err := os.ReadFile("/proc/" + p.Name() + "/comm")
		if err != nil || !strings.HasPrefix(string(comm), "nix-closure") {
			continue
		}
		infos, err := os.ReadDir("/proc/" + p.Name() + "/fdinfo")
		if err != nil {
			continue
		}
		for _, fd := range infos {
			// lock: 1: OFDLCK  ADVISORY  WRITE -1 00:1a:7 5 5
			info, err := os.ReadFile("/proc/" + p.Name() + "/fdinfo/" + fd.Name())
			if err != nil {
				continue // closed meanwhile
			}
			for line := range bytes.Lines(info) {
				text := string(line)
				if strings.HasPrefix(text, "lock:") && strings.Contains(text, locked) {
					return fmt.Sprintf("; process %s (%s) has it", p.Name(), strings.TrimSpace(string(comm)))
				}
			}
		}
	}
	return ""
}
