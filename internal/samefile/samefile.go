// SPDX-License-Identifier: Apache-2.0

// Package samefile tells whether two names or descriptors are of one file: by device and
// inode, whatever the names.
package samefile

import "os"

// Open tells whether two open files are the same.
func Open(a, b *os.File) (bool, error) {
	one, err := a.Stat()
	if err != nil {
		return false, err
	}
	other, err := b.Stat()
	return err == nil && os.SameFile(one, other), err
}

// At tells whether a path is still that of an open file. A link is not followed.
func At(f *os.File, path string) bool {
	there, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(there, open)
}

// Paths tells whether two paths are of one file, or are the same where there is none any
// more.
func Paths(a, b string) bool {
	one, err := os.Stat(a)
	other, err2 := os.Stat(b)
	if err != nil || err2 != nil {
		return a == b
	}
	return os.SameFile(one, other)
}
