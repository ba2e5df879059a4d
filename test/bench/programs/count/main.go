// SPDX-License-Identifier: Apache-2.0

// Command count runs in a container and prints two numbers: the entries of
// /nix/store, and how many of them hold something. The second is smaller where
// a mount point or an entry of an overlay was made and nothing is behind it.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const store = "/nix/store"

func main() {
	entries, err := os.ReadDir(store)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	filled := 0
	for _, e := range entries {
		if holdsSomething(e) {
			filled++
		}
	}
	fmt.Println(len(entries), filled)
}

func holdsSomething(e fs.DirEntry) bool {
	path := filepath.Join(store, e.Name())
	switch e.Type() {
	case fs.ModeDir:
		below, err := os.ReadDir(path)
		return err == nil && len(below) > 0
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		return err == nil && target != ""
	default:
		content, err := os.ReadFile(path)
		return err == nil && len(content) > 0
	}
}
