// SPDX-License-Identifier: Apache-2.0

// Package samefile compares files by device and inode, whatever their names are.
package samefile

import "os"

// Open reports whether two open files are the same file.
func Open(a, b *os.File) (bool, error) {
	one, err := a.Stat()
	if err != nil {
		return false, err
	}
	other, err := b.Stat()
	return err == nil && os.SameFile(one, other), err
}

// At reports whether a path still is the path of an open file. It does not follow a link.
func At(f *os.File, path string) bool {
	there, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(there, open)
}

// Paths reports whether two paths lead to the same file. If one of them does not exist, it
// compares the paths.
func Paths(a, b string) bool {
	one, err := os.Stat(a)
	other, err2 := os.Stat(b)
	if err != nil || err2 != nil {
		return a == b
	}
	return os.SameFile(one, other)
}
