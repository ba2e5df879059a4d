// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// writePage writes a table for each kind of container and stage.
func writePage(file string, rows []row) error {
	if file == "" {
		return nil
	}
	var b strings.Builder
	kernel, _ := exec.Command("uname", "-r").Output()
	runc, _ := exec.Command("runc", "--version").Output()
	version, _, _ := strings.Cut(string(runc), "\n")
	fmt.Fprintf(&b, `<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by make profile. -->
# What a start does

System calls of the hook by purpose (strace), page faults and time on a processor (getrusage): one container with a
closure of %d paths that is remembered, in overlay mode, with hook entries as they are installed. The first column
is a static Go program that does nothing, in the hook's place. System calls are medians of %d containers, the rest
of %d. Linux %s, %s.

What is left, and for what:

- Go's runtime cannot be told to read no cgroup and to install no signal handlers. One processor (GOMAXPROCS=1 in the
  hook entries) keeps it from starting threads that then have nothing to do. strace slows the hook down, so that it
  shows more of the runtime's own calls than there are without it.
- Two mount lists are read: the host's, for what to guard, and the container's, for what it shows.
- The lock of the ID is taken twice, and the record written twice: before anything is attached, and when all is.
- Nix needs the container's GC roots in a directory, made while its collector's lock is held.
- A sweep that found nothing more to do counts for ten minutes; until then only the other containers' records are
  looked at.
- On an overlay as its root, the container's layers are looked into.
`, paths, traced, observed, strings.TrimSpace(string(kernel)), version)
	for _, k := range kinds {
		for _, stage := range stages {
			table(&b, rows, k.name, stage)
		}
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// table writes one table. It leaves out what no program does.
func table(b *strings.Builder, rows []row, kind, stage string) {
	var programs, whats []string
	counts := map[[2]string]int{}
	for _, r := range rows {
		if r.kind != kind || r.stage != stage {
			continue
		}
		if !slices.Contains(programs, r.program) {
			programs = append(programs, r.program)
		}
		if r.count > 0 && !slices.Contains(whats, r.what) {
			whats = append(whats, r.what)
		}
		counts[[2]string{r.program, r.what}] = r.count
	}
	fmt.Fprintf(b, "\n## %s: %s\n\n|  |", stage, kind)
	for _, p := range programs {
		fmt.Fprintf(b, " %s |", p)
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---:|", len(programs)))
	order := []string{}
	for _, rule := range rules {
		order = append(order, rule.purpose)
	}
	for _, what := range append(order, allCalls, pageFaults, cpuTime) {
		if !slices.Contains(whats, what) {
			continue
		}
		fmt.Fprintf(b, "| %s |", what)
		for _, p := range programs {
			fmt.Fprintf(b, " %d |", counts[[2]string{p, what}])
		}
		fmt.Fprintln(b)
	}
}
