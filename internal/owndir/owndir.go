// SPDX-License-Identifier: Apache-2.0

// Package owndir is a directory that only this user can change. It has the methods of
// os.Root. A container's start uses few of them, so those ask the kernel by path, with the
// fewest system calls, and the os.Root is opened when another one is called.
package owndir

import (
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/nopoll"
)

// Dir is a directory. Its methods may be called by several goroutines at once.
type Dir struct {
	path string
	open func() (*os.Root, error)
	root *os.Root // nil: not open yet
}

// At returns the directory with this absolute path. Nobody but this user may be able to
// change it, or to put another one in its place.
func At(path string) *Dir {
	d := &Dir{path: path}
	d.open = sync.OnceValues(func() (_ *os.Root, err error) {
		d.root, err = os.OpenRoot(path)
		return d.root, err
	})
	return d
}

// Name returns the path.
func (d *Dir) Name() string { return d.path }

// Close closes the directory. Call no other method at the same time or afterwards.
func (d *Dir) Close() {
	if d.root != nil {
		d.root.Close()
	}
}

// Lstat is os.Lstat of a name in the directory.
func (d *Dir) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(d.path + "/" + name) }

// ReadFile reads a file in the directory, and follows no symbolic link.
func (d *Dir) ReadFile(name string) ([]byte, error) {
	return nopoll.ReadFile(d.path+"/"+name, unix.O_NOFOLLOW)
}

// Readlink is os.Readlink of a name in the directory.
func (d *Dir) Readlink(name string) (string, error) { return os.Readlink(d.path + "/" + name) }

// Names returns the names in the directory.
func (d *Dir) Names() ([]string, error) { return nopoll.Names(d.path) }

// Open is os.Root's.
func (d *Dir) Open(name string) (*os.File, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	return root.Open(name)
}

// OpenFile is os.Root's.
func (d *Dir) OpenFile(name string, flag int, mode fs.FileMode) (*os.File, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	return root.OpenFile(name, flag, mode)
}

// OpenRoot is os.Root's.
func (d *Dir) OpenRoot(name string) (*os.Root, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	return root.OpenRoot(name)
}

// Mkdir is os.Root's.
func (d *Dir) Mkdir(name string, mode fs.FileMode) error {
	return d.with(func(root *os.Root) error { return root.Mkdir(name, mode) })
}

// Rename is os.Root's.
func (d *Dir) Rename(from, to string) error {
	return d.with(func(root *os.Root) error { return root.Rename(from, to) })
}

// Remove is os.Root's.
func (d *Dir) Remove(name string) error {
	return d.with(func(root *os.Root) error { return root.Remove(name) })
}

// RemoveAll is os.Root's.
func (d *Dir) RemoveAll(name string) error {
	return d.with(func(root *os.Root) error { return root.RemoveAll(name) })
}

// Chtimes is os.Root's.
func (d *Dir) Chtimes(name string, accessed, modified time.Time) error {
	return d.with(func(root *os.Root) error { return root.Chtimes(name, accessed, modified) })
}

func (d *Dir) with(f func(*os.Root) error) error {
	root, err := d.open()
	if err != nil {
		return err
	}
	return f(root)
}
