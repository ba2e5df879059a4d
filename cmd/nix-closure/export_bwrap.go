// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
)

// bubblewrap takes so many arguments, those of its command line with them, of which
// there are at least three: --args, the descriptor and a program.
const (
	maxBwrapArguments    = 9000
	bwrapCommandArgument = 3
)

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
	if len(arguments)+bwrapCommandArgument > maxBwrapArguments {
		return fmt.Errorf("%d store paths are %d arguments, and bwrap takes at most %d with its command line; "+
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
