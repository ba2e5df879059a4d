// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"
)

// milliseconds gives a percentile of the samples, between two of them in
// proportion. There must be samples.
func milliseconds(samples []time.Duration, percentile float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	place := percentile / 100 * float64(len(sorted)-1)
	below := int(place)
	above := min(below+1, len(sorted)-1)
	value := float64(sorted[below]) + (place-float64(below))*float64(sorted[above]-sorted[below])
	return value / float64(time.Millisecond)
}

func median(samples []time.Duration) float64 { return milliseconds(samples, 50) }
