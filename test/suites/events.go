// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// event is a line of go test -json, see go doc test2json and go help buildjson.
type event struct {
	Action, Package, Test, Output string
}

// reader prints of go test -json what go test prints without it, as soon as it is known,
// and what tests print themselves. It counts the tests.
type reader struct {
	out    io.Writer
	count  *count
	result *result
	// held are the messages of tests that have not ended.
	held map[name]*messages
	// parents have subtests, failedBelow have subtests that failed.
	parents, failedBelow map[name]bool
	// failed are the packages with a test that failed.
	failed map[string]bool
}

// name is of a test.
type name struct{ pkg, test string }

// messages are what a test logs, and below it the report on how it ended.
type messages struct {
	log, report strings.Builder
	inLog       bool // the last line belongs to the log
}

// count is how many tests have ended, for who reads it meanwhile.
type count struct {
	sync.Mutex
	tests, failed int
}

func newReader(out io.Writer, r *result, c *count) *reader {
	return &reader{
		out: out, count: c, result: r, held: map[name]*messages{},
		parents: map[name]bool{}, failedBelow: map[name]bool{}, failed: map[string]bool{},
	}
}

// read reads events to their end. A line that is no event is printed.
func (r *reader) read(events io.Reader) {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.note(e)
			} else {
				_, _ = r.out.Write(line)
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *reader) print(text string) { _, _ = io.WriteString(r.out, text) }

func (r *reader) note(e event) {
	test := name{e.Package, e.Test}
	switch {
	case e.Action == "build-output":
		r.print(e.Output)
	case e.Test == "":
		r.notePackage(e)
	case e.Action == "run":
		markParents(r.parents, test)
	case e.Action == "output":
		r.noteOutput(test, e.Output)
	case e.Action == "pass", e.Action == "skip", e.Action == "fail":
		r.noteEnd(test, e.Action)
	}
	r.count.Lock()
	defer r.count.Unlock()
	r.count.tests, r.count.failed = r.result.tests, r.result.failed
}

// markParents marks all tests that a test is a subtest of.
func markParents(marks map[name]bool, test name) {
	for {
		slash := strings.LastIndexByte(test.test, '/')
		if slash < 0 {
			return
		}
		test.test = test.test[:slash]
		marks[test] = true
	}
}

// notePackage prints what is said about a package as a whole.
func (r *reader) notePackage(e event) {
	switch e.Action {
	case "output":
		if e.Output != "PASS\n" {
			r.print(e.Output)
		}
	case "fail":
		// The program was not built, or it ended outside of a test or in the middle of one.
		for _, test := range slices.SortedFunc(maps.Keys(r.held), byName) {
			if test.pkg == e.Package {
				r.print(r.held[test].String())
				delete(r.held, test)
			}
		}
		if !r.failed[e.Package] {
			r.result.failed++
		}
	}
}

func byName(a, b name) int { return strings.Compare(a.test, b.test) }

var (
	reportLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): `)
	// logLine begins what testing.T logs; further lines of it have four spaces more.
	logLine = regexp.MustCompile(`^ {4}[^ ]+:\d+: `)
)

// noteOutput holds what a test logs until it is known whether the test fails. What a
// test prints is shown at once.
func (r *reader) noteOutput(test name, output string) {
	if strings.HasPrefix(output, "=== ") {
		return
	}
	m := r.held[test]
	if m == nil {
		m = &messages{}
		r.held[test] = m
	}
	if reportLine.MatchString(output) {
		m.report.WriteString(output)
		return
	}
	m.inLog = logLine.MatchString(output) || m.inLog && strings.HasPrefix(output, "        ")
	if m.inLog {
		m.log.WriteString(output)
	} else {
		r.print(output)
	}
}

// String is in the order in which go test prints it.
func (m *messages) String() string { return m.report.String() + m.log.String() }

// noteEnd counts a test. One that has subtests counts if it fails and none of them does.
// A skipped test counts as failed: it did not test.
func (r *reader) noteEnd(test name, action string) {
	m := r.held[test]
	delete(r.held, test)
	if !r.parents[test] {
		r.result.tests++
	}
	if action == "pass" {
		return
	}
	if m != nil {
		r.print(m.String())
	}
	if action == "skip" {
		r.print(fmt.Sprintf("%s: skipped, and no test may be: install or allow what it needs\n", test.test))
	} else {
		r.failed[test.pkg] = true
	}
	if !r.failedBelow[test] {
		r.result.failed++
	}
	markParents(r.failedBelow, test)
}
