// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"github.com/nix-closure/nix-closure/test/bench/programs"
)

// smallPrograms are the paths of the benchmark's own programs.
type smallPrograms struct {
	empty, count, observe, become, idle, walk string
}

func buildPrograms(dir string) (smallPrograms, error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	return smallPrograms{
		empty: in("empty"), count: in("count"), observe: in("observe"), become: in("become"), idle: in("idle"),
		walk: in("walk"),
	}, programs.Build(dir, "empty", "count", "observe", "become", "idle", "walk")
}
