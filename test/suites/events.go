// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
	FailedBuild                               string
}

// reader makes of the events of go test what go test prints without -json, and counts.
type reader struct {
	out    io.Writer
	result *result
	// said is what tests said that have not ended, by package and test.
	said map[string]*strings.Builder
	// parents are the tests that have tests below them, failed those that failed below
	// a test, and broken the packages in which a test failed.
	parents, failed, broken map[string]bool
}

func newReader(out io.Writer, r *result) *reader {
	return &reader{
		out: out, result: r, said: map[string]*strings.Builder{},
		parents: map[string]bool{}, failed: map[string]bool{}, broken: map[string]bool{},
	}
}

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

func (r *reader) note(e event) {
	test := e.Package + " " + e.Test
	switch {
	case e.Action == "build-output":
		_, _ = io.WriteString(r.out, e.Output)
	case e.Test == "":
		r.notePackage(e)
	case e.Action == "run":
		for parent := test; ; {
			slash := strings.LastIndexByte(parent, '/')
			if slash < len(e.Package) {
				break
			}
			parent = parent[:slash]
			r.parents[parent] = true
		}
	case e.Action == "output":
		r.noteOutput(test, e.Output)
	case e.Action == "pass", e.Action == "skip", e.Action == "fail":
		r.noteEnd(test, e)
	}
}

// notePackage prints what is said of a package as a whole, and what its tests say to
// nobody: its closing line, and of a program that ended in the middle, why.
func (r *reader) notePackage(e event) {
	switch e.Action {
	case "output":
		if e.Output != "PASS\n" {
			_, _ = io.WriteString(r.out, e.Output)
		}
	case "fail":
		// A program that could not be built, or that ended before its tests.
		for test, said := range r.said {
			if strings.HasPrefix(test, e.Package+" ") {
				_, _ = io.WriteString(r.out, said.String())
				delete(r.said, test)
			}
		}
		if !r.broken[e.Package] {
			r.result.failed++
		}
	}
}

// noteOutput keeps what belongs to a test until it is known whether it fails. What a
// test prints, and does not log, is for who looks on.
func (r *reader) noteOutput(test, output string) {
	if strings.HasPrefix(output, "=== ") {
		return
	}
	isLog := strings.HasPrefix(output, "    ") || strings.HasPrefix(strings.TrimLeft(output, " "), "--- ")
	if !isLog {
		_, _ = io.WriteString(r.out, output)
		return
	}
	if r.said[test] == nil {
		r.said[test] = &strings.Builder{}
	}
	r.said[test].WriteString(output)
}

// noteEnd counts a test that has none below it. One with others below counts if it
// fails and none of those does.
func (r *reader) noteEnd(test string, e event) {
	if said := r.said[test]; said != nil && (e.Action == "fail" || e.Action == "skip") {
		_, _ = io.WriteString(r.out, said.String())
	}
	delete(r.said, test)
	if !r.parents[test] {
		r.result.tests++
	}
	if e.Action != "fail" {
		return
	}
	r.broken[e.Package] = true
	if !r.failed[test] {
		r.result.failed++
	}
	if slash := strings.LastIndexByte(test, '/'); slash > len(e.Package) {
		r.failed[test[:slash]] = true
	}
}

// String is for a message.
func (r result) String() string { return fmt.Sprintf("%s: %d tests, %d failed", r.suite, r.tests, r.failed) }
