// SPDX-License-Identifier: Apache-2.0

// Package interleaved times things that are compared with each other, in turn: what
// slows the machine down slows all of them.
package interleaved

import (
	"encoding/csv"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
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

// Report prints the cases beside the first of them, and writes them to a CSV file: the
// median, the tenth and the ninetieth percentile, and the medians of the differences from
// the first and of the ratios to it, round by round.
func Report(file string, cases []*Case) error {
	rows := [][]string{{"case", "median_ms", "p10_ms", "p90_ms", "more_ms", "ratio", "rounds"}}
	fmt.Printf("%-44s %9s %9s %9s %9s %7s\n", "", "median ms", "p10", "p90", "more", "ratio")
	for _, c := range cases {
		more, ratio := make([]float64, len(c.samples)), make([]float64, len(c.samples))
		for i, s := range c.samples {
			more[i], ratio[i] = s-cases[0].samples[i], s/cases[0].samples[i]
		}
		figures := []float64{percentile(c.samples, 50), percentile(c.samples, 10), percentile(c.samples, 90),
			percentile(more, 50), percentile(ratio, 50)}
		fmt.Printf("%-44s %9.3f %9.3f %9.3f %+9.3f %7.3f\n", c.Name, figures[0], figures[1], figures[2], figures[3],
			figures[4])
		row := []string{c.Name}
		for _, f := range figures {
			row = append(row, strconv.FormatFloat(f, 'f', 4, 64))
		}
		rows = append(rows, append(row, strconv.Itoa(len(c.samples))))
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := csv.NewWriter(f).WriteAll(rows); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func percentile(samples []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[percent*(len(sorted)-1)/100]
}
