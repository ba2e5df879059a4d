// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
)

// maxBwrapArguments is bubblewrap's own limit, of all its arguments together.
const maxBwrapArguments = 9000

// writeBwrap writes the arguments of an empty store directory with the store paths of
// the closure in it, which is read-only at the end. bwrap follows a symlink that it
// mounts, so one is made instead.
func (e exported) writeBwrap(w *bufio.Writer) error {
	arguments := []string{"--tmpfs", e.store.Dir}
	if e.view != "" {
		arguments = []string{"--ro-bind", e.view, e.store.Dir}
	} else {
		for _, name := range e.closure.Names {
			path := e.store.Path(name)
			mode, err := e.look(name)
			if err != nil {
				return err
			}
			if mode&fs.ModeSymlink == 0 {
				arguments = append(arguments, "--ro-bind", path, path)
				continue
			}
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			arguments = append(arguments, "--symlink", target, path)
		}
		arguments = append(arguments, "--remount-ro", e.store.Dir)
	}
	// The caller adds at least a program.
	if len(arguments) >= maxBwrapArguments {
		return fmt.Errorf("%d store paths are %d arguments, and bwrap takes at most %d; "+
			"give it one mount with --view", len(e.closure.Names), len(arguments), maxBwrapArguments)
	}
	for _, a := range arguments {
		// No path and no target of a symlink has a NUL: the kernel takes none.
		if _, err := w.WriteString(a + "\x00"); err != nil {
			return err
		}
	}
	return nil
}
