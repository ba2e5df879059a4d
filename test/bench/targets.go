// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/nix-closure/nix-closure/test/speed"
)

// target is a figure that is promised.
type target struct {
	what    string
	value   float64
	least   float64 // 0: anything less than most
	most    float64
	unit    string
	missing string // why there is no value
}

// The bounds.
const (
	larger       = 0.05 // how far a start with 20,000 paths may be from one with 1,000
	firstToRival = 0.3
	firstTouches = 1.6
	warmFilesAre = 1.15
	slabToBind   = 0.1
	bindToKernel = 1.15
	hookMore     = 0.4
	wrapperMost  = 0.5
	podmanAsRoot = 1.05
	podmanAsUser = 1.10
	podToWhole   = 1.05
	resolveToNix = 0.3
	mostPeak     = 40.0
	mostVerify   = 50.0
	registration = 0.25 // what it may add to the ratio
)

var overlayToFloor = map[string]float64{"crun": 1.20, "runc": 1.10}

// targets looks the promised figures up.
func targets(r *speed.Results) (all []target) {
	add := func(t target, row *speed.Row, value func(speed.Row) float64) {
		switch {
		case row == nil:
			t.missing = "not measured"
		case row.N == 0:
			t.missing = row.Note
		default:
			t.value = value(*row)
		}
		all = append(all, t)
	}
	ratio := func(row speed.Row) float64 { return row.Ratio }
	median := func(row speed.Row) float64 { return row.Median }
	find := func(group, what, variant, runtime, of string, paths int) *speed.Row {
		return r.Find(func(row speed.Row) bool {
			return row.Group == group && (what == "" || row.What == what) && row.Variant == variant &&
				(runtime == "" || row.Runtime == runtime) && (of == "" || row.Of == of) &&
				(paths == 0 || row.Paths == paths)
		})
	}
	for _, runtime := range []string{"crun", "runc"} {
		add(target{what: runtime + ": start with overlay, 1,000 paths / the floor", most: overlayToFloor[runtime]},
			find("start", "", overlayWarm, runtime, floor, usualPaths), ratio)
		add(target{what: runtime + ": start with overlay, 20,000 paths / 1,000 paths", least: 1 - larger,
			most: 1 + larger},
			find("start", "", overlayWarm, runtime, atUsual, 20000), ratio)
		add(target{what: runtime + ": start with registration, 1,000 paths / the floor",
			most: overlayToFloor[runtime] + registration},
			find("start", "", registered, runtime, floor, usualPaths), ratio)
		add(target{what: runtime + ": podman as root, overlay, 1,000 paths / the store bound whole",
			most: podmanAsRoot},
			find("podman", podmanRoot, overlayWarm, runtime, "", usualPaths), ratio)
		add(target{what: runtime + ": podman rootless, 100 paths / the store bound whole", most: podmanAsUser},
			find("podman", podmanRootless, bindWarm, runtime, "", 100), ratio)
	}
	add(target{what: "110 pods, start: overlay / the store bound whole", most: podToWhole},
		find(pods, fullNodeStart, overlayWarm, "", "", 0), ratio)
	add(target{what: "110 pods, start: overlay, by the plugin / the store bound whole", most: podToWhole},
		find(pods, fullNodeStart, overlayByPlugin, "", "", 0), ratio)
	add(target{what: "110 pods, start: overlay / nix-snapshotter, the worst of all percentiles", most: 1},
		find(pods, fullNodeWorst, overlayWarm, "", "", 0), ratio)
	for _, of := range []string{rivalMade, rival} {
		add(target{what: "first pod of a closure, 1,000 paths: overlay / " + of, most: firstToRival},
			find(pods, firstPod, overlayWarm, "", of, 0), ratio)
	}
	add(target{what: "the hook without an annotation: two stages, more than two empty programs", most: hookMore,
		unit: "ms"}, find("unannotated", "", bothStagesMore, "", "", 0), median)
	worst := speed.Row{}
	for _, row := range r.Rows {
		if row.Variant == wrapperMore && (worst.N == 0 || row.N == 0 || row.Median > worst.Median) {
			worst = row
		}
	}
	var slowest *speed.Row
	if worst.Variant != "" {
		slowest = &worst
	}
	add(target{what: "the wrapper without an annotation: its slowest call, more than an empty program that execs",
		most: wrapperMost, unit: "ms"}, slowest, median)
	add(target{what: "files through overlay, nothing cached / the store itself", most: firstTouches},
		find("files", statAndRead+firstTouch, overlayWarm, "", "", 0), ratio)
	add(target{what: "files through overlay, the view new / the store itself, cached", most: firstTouches},
		find("files", statAndRead+freshView, overlayWarm, "", "", 0), ratio)
	add(target{what: "files through overlay, warm / the store itself", most: warmFilesAre},
		find("files", statAndRead+warmFiles, overlayWarm, "", "", 0), ratio)
	add(target{what: "bind mode, 1,000 paths / four system calls a path", most: bindToKernel},
		find(bindFloor, "", "bind mode", "", "", 0), ratio)
	add(target{what: "200 containers: the slab that overlay adds to each / that bind adds", most: slabToBind},
		find("memory", slabEach, addedSlabOverlay, "", "", 0), ratio)
	add(target{what: "resolve 20,000 paths, cold / nix-store -qR", most: resolveToNix},
		find("resolve", "", "nix-closure resolve, cold", "", "", 20000), ratio)
	for _, variant := range []string{"overlay, first start", "bind, first start"} {
		add(target{what: "the hook's peak memory, 20,000 paths, " + variant, most: mostPeak, unit: "MiB"},
			find("hook", peakMemory, variant, "", "", 20000), median)
	}
	for _, mode := range []string{"overlay", "bind"} {
		add(target{what: "verify one container of 1,000 paths, " + mode, most: mostVerify, unit: "ms"},
			find("hook", verifyOne, mode, "", "", 0), median)
	}
	return all
}

// verdict is met, MISSED or unknown.
func (t target) verdict() string {
	switch {
	case t.missing != "":
		return "unknown"
	case t.value <= t.most && t.value >= t.least:
		return "met"
	}
	return "MISSED"
}

func (t target) bound() string {
	if t.least != 0 {
		return fmt.Sprintf("%.2f to %.2f", t.least, t.most)
	}
	return fmt.Sprintf("at most %.2f", t.most)
}

func (t target) measured() string {
	if t.missing != "" {
		return t.missing
	}
	return fmt.Sprintf("%.2f", t.value)
}

func printTargets(out io.Writer, r *speed.Results) {
	_, _ = fmt.Fprint(out, "\nTargets\n")
	for _, t := range targets(r) {
		_, _ = fmt.Fprintf(out, "%-8s %-92s %8.60s  %s %s\n", t.verdict(), t.what, t.measured(), t.bound(), t.unit)
	}
}
