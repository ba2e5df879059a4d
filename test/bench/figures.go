// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
)

// The sizes at which the figures are asked for.
const (
	usualPaths  = 1000
	memoryPaths = 20000
)

// overlayToFloor is what a container of usual size may cost, with the floor
// as 1. crun is faster than runc, so the same work weighs more.
var overlayToFloor = map[string]float64{"runc": 1.15, "crun": 1.25}

const (
	overlayLargeToUsual   = 1.15
	bindToMounts          = 0.8
	bareHookMillisecond   = 2.0
	registeredMillisecond = 3.0
	peakMiB               = 40.0
	resolveToNix          = 0.3
	verifyMillisecond     = 50.0
)

// figure is one of the figures that the program promises.
type figure struct {
	what     string
	value    float64
	measured bool
	most     float64
	unit     string
}

func (r *results) figures() []figure {
	var all []figure
	for _, runtime := range r.runtimes {
		ratioOf := func(what string, most float64, of, to *testCase) {
			value, measured := ratio(of, to)
			all = append(all, figure{runtime + ": " + what, value, measured, most, ""})
		}
		usual := r.find(runtime, overlayWarm, usualPaths)
		if most, promised := overlayToFloor[runtime]; promised {
			ratioOf(fmt.Sprintf("overlay warm at %d / floor", usualPaths), most,
				usual, r.find(runtime, floor, usualPaths))
		}
		ratioOf(fmt.Sprintf("overlay warm at %d / at %d", memoryPaths, usualPaths), overlayLargeToUsual,
			r.find(runtime, overlayWarm, memoryPaths), usual)
		if with := r.find(runtime, registered, usualPaths); with != nil && usual != nil {
			all = append(all, figure{fmt.Sprintf("%s: registration at %d, more than without", runtime, usualPaths),
				median(with.samples) - median(usual.samples), true, registeredMillisecond, "ms"})
		}
		ratioOf(fmt.Sprintf("bind at %d / mounts", usualPaths), bindToMounts,
			r.find(runtime, bindWarm, usualPaths), r.find(runtime, mounts, usualPaths))
		ratioOf(fmt.Sprintf("bind at %d / mounts, new image each time", usualPaths), bindToMounts,
			r.find(runtime, bindWarm, usualPaths), r.find(runtime, mountsNew, usualPaths))
	}
	all = append(all, figure{"hook without annotation, more than an empty program",
		median(r.bare.hook) - median(r.bare.empty), true, bareHookMillisecond, "ms"})
	all = append(all, r.resolving.figures()...)
	for _, p := range r.peaks {
		all = append(all, figure{fmt.Sprintf("hook's peak memory at %d, %s, %s", memoryPaths, p.mode, p.state),
			p.mib, true, peakMiB, "MiB"})
	}
	for _, v := range r.verified {
		all = append(all, figure{fmt.Sprintf("verify one container of %d, %s", usualPaths, v.mode),
			median(v.samples), true, verifyMillisecond, "ms"})
	}
	return all
}

func (f figure) print() {
	switch {
	case !f.measured:
		fmt.Printf("unknown  %-52s           at most %5.2f %s\n", f.what, f.most, f.unit)
	case f.value <= f.most:
		fmt.Printf("within   %-52s %8.2f  at most %5.2f %s\n", f.what, f.value, f.most, f.unit)
	default:
		fmt.Printf("MISSED   %-52s %8.2f  at most %5.2f %s\n", f.what, f.value, f.most, f.unit)
	}
}
