// SPDX-License-Identifier: Apache-2.0

// Package interleaved times things that are compared with each other, in turn: what
// slows the machine down slows all of them.
package interleaved

import (
	"fmt"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

// Case is one of the things.
type Case struct {
	Name string
	// Run does the thing once, and says how long it took.
	Run func() (time.Duration, error)
	// samples are in milliseconds, one a round.
	samples []float64
}

// warmUps are rounds that do not count.
const warmUps = 3

// Measure runs every case in every round.
func Measure(rounds int, cases []*Case) error {
	for round := range warmUps + rounds {
		for _, c := range cases {
			took, err := c.Run()
			if err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			if round >= warmUps {
				c.samples = append(c.samples, float64(took)/float64(time.Millisecond))
			}
		}
	}
	return nil
}

// Report prints a table, and writes the same rows to a file of package speed, as make bench
// takes them in. The cases of a set are beside the first of it: the ratio is the median of
// the rounds' ratios, and the note has the median of the differences.
func Report(file, group string, sets ...[]*Case) error {
	results := &speed.Results{}
	fmt.Printf("%-44s %9s %9s %9s %7s\n", "", "median ms", "p10", "p90", "ratio")
	for _, cases := range sets {
		for i, c := range cases {
			row := speed.Row{Group: group, What: "one call", Variant: c.Name, Unit: "ms"}
			if i == 0 {
				row = row.Summary(c.samples, nil)
			} else {
				more := make([]float64, len(c.samples))
				for i, s := range c.samples {
					more[i] = s - cases[0].samples[i]
				}
				row = row.Summary(c.samples, cases[0].samples)
				row.Of, row.Note = cases[0].Name, fmt.Sprintf("%+.2f ms", speed.Percentile(more, 50))
			}
			fmt.Printf("%-44s %9.3f %9.3f %9.3f %7.3f  %s\n", c.Name, row.Median, row.P10, row.P90, row.Ratio, row.Note)
			results.Rows = append(results.Rows, row)
		}
	}
	return results.Write(file)
}
