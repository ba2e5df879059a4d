// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

func newBench() *bench {
	return &bench{progress: newProgress(), results: &speed.Results{}, stop: make(chan os.Signal, 1), fewest: fewest,
		runs: 40}
}

// Each value is divided by the one beside it, in rounds in which all have their turn. What
// fails is named, and the others go on.
func TestMeasure(t *testing.T) {
	b := newBench()
	now := 0.0
	drifting := func(factor float64) func() (float64, error) {
		return func() (float64, error) {
			now++
			return factor * (1000 + now), nil
		}
	}
	breaks := 0
	subjects := []*subject{
		{row: speed.Row{Variant: "floor"}, run: drifting(1)},
		{row: speed.Row{Variant: "twice", Of: "floor"}, run: drifting(2), beside: drifting(1)},
		{row: speed.Row{Variant: "broken"}, run: func() (float64, error) {
			if breaks++; breaks > 5 {
				return 0, errors.New("no more")
			}
			return 1, nil
		}},
	}
	subjects = append(subjects, &subject{row: speed.Row{Variant: "thrice", Of: "floor"}, run: drifting(3),
		of: subjects[0]})
	subjects[1].others = []other{{"the floor of the round", subjects[0]}}
	if err := b.measure(subjects, 0); err != nil {
		t.Fatal(err)
	}
	byOf := map[string]speed.Row{}
	for _, r := range b.results.Rows {
		byOf[r.Variant+"/"+r.Of] = r
	}
	if r := byOf["twice/floor"]; r.N != fewest || r.Ratio < 1.99 || r.Ratio > 2.01 {
		t.Errorf("%+v", r)
	}
	if r := byOf["twice/the floor of the round"]; r.Ratio < 1.95 || r.Ratio > 2.05 {
		t.Errorf("%+v", r)
	}
	if r := byOf["thrice/floor"]; r.Ratio < 2.9 || r.Ratio > 3.1 {
		t.Errorf("%+v", r)
	}
	if r := byOf["broken/"]; r.N != 0 || r.Note != "failed: no more" || len(failures(b.results)) != 1 {
		t.Errorf("%+v", r)
	}
}

// A group that panics is an error, and no more.
func TestGroupPanics(t *testing.T) {
	err := newBench().measureGroup(group{measure: func(*bench, time.Duration) error { panic("lost") }}, 0)
	if err == nil || !strings.Contains(err.Error(), "lost") {
		t.Error(err)
	}
}

// A ratio that is greater than the tolerance allows is named, and a row that is gone.
func TestRegressions(t *testing.T) {
	row := func(variant string, ratio float64) speed.Row {
		return speed.Row{Group: "start", Variant: variant, N: 15, Median: 1, Ratio: ratio, Of: floor}
	}
	old := &speed.Results{Rows: []speed.Row{row("a", 1.2), row("b", 1.2), row("c", 1.2), row("d", 0), row(mounts, 1)}}
	now := &speed.Results{Rows: []speed.Row{row("a", 1.31), row("b", 1.33)}}
	compared, worse, gone := regressions(old, now, 0.1)
	if compared != 2 || len(worse) != 1 || !strings.Contains(worse[0], "b / ") || len(gone) != 1 ||
		!strings.Contains(gone[0], "c / ") {
		t.Errorf("%d %q %q", compared, worse, gone)
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		target target
		want   string
	}{
		{target{value: 1.2, most: 1.2}, "met"}, {target{value: 1.21, most: 1.2}, "MISSED"},
		{target{value: 0.9, least: 0.95, most: 1.05}, "MISSED"}, {target{missing: "not measured", most: 1}, "unknown"},
	} {
		if got := c.target.verdict(); got != c.want {
			t.Errorf("%+v: %s", c.target, got)
		}
	}
	// Each target finds its row among those that the benchmark writes.
	r, err := speed.Read(docs + "/" + rowsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range targets(r) {
		if target.missing == "not measured" {
			t.Errorf("no row of docs/%s is for %q", rowsFile, target.what)
		}
	}
	var out bytes.Buffer
	printTables(&out, r)
	printTargets(&out, r)
	for _, text := range []string{"kernel: Linux", floor, "1,000 paths"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("the terminal does not show %q", text)
		}
	}
}
