// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	nixStoreRequisites = "nix-store --query --requisites"
	pathInfo           = "nix path-info --recursive"
)

// measureResolve prints closures in each way.
func measureResolve(b *bench, budget time.Duration) error {
	h := b.host
	var all []*subject
	for _, n := range b.sizes {
		if n < usualPaths {
			continue
		}
		root := h.store.Root(n)
		add := func(variant, program string, forget bool, args ...string) *subject {
			s := &subject{
				row: speed.Row{Group: "resolve", What: "print a closure", Variant: variant, Paths: n, Unit: "ms"},
				run: func() (float64, error) {
					if forget {
						if err := os.RemoveAll(h.cold.runtimeDir); err != nil {
							return 0, err
						}
					}
					return timeProcess(os.DevNull, program, args...)
				},
			}
			all = append(all, s)
			return s
		}
		requisites := add(nixStoreRequisites, "nix-store", false, "--query", "--requisites", root)
		ways := []*subject{
			add(pathInfo, "nix", false, "--extra-experimental-features", "nix-command", "path-info",
				"--recursive", root),
			add("nix-closure resolve, cold", h.command(), true,
				slices.Concat(h.cold.args(), []string{"resolve", root})...),
			add("nix-closure resolve, remembered", h.command(), false,
				slices.Concat(h.warm.args(), []string{"resolve", root})...),
		}
		for _, w := range ways {
			w.row.Of, w.of = nixStoreRequisites, requisites
		}
	}
	return b.measure(all, budget)
}
