// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/nix-closure/nix-closure/test/speed"
)

// peers are the ways that are not nix-closure's: their ratios are no concern of a release.
var peers = []string{whole, mounts, mountsNew, bubblewrap, volumes, layerEach, nixCopy, pathInfo, rival, rivalMade,
	ordinaryImage}

// compare says which ratios of a run are greater than those of an older run. Times are not
// compared: another machine has others.
func compare(older, newer string, tolerance float64) error {
	old, err := speed.Read(older)
	if err != nil {
		return err
	}
	now, err := speed.Read(newer)
	if err != nil {
		return err
	}
	compared, worse, gone := regressions(old, now, tolerance)
	for _, text := range append(worse, gone...) {
		fmt.Println(text)
	}
	fmt.Printf("%d ratios compared with %s: %d are more than %.0f %% greater, %d are missing\n", compared, older,
		len(worse), tolerance*100, len(gone))
	if len(worse)+len(gone) > 0 {
		return fmt.Errorf("%s is slower than %s, or has less", newer, older)
	}
	return nil
}

func regressions(old, now *speed.Results, tolerance float64) (compared int, worse, gone []string) {
	for _, before := range old.Rows {
		// Few values say little.
		if before.Ratio <= 0 || before.N < fewest || slices.Contains(peers, before.Variant) {
			continue
		}
		after := now.Same(before)
		if after == nil || after.N == 0 {
			gone = append(gone, fmt.Sprintf("missing  %s / %s: was %.2f", before.Name(), before.Of, before.Ratio))
			continue
		}
		compared++
		if after.Ratio > before.Ratio*(1+tolerance) {
			worse = append(worse, fmt.Sprintf("slower   %s / %s: %.2f, was %.2f", before.Name(), before.Of, after.Ratio,
				before.Ratio))
		}
	}
	return compared, worse, gone
}
