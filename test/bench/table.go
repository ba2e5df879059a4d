// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/nix-closure/nix-closure/test/speed"
)

// table is a part of the results: what was done, each way a line, each size a column.
type table struct {
	group, what string
	sizes       []int
	lines       []tableLine
	absent      []string
}

type tableLine struct {
	name  string
	cells []string // one for each size
}

// isComparison: the row has another ratio of the same runs. It has no line.
func isComparison(r speed.Row) bool { return r.Note == "the same runs" }

// tables makes a table for each thing that was done, in the order of the rows.
func tables(r *speed.Results) (all []*table) {
	find := func(row speed.Row) *table {
		for _, t := range all {
			if t.group == row.Group && t.what == row.What {
				return t
			}
		}
		t := &table{group: row.Group, what: row.What}
		all = append(all, t)
		return t
	}
	for _, row := range r.Rows {
		t := find(row)
		if !slices.Contains(t.sizes, row.Paths) {
			t.sizes = append(t.sizes, row.Paths)
		}
	}
	for _, t := range all {
		slices.Sort(t.sizes)
	}
	// The lines that have a number come first.
	rows := slices.Clone(r.Rows)
	slices.SortStableFunc(rows, func(a, b speed.Row) int { return cmp.Compare(min(b.N, 1), min(a.N, 1)) })
	for _, row := range rows {
		t := find(row)
		if row.N == 0 {
			t.absent = append(t.absent, rowName(row)+sizeOf(row)+": "+row.Note)
		}
		if isComparison(row) {
			continue
		}
		line := t.line(rowName(row))
		line.cells[slices.Index(t.sizes, row.Paths)] = cell(row)
	}
	return all
}

func rowName(row speed.Row) string {
	if row.Runtime == "" {
		return row.Variant
	}
	return row.Runtime + ": " + row.Variant
}

func sizeOf(row speed.Row) string {
	if row.Paths == 0 {
		return ""
	}
	return ", " + thousands(row.Paths) + " paths"
}

func (t *table) line(name string) *tableLine {
	for i := range t.lines {
		if t.lines[i].name == name {
			return &t.lines[i]
		}
	}
	t.lines = append(t.lines, tableLine{name, make([]string, len(t.sizes))})
	return &t.lines[len(t.lines)-1]
}

// cell is the median, the spread and the ratio.
func cell(row speed.Row) string {
	if row.N == 0 {
		return "see below"
	}
	text := speed.Number(row.Median)
	if row.N > 1 {
		text += fmt.Sprintf(" [%s, %s]", speed.Number(row.P10), speed.Number(row.P90))
	}
	if row.Ratio != 0 {
		text += fmt.Sprintf(" %.2f×", row.Ratio)
	}
	return text
}

// thousands writes 20000 as 20,000.
func thousands(n int) string {
	text := strconv.Itoa(n)
	if len(text) > 3 {
		return text[:len(text)-3] + "," + text[len(text)-3:]
	}
	return text
}

// printTables prints all rows.
func printTables(out io.Writer, r *speed.Results) {
	for _, f := range r.Facts {
		_, _ = fmt.Fprintf(out, "%s: %s\n", f.Name, f.Value)
	}
	_, _ = fmt.Fprint(out, "\nMedian [10th and 90th percentile] and the median ratio to what is beside it.\n")
	for _, t := range tables(r) {
		_, _ = fmt.Fprintf(out, "\n%s: %s, %s\n", t.group, t.what, unitOf(r, t))
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		if len(t.sizes) > 1 || t.sizes[0] != 0 {
			_, _ = fmt.Fprintf(w, "  \t%s\t\n", strings.Join(t.header(), "\t"))
		}
		for _, l := range t.lines {
			_, _ = fmt.Fprintf(w, "  %s\t%s\t\n", l.name, strings.Join(l.cells, "\t"))
		}
		_ = w.Flush()
		for _, a := range t.absent {
			_, _ = fmt.Fprintf(out, "  %.300s\n", a)
		}
	}
}

func (t *table) header() (names []string) {
	for _, n := range t.sizes {
		if n == 0 {
			names = append(names, "any")
		} else {
			names = append(names, thousands(n)+" paths")
		}
	}
	return names
}

func unitOf(r *speed.Results, t *table) string {
	if row := r.Find(func(row speed.Row) bool {
		return row.Group == t.group && row.What == t.what && row.Unit != ""
	}); row != nil {
		return row.Unit
	}
	return ""
}
