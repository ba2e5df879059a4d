// SPDX-License-Identifier: Apache-2.0

package speed

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Results are the rows of a run, and the facts about it.
type Results struct {
	Facts []Fact
	Rows  []Row
}

// Fact is something that the reader of the figures must know, such as the kernel.
type Fact struct{ Name, Value string }

// columns of the file.
var columns = []string{"group", "what", "variant", "paths", "runtime", "n", "median", "p10", "p90", "unit", "ratio",
	"of", "note"}

// Fact returns a fact's value, or "".
func (r *Results) Fact(name string) string {
	for _, f := range r.Facts {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Find returns the first row that the function accepts, or nil.
func (r *Results) Find(accepts func(Row) bool) *Row {
	if i := slices.IndexFunc(r.Rows, accepts); i >= 0 {
		return &r.Rows[i]
	}
	return nil
}

// Same returns the row that measured the same as a row of other results, or nil.
func (r *Results) Same(o Row) *Row { return r.Find(o.same) }

// Merge adds another file's rows and facts. A fact that is there already stays.
func (r *Results) Merge(o *Results) {
	for _, f := range o.Facts {
		if r.Fact(f.Name) == "" {
			r.Facts = append(r.Facts, f)
		}
	}
	r.Rows = append(r.Rows, o.Rows...)
}

// Write writes the facts, each as a comment, and the rows as CSV.
func (r *Results) Write(path string) error {
	var text strings.Builder
	text.WriteString("# SPDX-License-Identifier: Apache-2.0\n")
	for _, f := range r.Facts {
		fmt.Fprintf(&text, "# %s: %s\n", f.Name, f.Value)
	}
	records := [][]string{columns}
	for _, row := range r.Rows {
		records = append(records, row.record())
	}
	if err := csv.NewWriter(&text).WriteAll(records); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

func (r Row) record() []string {
	number := func(x float64) string {
		if x == 0 {
			return ""
		}
		return strconv.FormatFloat(x, 'f', decimals(x)+1, 64)
	}
	ratio := ""
	if r.Ratio != 0 {
		ratio = strconv.FormatFloat(r.Ratio, 'f', 3, 64)
	}
	// A note is one line.
	note := strings.Join(strings.Fields(r.Note), " ")
	return []string{r.Group, r.What, r.Variant, strconv.Itoa(r.Paths), r.Runtime, strconv.Itoa(r.N), number(r.Median),
		number(r.P10), number(r.P90), r.Unit, ratio, r.Of, note}
}

// Read reads what Write wrote.
func Read(path string) (_ *Results, Err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { Err = errors.Join(Err, f.Close()) }()
	r := &Results{}
	var rows strings.Builder
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		comment, isComment := strings.CutPrefix(lines.Text(), "# ")
		if !isComment {
			rows.WriteString(lines.Text() + "\n")
			continue
		}
		if name, value, ok := strings.Cut(comment, ": "); ok && name != "SPDX-License-Identifier" {
			r.Facts = append(r.Facts, Fact{name, value})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	records, err := csv.NewReader(strings.NewReader(rows.String())).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(records) == 0 || !slices.Equal(records[0], columns) {
		return nil, fmt.Errorf("%s: the columns are not %s", path, strings.Join(columns, ","))
	}
	for _, record := range records[1:] {
		row, err := parse(record)
		if err != nil {
			return nil, fmt.Errorf("%s: row %q: %w", path, record, err)
		}
		r.Rows = append(r.Rows, row)
	}
	return r, nil
}

func parse(record []string) (Row, error) {
	r := Row{Group: record[0], What: record[1], Variant: record[2], Runtime: record[4], Unit: record[9], Of: record[11],
		Note: record[12]}
	var errs []error
	integer := func(text string, to *int) {
		n, err := strconv.Atoi(text)
		*to, errs = n, append(errs, err)
	}
	number := func(text string, to *float64) {
		x, err := strconv.ParseFloat(cmp.Or(text, "0"), 64)
		*to, errs = x, append(errs, err)
	}
	integer(record[3], &r.Paths)
	integer(record[5], &r.N)
	number(record[6], &r.Median)
	number(record[7], &r.P10)
	number(record[8], &r.P90)
	number(record[10], &r.Ratio)
	return r, errors.Join(errs...)
}

// Number writes a number with three digits or more, as the tables have it.
func Number(x float64) string { return strconv.FormatFloat(x, 'f', decimals(x), 64) }

func decimals(x float64) int {
	switch x = max(x, -x); {
	case x >= 100:
		return 0
	case x >= 10:
		return 1
	}
	return 2
}
