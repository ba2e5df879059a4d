// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// resolveRuns is how often each way is timed.
const resolveRuns = 20

// resolving is how long it takes to print a closure of memoryPaths.
type resolving struct {
	// nix is `nix-store --query --requisites`; cold is `nix-closure resolve` of what is
	// not remembered, and warm of what is.
	nix, cold, warm []time.Duration
}

// measureResolve resolves one closure in each way, in turn.
func (h *host) measureResolve(p *progress) (*resolving, error) {
	p.show("resolving %d paths", memoryPaths)
	root := h.store.Root(memoryPaths)
	program := filepath.Join(filepath.Dir(h.hook), "nix-closure")
	resolve := append(h.cold.args(), "resolve", root)
	r := &resolving{}
	for range resolveRuns {
		if err := os.RemoveAll(h.cold.runtimeDir); err != nil {
			return nil, err
		}
		for _, way := range []struct {
			samples *[]time.Duration
			program string
			args    []string
		}{
			{&r.nix, "nix-store", []string{"--query", "--requisites", root}},
			{&r.cold, program, resolve},
			{&r.warm, program, resolve},
		} {
			took, err := timeProcess(os.DevNull, way.program, way.args...)
			if err != nil {
				return nil, err
			}
			*way.samples = append(*way.samples, took)
		}
	}
	return r, nil
}

// figures are empty where nothing was measured.
func (r *resolving) figures() []figure {
	if r == nil {
		return nil
	}
	what := fmt.Sprintf("resolve %d paths / nix-store -qR", memoryPaths)
	return []figure{{
		what: what, value: median(r.cold) / median(r.nix), measured: true, most: resolveToNix,
	}}
}
