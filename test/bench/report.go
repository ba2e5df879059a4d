// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// printTable prints a row for each runtime and variant and a column for each
// size, the whole store first: milliseconds, and how many times the floor.
func (r *results) printTable() {
	const cell = "%17s"
	fmt.Println("One container from creation to removal: median ms, and times the floor.")
	fmt.Printf("\n%-8s%-14s"+cell, "", "store paths", "all")
	for _, n := range r.sizes {
		fmt.Printf(cell, strconv.Itoa(n))
	}
	fmt.Println()
	for _, runtime := range r.runtimes {
		for _, variant := range []string{floor, whole, unannotated} {
			fmt.Printf("%-8s%-14s"+cell+"\n", runtime, variant, r.cell(r.find(runtime, variant, 0)))
		}
		for _, variant := range []string{overlayWarm, overlayCold, registered, bindWarm, mounts, mountsNew} {
			fmt.Printf("%-8s%-14s"+cell, runtime, variant, "")
			for _, n := range r.sizes {
				fmt.Printf(cell, r.cell(r.find(runtime, variant, n)))
			}
			fmt.Println()
		}
		fmt.Println()
	}
	for _, c := range r.cases {
		if c.absent != "" {
			fmt.Printf("%v: %s\n\n", c, c.absent)
		}
	}
}

func (r *results) cell(c *testCase) string {
	toFloor, measured := ratio(c, r.find(c.runtime.name, floor, 0))
	if !measured {
		return "see below"
	}
	return fmt.Sprintf("%.2f %5.2f×", median(c.samples), toFloor)
}

func (r *results) printFigures() {
	for _, f := range r.figures() {
		f.print()
	}
}

// writeCSV writes what was measured. Processes without a container have no
// runtime, and the empty one is their floor.
func (r *results) writeCSV(path string) (Err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { Err = errors.Join(Err, f.Close()) }()
	rows := [][]string{{"runtime", "variant", "paths", "runs", "median_ms", "p10_ms", "p90_ms", "ratio_to_floor"}}
	add := func(runtime, variant string, paths int, samples []time.Duration, toFloor float64) {
		number := func(x float64) string { return strconv.FormatFloat(x, 'f', 3, 64) }
		rows = append(rows, []string{runtime, variant, strconv.Itoa(paths), strconv.Itoa(len(samples)),
			number(median(samples)), number(milliseconds(samples, 10)), number(milliseconds(samples, 90)),
			number(toFloor)})
	}
	for _, c := range r.cases {
		if toFloor, measured := ratio(c, r.find(c.runtime.name, floor, 0)); measured {
			add(c.runtime.name, c.variant, c.paths, c.samples, toFloor)
		}
	}
	add("none", "empty program", 0, r.bare.empty, 1)
	add("none", "hook without annotation", 0, r.bare.hook, median(r.bare.hook)/median(r.bare.empty))
	if w := r.resolving; w != nil {
		add("none", "nix-store -qR", memoryPaths, w.nix, 1)
		add("none", "resolve cold", memoryPaths, w.cold, median(w.cold)/median(w.nix))
		add("none", "resolve warm", memoryPaths, w.warm, median(w.warm)/median(w.nix))
	}
	for _, v := range r.verified {
		add(r.runtimes[0], "verify, "+v.mode, usualPaths, v.samples, 0)
	}
	return csv.NewWriter(f).WriteAll(rows)
}
