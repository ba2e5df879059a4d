// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	units "github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// screen is where a person reads what a command prints, or a program does.
type screen struct {
	*bufio.Writer
	width  int // of a terminal; 0: nothing is shortened
	colour bool
}

// newScreen finds out whether out is a terminal, and how wide.
func newScreen(out io.Writer) screen {
	s := screen{Writer: bufio.NewWriter(out)}
	file, ok := out.(*os.File)
	if !ok {
		return s
	}
	window, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return s
	}
	s.width = int(window.Col)
	if columns, err := strconv.Atoi(variable("COLUMNS")); err == nil && columns > 0 {
		s.width = columns
	}
	s.colour = variable("NO_COLOR") == "" && variable("TERM") != "dumb"
	return s
}

// variable is a variable of the environment, for what is printed alone.
func variable(name string) string {
	return os.Getenv(name) //nolint:forbidigo // read only if standard output is a terminal, which no hook has
}

// colour is how a terminal is told one.
type colour string

const (
	plain  colour = ""
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// paint is a text in a colour, where the screen has any.
func (s screen) paint(c colour, text string) string {
	if !s.colour || c == plain {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// size is a number of bytes for a person.
func size(bytes int64) string {
	if bytes < 0 {
		return "-" + size(-bytes)
	}
	return units.BytesSize(float64(bytes))
}

// table is what printTable prints.
type table struct {
	columns       []column
	rows          [][]string
	colours       []colour // of each row's first cell; nil: none
	withoutHeader bool
}

type column struct {
	name    string
	right   bool // aligned
	shorten bool // where the screen is not wide enough: one column at most
}

// leastWidth is what is left of the column that is shortened, however narrow the screen.
const leastWidth = 8

// printTable prints a table, and flushes.
func (s screen) printTable(t table) error {
	if !t.withoutHeader {
		header := make([]string, len(t.columns))
		for k, c := range t.columns {
			header[k] = c.name
		}
		t.rows = append([][]string{header}, t.rows...)
		if t.colours != nil {
			t.colours = append([]colour{plain}, t.colours...)
		}
	}
	widths := s.widths(t)
	for i, row := range t.rows {
		var line strings.Builder
		for k, cell := range row {
			if t.columns[k].shorten {
				cell = shorten(cell, widths[k])
			}
			fill := strings.Repeat(" ", max(0, widths[k]-utf8.RuneCountInString(cell)))
			if k == 0 && t.colours != nil {
				cell = s.paint(t.colours[i], cell)
			}
			if k > 0 {
				line.WriteString("  ")
			}
			if t.columns[k].right {
				line.WriteString(fill + cell)
			} else {
				line.WriteString(cell + fill)
			}
		}
		_, _ = s.WriteString(strings.TrimRight(line.String(), " ") + "\n") // Flush returns the error
	}
	return s.Flush()
}

// widths returns how wide each column is.
func (s screen) widths(t table) []int {
	widths, whole, shortened := make([]int, len(t.columns)), 2*(len(t.columns)-1), -1
	for k, c := range t.columns {
		for _, row := range t.rows {
			widths[k] = max(widths[k], utf8.RuneCountInString(row[k]))
		}
		whole += widths[k]
		if c.shorten {
			shortened = k
		}
	}
	if s.width > 0 && whole > s.width && shortened >= 0 {
		widths[shortened] = max(leastWidth, widths[shortened]-(whole-s.width))
	}
	return widths
}

// shortHash is how much of a store path's hash stays where there is little room.
const shortHash = 6

// shorten fits a text into a width. Of a store path's hash goes what it can spare, for a
// person knows a path by its name; then of the end.
func shorten(text string, width int) string {
	over := utf8.RuneCountInString(text) - width
	if over <= 0 {
		return text
	}
	const hash = 32
	if dash := strings.IndexByte(text, '-'); dash >= hash && strings.LastIndexByte(text[:dash], '/') == dash-hash-1 {
		cut := min(over+1, hash-shortHash) // the ellipsis takes one
		if text = text[:dash-cut] + "…" + text[dash:]; cut > over {
			return text
		}
	}
	runes := []rune(text)
	return string(runes[:max(0, width-1)]) + "…"
}
