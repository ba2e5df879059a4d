// SPDX-License-Identifier: Apache-2.0

package speed

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// Sample records with perf-record(1) what runs on all processors while f runs, so many
// times a second.
func Sample(file string, frequency int, f func() error) error {
	// perf begins before it starts a command. So when cat answers, perf has begun; and when
	// cat has nothing more to read, perf ends.
	cmd := exec.Command("perf", "record", "--quiet", "--all-cpus", "--event", "cpu-clock",
		"--strict-freq", "--freq", strconv.Itoa(frequency), "--output", file, "--", "cat")
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = in.Write([]byte("\n"))
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, 1))
	}
	if err == nil {
		err = f()
	}
	err = errors.Join(err, in.Close())
	if ended := cmd.Wait(); ended != nil {
		err = errors.Join(err, fmt.Errorf("perf record: %w: %.300s", ended, &said))
	}
	return err
}

// Report returns a report of a recording, without a header.
func Report(file string, options ...string) (string, error) {
	cmd := exec.Command("perf", append([]string{"report", "--stdio", "--no-children", "--input", file}, options...)...)
	var said strings.Builder
	cmd.Stderr = &said
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("perf report: %w: %.300s", err, &said)
	}
	return string(text), nil
}

// longNames are programs whose names the kernel cuts after 15 characters.
var longNames = []string{"nix-closure-hook", "nix-closure-runtime", "containerd-shim-runc-v2"}

// Programs returns the milliseconds that each program spent on a processor. What follows a
// colon in a name tells only which part of the program it is.
func Programs(file string, frequency int) (map[string]float64, error) {
	text, err := Report(file, "--sort", "comm", "--fields", "sample,comm")
	if err != nil {
		return nil, err
	}
	times := map[string]float64{}
	for line := range strings.Lines(text) {
		count, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		samples, err := strconv.ParseFloat(count, 64)
		if !ok || err != nil {
			continue // the header
		}
		name, _, _ = strings.Cut(strings.TrimSpace(name), ":")
		if i := slices.IndexFunc(longNames, func(long string) bool { return long[:15] == name }); i >= 0 {
			name = longNames[i]
		}
		times[name] += samples * 1000 / float64(frequency)
	}
	delete(times, "swapper") // the idle processor
	if len(times) == 0 {
		return nil, fmt.Errorf("perf report: no samples: %.300s", text)
	}
	return times, nil
}

// TimePerProgram begins what the rows by program are of.
const TimePerProgram = "time on a processor, by program: "

// ProgramRows returns rows of what one of count starts costs on a processor: a row for each
// program that took a hundredth of the whole, one for the others together, and one for the
// sum.
func ProgramRows(row Row, times map[string]float64, count int) []Row {
	var rows []Row
	add := func(program string, ms float64) {
		row.Variant, row.Unit = program, "ms"
		rows = append(rows, row.Summary([]float64{ms / float64(count)}, nil))
	}
	sum := 0.0
	for _, ms := range times {
		sum += ms
	}
	others := 0.0
	for _, name := range slices.SortedFunc(maps.Keys(times), func(a, b string) int {
		return cmp.Or(cmp.Compare(times[b], times[a]), cmp.Compare(a, b))
	}) {
		if times[name] < sum/100 {
			others += times[name]
			continue
		}
		add(name, times[name])
	}
	add("all others", others)
	add("all", sum)
	return rows
}
