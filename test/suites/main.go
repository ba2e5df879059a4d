// SPDX-License-Identifier: Apache-2.0

// Command suites runs suites of tests, each whatever became of the others, and prints a
// table of them at the end. Its exit status is 1 if anything failed, was skipped or was
// not built.
//
//	suites [-bin DIR] [SUITE...]
//
// make calls it in the directory test. The programs that it calls are $GO and $MAKE.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/settle"
)

// suite is a row of the table.
type suite struct {
	name  string
	steps []step // to the first that prepares and fails
}

// step is a program that a suite runs: one that prepares, or go test.
type step struct {
	prepare []string // empty: go test
	dir     string   // in which go test runs
	args    []string // of go test
	path    string   // a directory that comes first in PATH
}

// allSuites are in the order in which they run: the quicker ones first.
func allSuites(bin string) []suite {
	target := func(name string) step {
		return step{prepare: []string{cmp.Or(os.Getenv("MAKE"), "make"), "--no-print-directory", "-C", "..", name}}
	}
	return []suite{
		{"programs", []step{{prepare: []string{"./install.sh", "test"}}, target("all"), target("cross")}},
		{"unit", []step{{dir: "..", args: []string{"./..."}}}},
		{"machine", []step{{dir: ".", args: []string{"./testhost", "./suites", "./speed", "./bench"}}}},
		{"packages", []step{
			target("dist"),
			{dir: ".", args: []string{"./packages", "-args", "-bin", bin}},
		}},
		{"e2e", []step{
			target("all"),
			{dir: "e2e", args: []string{"-timeout=60m", ".", "-args", "-bin", bin}},
		}},
		{"engines", []step{
			target("all"), target("stack"),
			// How runc reads a command line is tested once more, with that version.
			{dir: "..", args: []string{"-run", "^TestReadings$", "./cmd/nix-closure-runtime"}, path: bin + "/stack"},
			{dir: ".", args: []string{"-timeout=25m", "./engines", "-args", "-bin", bin}},
		}},
	}
}

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

func run(args []string, out *os.File) int {
	f := flag.NewFlagSet("suites", flag.ContinueOnError)
	f.SetOutput(out)
	bin := f.String("bin", "../bin", "the directory with the programs")
	if f.Parse(args) != nil {
		return 2
	}
	absolute, err := filepath.Abs(*bin)
	if err != nil {
		_, _ = fmt.Fprintf(out, "suites: %v\n", err)
		return 2
	}
	suites := allSuites(absolute)
	if f.NArg() > 0 {
		if suites, err = named(suites, f.Args()); err != nil {
			_, _ = fmt.Fprintf(out, "suites: %v\n", err)
			return 2
		}
	}
	if err := settle.Settle(); err != nil {
		_, _ = fmt.Fprintf(out, "suites: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return report(runAll(ctx, suites, out), out)
}

// named returns the suites of these names.
func named(all []suite, names []string) (chosen []suite, _ error) {
	for _, name := range names {
		i := slices.IndexFunc(all, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no suite %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// result is what became of a suite.
type result struct {
	suite         string
	tests, failed int
	took          time.Duration
}

func runAll(ctx context.Context, suites []suite, out *os.File) (results []result) {
	for _, s := range suites {
		r := result{suite: s.name}
		began := time.Now()
		for _, step := range s.steps {
			if !step.run(ctx, out, &r) {
				break
			}
		}
		r.took = time.Since(began)
		results = append(results, r)
	}
	return results
}

// run runs a step, and returns whether the next one makes sense.
func (s step) run(ctx context.Context, out *os.File, r *result) bool {
	_, _ = fmt.Fprintf(out, "# %s: %s\n", r.suite, s)
	before := r.failed
	var err error
	if len(s.prepare) > 0 {
		cmd := command(ctx, out, s.prepare)
		cmd.Stdout = out
		err = cmd.Run()
	} else {
		err = s.test(ctx, out, r)
	}
	if err == nil {
		return true
	}
	_, _ = fmt.Fprintf(out, "%s: %s: %v\n", r.suite, s, err)
	if r.failed == before {
		r.failed++
	}
	return len(s.prepare) == 0
}

// test runs go test.
func (s step) test(ctx context.Context, out *os.File, r *result) error {
	cmd := command(ctx, out, append([]string{cmp.Or(os.Getenv("GO"), "go"), "test", "-json", "-count=1"}, s.args...))
	cmd.Dir = s.dir
	if s.path != "" {
		cmd.Env = append(os.Environ(), "PATH="+s.path+":"+os.Getenv("PATH"))
	}
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := &count{}
	stop := progress(out, r.suite, c)
	newReader(out, r, c).read(events)
	stop()
	return cmd.Wait()
}

// command is a program that ends when the context does. In a process group of its own,
// it does not end with the terminal when nohup started this program.
func command(ctx context.Context, out *os.File, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// everySoOften is how often a suite says how far it is.
const everySoOften = time.Minute

// progress says how many tests have ended, until stop is called.
func progress(out *os.File, suite string, c *count) (stop func()) {
	began := time.Now()
	ticker := time.NewTicker(everySoOften)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			c.Lock()
			tests, failed := c.tests, c.failed
			c.Unlock()
			_, _ = fmt.Fprintf(out, "# %s: %d tests, %d failed in %v\n",
				suite, tests, failed, time.Since(began).Round(time.Second))
		}
	}()
	return func() {
		ticker.Stop()
		close(done)
	}
}

func (s step) String() string {
	if len(s.prepare) > 0 {
		return strings.Join(s.prepare, " ")
	}
	return "go test " + strings.Join(s.args, " ")
}

// report prints the table, and returns the exit status.
func report(results []result, out *os.File) (status int) {
	_, _ = fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "suite\ttests\tfailed\tseconds")
	for _, r := range results {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\n", r.suite, r.tests, r.failed, r.took.Seconds())
		if r.failed > 0 {
			status = 1
		}
	}
	_ = w.Flush()
	return status
}
