// SPDX-License-Identifier: Apache-2.0

// Package speed has the results of the benchmark: rows of measurements, their
// statistics, and the file that keeps them.
package speed

import (
	"fmt"
	"slices"
)

// Row is what was measured of one way to do one thing.
type Row struct {
	Group   string // the table
	What    string // what was done
	Variant string // the way it was done
	Paths   int    // store paths of the closure; 0 where there is none
	Runtime string // empty where there is none
	// N is how many values there are. Without one, Note says why.
	N                int
	Median, P10, P90 float64
	Unit             string
	// Ratio is the median of the pairs' ratios: each value divided by the one beside it.
	// 0 where the row is compared to nothing.
	Ratio float64
	Of    string // the variant that Ratio is compared to
	Note  string
}

// Summary fills in the numbers. beside has, at the same index, what each value is divided
// by. It is nil where the row is compared to nothing.
func (r Row) Summary(values, beside []float64) Row {
	r.N = len(values)
	r.Median, r.P10, r.P90 = Percentile(values, 50), Percentile(values, 10), Percentile(values, 90)
	if beside != nil {
		r.Ratio = Ratio(values, beside)
	}
	return r
}

// Absent is the row of something that could not be measured.
func (r Row) Absent(why string) Row {
	r.N, r.Median, r.P10, r.P90, r.Ratio = 0, 0, 0, 0, 0
	r.Note = why
	return r
}

// Name is the row in a message.
func (r Row) Name() string {
	name := r.Group + ": " + r.What + ": " + r.Variant
	if r.Paths > 0 {
		name += fmt.Sprintf(", %d paths", r.Paths)
	}
	if r.Runtime != "" {
		name += ", " + r.Runtime
	}
	return name
}

// same: both rows are of the same thing, done in the same way and compared to the same.
func (r Row) same(o Row) bool {
	return r.Group == o.Group && r.What == o.What && r.Variant == o.Variant && r.Paths == o.Paths &&
		r.Runtime == o.Runtime && r.Of == o.Of
}

// Percentile gives a percentile of the values, between two of them in proportion. There
// must be values.
func Percentile(values []float64, percentile float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	place := percentile / 100 * float64(len(sorted)-1)
	below := int(place)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (place-float64(below))*(sorted[above]-sorted[below])
}

// Ratio is the median of the values, each divided by the one beside it.
func Ratio(values, beside []float64) float64 {
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / beside[i]
	}
	return Percentile(ratios, 50)
}
