// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/ociruntime"
)

// choose returns the absolute path of the runtime for a command line.
//
// Only the runtime that the configuration names creates a container. Commands on an
// existing container go to the runtime that created it: the other runtime does not know
// the container, and would remove the first one's state. If the configuration cannot be
// read or names no runtime, the runtime that created a container can still stop it.
func (a arguments) choose(args []string, configured string) (string, error) {
	if a.Makes {
		return ociruntime.Lookup(configured)
	}
	made := a.madeBy(args)
	other := map[string]string{"runc": "crun", "crun": "runc"}[made]
	if other != "" && strings.Contains(filepath.Base(configured), other) {
		return ociruntime.Lookup(made)
	}
	program, err := ociruntime.Lookup(configured)
	if err != nil && made != "" {
		return ociruntime.Lookup(made)
	}
	return program, err
}

// madeBy returns runc or crun, if one of the arguments is the ID of a container that this
// runtime keeps.
func (a arguments) madeBy(args []string) string {
	for _, id := range args {
		if id == "" || strings.HasPrefix(id, "-") || strings.HasPrefix(id, ".") || strings.Contains(id, "/") {
			continue
		}
		for _, r := range []struct{ name, keeps string }{{"runc", "state.json"}, {"crun", "status"}} {
			root := a.Root
			if root == "" {
				root = "/run/" + r.name
			}
			var st unix.Stat_t
			if unix.Lstat(root+"/"+id+"/"+r.keeps, &st) == nil {
				return r.name
			}
		}
	}
	return ""
}
