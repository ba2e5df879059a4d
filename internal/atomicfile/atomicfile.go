// SPDX-License-Identifier: Apache-2.0

// Package atomicfile writes files that a reader sees complete or not at all. The files are
// not synced: nothing in the runtime directory outlives a boot, and a config.json is
// written anew with its container.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// Write writes a file of mode 0600 in a directory that other processes write to and sweep:
// see CreateTemporary.
func Write(dir *owndir.Dir, name string, data []byte) (Err error) {
	temporary := "." + name + "." + rand.Text()
	f, err := CreateTemporary(dir, temporary)
	if err != nil {
		return err
	}
	defer f.Close() // closing ends the lock, after the file has its name
	defer func() {
		if Err != nil {
			_ = dir.Remove(temporary)
		}
	}()
	if err := write(int(f.Fd()), temporary, data); err != nil {
		return err
	}
	return dir.Rename(temporary, name)
}

// WriteBy writes a file of mode 0600. It writes it under the caller's temporary name in the
// same directory first. No other process may write that name at the same time, and no other
// user may be able to change it. WriteBy does without package os, whose files register with
// the poller: that is six more system calls for each file.
func WriteBy(path, temporary string, data []byte) error {
	return replace(path, temporary, unix.O_TRUNC|unix.O_NOFOLLOW, data, nil)
}

// Replace replaces a file. The new file has the owner and mode of the old one. If path is a
// symbolic link, the link is replaced and not its target, which may belong to another
// container too.
func Replace(path string, data []byte) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return replace(path, besides(path), unix.O_EXCL, data, &st)
}

// WriteReadable writes a file with mode 0644, for others to read.
func WriteReadable(path string, data []byte) error {
	as := unix.Stat_t{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), Mode: 0o644}
	return replace(path, besides(path), unix.O_EXCL, data, &as)
}

// besides is a name in the same directory that nobody else has.
func besides(path string) string {
	slash := strings.LastIndexByte(path, '/')
	return path[:slash+1] + "." + path[slash+1:] + "." + rand.Text()
}

// replace writes a temporary file and renames it to path. The file gets the owner and mode
// in as; nil: this process's owner, and 0600.
func replace(path, temporary string, flags int, data []byte, as *unix.Stat_t) (Err error) {
	fd, err := unix.Open(temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: temporary, Err: err}
	}
	defer func() {
		if Err != nil {
			_ = unix.Unlink(temporary)
		}
	}()
	err = write(fd, temporary, data)
	if err == nil && as != nil {
		err = own(fd, temporary, as)
	}
	if closeErr := unix.Close(fd); closeErr != nil {
		err = errors.Join(err, &os.PathError{Op: "close", Path: temporary, Err: closeErr})
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat(unix.AT_FDCWD, temporary, unix.AT_FDCWD, path); err != nil {
		return &os.LinkError{Op: "rename", Old: temporary, New: path, Err: err}
	}
	return nil
}

// own gives an open file the owner and mode of another.
func own(fd int, name string, as *unix.Stat_t) error {
	if err := unix.Fchown(fd, int(as.Uid), int(as.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: name, Err: err}
	}
	if err := unix.Fchmod(fd, as.Mode&0o777); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// write writes all of data to an open file.
func write(fd int, name string, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ENOSPC
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: name, Err: err}
		}
		data = data[n:]
	}
	return nil
}

// CreateTemporary makes a file that the caller will rename. A lock (flock(2)) keeps sweeps
// from it while it is open. No other process has its name.
func CreateTemporary(dir *owndir.Dir, name string) (*os.File, error) {
	for range 100 {
		f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		locked := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
		if locked && samefile.At(f, dir.Name()+"/"+name) {
			return f, nil
		}
		// A sweep came before the lock, and is removing the file.
		f.Close()
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("%s/%s: cannot be locked", dir.Name(), name)
}

// LockAbandoned takes the lock of a file that CreateTemporary made, or whose name is that
// name with a hyphen and more, if nobody holds it: then its maker was killed. Until
// release, nobody makes the file again. Remove it before release.
func LockAbandoned(dir *owndir.Dir, name string) (release func(), ok bool) {
	dot := strings.LastIndexByte(name, '.') + 1
	random, _, _ := strings.Cut(name[dot:], "-")
	f, err := dir.Open(name[:dot] + random)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, true // it is made first and removed last
	}
	if err != nil {
		return nil, false
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil, false
	}
	return func() { f.Close() }, true
}
