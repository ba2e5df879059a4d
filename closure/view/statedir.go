// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// stateDir is the Nix state directory of one container, in memory, with the registration.
type stateDir struct{ tmpfs *os.File }

// reserved is the size, in bytes, of the file that Nix reserves so that it can collect
// garbage on a full disk. Nix writes the file if there is none of this size, and accepts a
// sparse one.
const reserved = 8 << 20

// NewStateDir makes a state directory for Nix in a container. It has a copy of the database
// db, and what Nix needs beside it and cannot always make. All of it belongs to owner, who
// may write size bytes besides the database. Of the options, only the label counts.
func NewStateDir(store closure.Store, db *os.File, o Options, size int64, owner Owner) (_ View, Err error) {
	st, err := db.Stat()
	if err != nil {
		return nil, err
	}
	tmpfs, err := newSizedTmpfs(size+st.Size(), 0, 0o755, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if Err != nil {
			tmpfs.Close()
		}
	}()
	dir := stateDirMaker{int(tmpfs.Fd()), owner}
	for _, name := range []string{
		"", "db", "gcroots", "gcroots/auto", "gcroots/per-user", "profiles", "profiles/per-user",
		"temproots", "userpool",
	} {
		if err := dir.mkdir(name); err != nil {
			return nil, fmt.Errorf("making %s: %w", name, err)
		}
	}
	if err := dir.symlink(store.StateDir+"/profiles", "gcroots/profiles"); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name    string
		mode    uint32
		content func(*os.File) error
	}{
		{"db/db.sqlite", 0o644, func(f *os.File) error {
			_, err := io.Copy(f, io.NewSectionReader(db, 0, st.Size()))
			return err
		}},
		{"db/schema", 0o644, func(f *os.File) error {
			_, err := f.WriteString(closure.RegistrationSchema)
			return err
		}},
		{"db/big-lock", 0o600, func(*os.File) error { return nil }},
		{"db/reserved", 0o600, func(f *os.File) error { return f.Truncate(reserved) }},
		{"gc.lock", 0o600, func(*os.File) error { return nil }},
	} {
		if err := dir.file(f.name, f.mode, f.content); err != nil {
			return nil, fmt.Errorf("making %s: %w", f.name, err)
		}
	}
	return &stateDir{tmpfs}, nil
}

// Attach attaches the state directory.
func (s *stateDir) Attach(target *os.File) error {
	if err := moveMount(int(s.tmpfs.Fd()), target, ""); err != nil {
		return err
	}
	return setPrivate(s.tmpfs)
}

// Shows compares dir with the root of the tmpfs.
func (s *stateDir) Shows(dir *os.File) (bool, error) { return samefile.Open(dir, s.tmpfs) }

// Check has nothing to check: this process made the files.
func (s *stateDir) Check(closure.Store, closure.Closure) error { return nil }

// Close releases the tmpfs.
func (s *stateDir) Close() error { return s.tmpfs.Close() }

// stateDirMaker fills a directory for its owner.
type stateDirMaker struct {
	fd    int
	owner Owner
}

func (d stateDirMaker) mkdir(name string) error {
	if name != "" {
		if err := unix.Mkdirat(d.fd, name, 0o755); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	}
	return d.chown(name)
}

func (d stateDirMaker) symlink(target, name string) error {
	if err := unix.Symlinkat(target, d.fd, name); err != nil {
		return os.NewSyscallError("symlinkat", err)
	}
	return d.chown(name)
}

func (d stateDirMaker) file(name string, mode uint32, content func(*os.File) error) error {
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := content(f); err != nil {
		return err
	}
	return d.chown(name)
}

func (d stateDirMaker) chown(name string) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH
	if err := unix.Fchownat(d.fd, name, d.owner.UID, d.owner.GID, flags); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	return nil
}
