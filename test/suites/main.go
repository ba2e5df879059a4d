// SPDX-License-Identifier: Apache-2.0

// Command suites runs suites of tests, each whatever the others did, and ends with a
// table of them. Its exit status is 1 if anything failed.
//
//	suites [-bin DIR] [SUITE...]
//
// It is called in the module's directory, test/, by make, which GO and MAKE tell the
// programs of.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/test/machine"
)

// step is a program that a suite runs: make with a target, or go test.
type step struct {
	target string // of make; empty: go test
	dir    string // relative to this directory
	args   []string
	stack  bool // with the programs of bin/stack on PATH
}

type suite struct {
	name  string
	steps []step // up to the first of make that fails
}

// suites are all, in the order in which they run: the quicker ones first.
func suites(bin string) []suite {
	const most = "-timeout=20m"
	return []suite{
		{"build", []step{{target: "cross"}}},
		{"machine", []step{{dir: ".", args: []string{"./machine/...", "./suites/..."}}}},
		{"unit", []step{{dir: "..", args: []string{"./..."}}}},
		{"e2e", []step{{target: "all"}, {dir: "e2e", args: []string{most, ".", "-args", "-bin", bin}}}},
		{"engines", []step{
			{target: "all"}, {target: "stack"},
			// How runc reads a command line is looked at once more, of that version.
			{dir: "..", args: []string{"-run", "^TestReadings$", "./cmd/nix-closure-runtime"}, stack: true},
			{dir: ".", args: []string{most, "./engines/...", "-args", "-bin", bin}, stack: true},
		}},
	}
}

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

func run(args []string, out io.Writer) int {
	f := flag.NewFlagSet("suites", flag.ContinueOnError)
	bin := f.String("bin", "../bin", "the directory with the programs")
	if f.Parse(args) != nil {
		return 2
	}
	absolute, err := filepath.Abs(*bin)
	if err == nil {
		err = machine.Settle()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	all := suites(absolute)
	wanted := f.Args()
	for _, name := range wanted {
		if !slices.ContainsFunc(all, func(s suite) bool { return s.name == name }) {
			fmt.Fprintf(os.Stderr, "suites: no suite %q\n", name)
			return 2
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var results []result
	for _, s := range all {
		if len(wanted) == 0 || slices.Contains(wanted, s.name) {
			results = append(results, s.run(ctx, absolute, out))
		}
	}
	return report(results, out)
}

// run runs a suite to its end.
func (s suite) run(ctx context.Context, bin string, out io.Writer) result {
	r := result{suite: s.name}
	began := time.Now()
	for _, step := range s.steps {
		if !step.run(ctx, bin, out, &r) {
			break
		}
	}
	r.took = time.Since(began)
	return r
}

// run runs a step, and returns whether the next makes sense.
func (s step) run(ctx context.Context, bin string, out io.Writer, r *result) bool {
	if ctx.Err() != nil {
		r.failed++
		return false
	}
	var cmd *exec.Cmd
	if s.target != "" {
		cmd = exec.CommandContext(ctx, cmp.Or(os.Getenv("MAKE"), "make"), "--no-print-directory", "-C", "..", s.target)
	} else {
		cmd = exec.CommandContext(ctx, cmp.Or(os.Getenv("GO"), "go"), append([]string{"test", "-json", "-count=1"}, s.args...)...)
		cmd.Dir = s.dir
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Stderr = os.Stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PATH=") && s.stack })
	if s.stack {
		cmd.Env = append(cmd.Env, "PATH="+bin+"/stack:"+os.Getenv("PATH"))
	}
	fmt.Fprintf(out, "# %s: %s\n", r.suite, s)
	if s.target != "" {
		cmd.Stdout = out
		err := cmd.Run()
		if err != nil {
			fmt.Fprintf(out, "%s: %v\n", s, err)
			r.failed++
		}
		return err == nil
	}
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(out, "%s: %v\n", s, err)
		r.failed++
		return false
	}
	failed := r.failed
	newReader(out, r).read(events)
	if err := cmd.Wait(); err != nil && r.failed == failed {
		fmt.Fprintf(out, "%s: %v\n", s, err)
		r.failed++
	}
	return true
}

func (s step) String() string {
	if s.target != "" {
		return "make " + s.target
	}
	return "go test " + strings.Join(s.args, " ")
}

// result is what became of a suite.
type result struct {
	suite         string
	tests, failed int
	took          time.Duration
}

// report prints the table, and returns the exit status.
func report(results []result, out io.Writer) (status int) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\nsuite\ttests\tfailed\tseconds\t")
	for _, r := range results {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\t\n", r.suite, r.tests, r.failed, r.took.Seconds())
		if r.failed > 0 {
			status = 1
		}
	}
	_ = w.Flush()
	return status
}
