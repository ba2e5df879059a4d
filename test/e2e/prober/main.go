// SPDX-License-Identifier: Apache-2.0

// Command prober runs in a container and looks for a secret in all that is mounted
// there. The secret is a token: the name of a file has it, or its content does. A
// socket counts as well: no image of the test has one.
//
//	prober look NEKOT [unmount] [late=DIR]
//
// NEKOT is the token backwards, so that the command line is no find. With unmount it
// then takes off one mount after the other, and looks at what was underneath. With
// late it makes DIR/ready, waits for DIR/go, and looks once more.
//
// It is a tool of the test on the host as well, where a program that reads mount
// options would not leave them as they are:
//
//	prober mount SOURCE TARGET TYPE DATA     mount(2) with just these strings
//	prober fsmount TARGET TYPE [KEY=VALUE]…  fsopen(2), a fsconfig(2) each, fsmount(2)
//	prober xattr FILE NAME VALUE
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "prober %q: %v\n", os.Args[1:], err)
		os.Exit(3)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 2 && args[0] == "look":
		return look(args[1], args[2:])
	case len(args) == 5 && args[0] == "mount":
		return unix.Mount(args[1], args[2], args[3], 0, args[4])
	case len(args) >= 3 && args[0] == "fsmount":
		return fsmount(args[1], args[2], args[3:])
	case len(args) == 4 && args[0] == "xattr":
		return unix.Setxattr(args[1], args[2], []byte(args[3]), 0)
	}
	return fmt.Errorf("usage: look, mount, fsmount or xattr, as in its source")
}

func look(backwards string, options []string) error {
	token := []byte(backwards)
	slices.Reverse(token)
	s := &search{token: token, seen: map[file]bool{}}
	// One that is not listed is no error.
	names, _ := os.ReadDir("/nix/store")
	for _, n := range names {
		s.Store = append(s.Store, n.Name())
	}
	if err := s.lookAtAll(); err != nil {
		return err
	}
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "late="); ok {
			s.when = "after the start, "
			if err := meet(dir); err != nil {
				return err
			}
			if err := s.lookAtAll(); err != nil {
				return err
			}
		}
	}
	if slices.Contains(options, "unmount") {
		s.when = "underneath, "
		if err := s.unmountAll(); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(s.report)
}

// fsmount mounts by the calls that came with Linux 5.2; there an option may be given
// more than once, and needs no quoting.
func fsmount(target, kind string, options []string) error {
	fs, err := unix.Fsopen(kind, 0)
	if err != nil {
		return err
	}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, 0, 0)
	if err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
