// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// Commands are the commands of mount(8) that make a bind view of a closure on a directory,
// for a shell that stops at the first error. An overlay cannot be made by commands: a
// part of it is attached, and the whole is nowhere.
func Commands(store closure.Store, c closure.Closure, dir string) (string, error) {
	storeDir, err := openStore(store)
	if err != nil {
		return "", err
	}
	defer storeDir.Close()
	dir = quote(dir)
	var b strings.Builder
	fmt.Fprintf(&b, "set -eu\nmount -t tmpfs -o mode=0555,nosuid,nodev,nr_inodes=%d nix-closure %s\n",
		2*len(c.Names)+16, dir)
	fmt.Fprintf(&b, "mount --make-private %s\n", dir)
	for _, name := range c.Names {
		st, err := statPath(storeDir, name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", store.Path(name), err)
		}
		// A store path's name has nothing that a shell would take for something else.
		from, to := quote(store.Path(name)), dir+"/"+string(name)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := readlink(int(storeDir.Fd()), string(name))
			if err != nil {
				return "", &os.PathError{Op: "readlink", Path: store.Path(name), Err: err}
			}
			fmt.Fprintf(&b, "ln -s -- %s %s\n", quote(target), to)
			continue
		case unix.S_IFDIR:
			fmt.Fprintf(&b, "mkdir %s\n", to)
		default:
			fmt.Fprintf(&b, ": >%s\n", to)
		}
		fmt.Fprintf(&b, "mount --bind %s %s\nmount -o remount,bind,ro,nosuid,nodev %[2]s\n", from, to)
	}
	fmt.Fprintf(&b, "mount -o remount,bind,ro,nosuid,nodev %s\n", dir)
	return b.String(), nil
}

// quote is a word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
