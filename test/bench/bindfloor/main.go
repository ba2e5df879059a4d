// SPDX-License-Identifier: Apache-2.0

// Command bindfloor measures what bind mode costs for each store path beside the floor of
// this kernel: a C program with the four system calls a path, and nothing else. Both are
// processor time of the thread that mounts, since others who mount meanwhile would make it
// wait.
//
//	go run ./bench/bindfloor -csv FILE
//
// It runs in the directory test, and needs gcc.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/interleaved"
	"github.com/nix-closure/nix-closure/test/testhost"
)

const paths = 1000

func main() {
	file := flag.String("csv", "", "file for the measurements; the times are for 1,000 store paths")
	rounds := flag.Int("rounds", 15, "timed rounds")
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if err := run(*file, *rounds); err != nil {
			fmt.Fprintln(os.Stderr, "bindfloor:", err)
			return 1
		}
		return 0
	}))
}

func run(file string, rounds int) error {
	dir := testhost.Dir()
	floor, hook, store, list := dir+"/floor", dir+"/view.test", dir+"/store", dir+"/names"
	if err := command("gcc", "-O2", "-Wall", "-o", floor, "bench/bindfloor/testdata/floor.c"); err != nil {
		return err
	}
	if err := command("go", "-C", "..", "test", "-c", "-o", hook, "./closure/view"); err != nil {
		return err
	}
	var names strings.Builder
	for i := range paths {
		name := fmt.Sprintf("%032d-package-%d", i, i)
		if err := os.MkdirAll(filepath.Join(store, name), 0o755); err != nil {
			return err
		}
		fmt.Fprintln(&names, name)
	}
	if err := os.WriteFile(list, []byte(names.String()), 0o644); err != nil {
		return err
	}
	column := func(n int) func() (time.Duration, error) {
		return func() (time.Duration, error) { return read(n, "", floor, store, list, "1") }
	}
	cases := []*interleaved.Case{
		{Name: "four system calls a path", Run: column(0)},
		{Name: "with a look at each path", Run: column(1)},
		{Name: "a recursive clone of the whole", Run: column(2)},
		{Name: "bind mode", Run: func() (time.Duration, error) {
			return read(-1, "thread-µs/path", hook, "-test.run", "^$", "-test.bench", "Bind$", "-test.benchtime", "2x")
		}},
	}
	if err := interleaved.Measure(rounds, cases); err != nil {
		return err
	}
	return interleaved.Report(file, "bind mode, 1,000 store paths", cases)
}

func command(name string, args ...string) error {
	if text, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, text)
	}
	return nil
}

// read runs a program, and returns one of the numbers that it prints, in microseconds a
// path, as the time of all paths: the number before a unit, or in a column without one.
func read(column int, unit, program string, args ...string) (time.Duration, error) {
	text, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", program, err, text)
	}
	fields := strings.Fields(string(text))
	for i, f := range fields {
		if f == unit {
			column = i - 1
		}
	}
	if column < 0 || column >= len(fields) {
		return 0, fmt.Errorf("%s: not understood: %s", program, text)
	}
	microseconds, err := strconv.ParseFloat(fields[column], 64)
	return time.Duration(microseconds * paths * float64(time.Microsecond)), err
}
