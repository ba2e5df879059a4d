// SPDX-License-Identifier: Apache-2.0

// Command bench measures what nix-closure costs, beside the other ways to give a container
// its store paths.
//
//	bench -bin DIR -csv FILE [-quick] [-groups NAME,…]   measure, print a table and write the rows
//	bench -check OLD -csv FILE                           compare the ratios of two runs
//	bench -page DIR -csv FILE                            write speed.md, its rows and its charts
//
// It measures what containers cost by itself, in a machine of its own, and pods by the
// tests of ../engines. What fails is named and does not end the others; the exit status
// is then 1.
//
// Each group of rows has a file: start.go, podman.go, first.go and so on. measure.go says
// how values are taken, targets.go what is promised.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// groups are in the order in which they are measured.
var groups = []group{
	{name: "start", quick: true, budget: 180 * time.Second, measure: measureStart},
	{name: "podman", budget: 150 * time.Second, measure: measurePodman},
	{name: "first", budget: 60 * time.Second, measure: measureFirst},
	{name: "resolve", quick: true, budget: 40 * time.Second, measure: measureResolve},
	{name: "files", budget: 60 * time.Second, measure: measureFiles},
	{name: "memory", budget: 120 * time.Second, measure: measureMemory},
	{name: "remove", quick: true, budget: 30 * time.Second, measure: measureRemove},
	{name: "mountinfo", quick: true, budget: 10 * time.Second, measure: measureMountinfo},
	{name: "unannotated", quick: true, budget: 40 * time.Second, measure: measureUnannotated},
	{name: "hook", budget: 40 * time.Second, measure: measureHook},
	{name: "profile", budget: 30 * time.Second, measure: measureProfile},
}

// pods is the group that the tests of ../engines measure.
const pods = "pods"

type options struct {
	bin, csv    string
	with        string
	check, page string
	quick       bool
	inside      bool
	groups      string
	storeSize   int
	tolerance   float64
	sizes       []int
	runs        int
}

// bench is one run.
type bench struct {
	host     *host
	disk     *filesDisk // made by the first group that needs it
	progress *progress
	results  *speed.Results
	failures []string
	stop     chan os.Signal
	runtimes []string
	sizes    []int
	// Each row has the fewest values at least, and more until the group's budget is used.
	fewest, runs int
	quick        bool
	filesRoot    string
	filesPaths   []string
}

func main() {
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if o.inside {
		os.Exit(testhost.RunOnDisk(func() int { return status(o.measureInside()) }))
	}
	switch {
	case o.check != "":
		err = compare(o.check, o.csv, o.tolerance)
	case o.page != "":
		err = writePage(o.csv, o.page)
	default:
		err = o.measureAll()
	}
	os.Exit(status(err))
}

func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func parse() (*options, error) {
	var o options
	flag.StringVar(&o.bin, "bin", "", "directory of nix-closure's programs, and of stack/")
	flag.StringVar(&o.csv, "csv", "", "file of the rows")
	flag.StringVar(&o.with, "with", "", "files of other programs that measure, whose rows are added: FILE,…")
	flag.BoolVar(&o.quick, "quick", false, "less than two minutes: fewer sizes, and only what needs no engine")
	flag.StringVar(&o.groups, "groups", "", "measure these groups only: NAME,…")
	flag.StringVar(&o.check, "check", "", "compare the ratios with those of this file")
	flag.Float64Var(&o.tolerance, "tolerance", 0.15, "how much greater a ratio may be, as a part of the old one")
	flag.StringVar(&o.page, "page", "", "write the page and the charts into this directory")
	flag.IntVar(&o.runs, "runs", 40, "most values of a row; those that are slow have 15")
	flag.BoolVar(&o.inside, "inside", false, "measure in a machine; for the program itself")
	flag.Parse()
	if o.csv == "" || flag.NArg() > 0 || o.runs < fewest || (o.check == "" && o.page == "" && o.bin == "") {
		return nil, fmt.Errorf("usage: bench -bin DIR -csv FILE [-quick] [-groups NAME,…] [-runs N], N at least %d; "+
			"or bench -check OLD -csv FILE; or bench -page DIR -csv FILE", fewest)
	}
	for _, path := range []*string{&o.bin, &o.csv} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = absolute
	}
	o.sizes, o.storeSize = []int{10, 100, 1000, 5000, 20000}, 30000
	if o.quick {
		o.sizes, o.storeSize, o.runs = []int{100, 1000}, 3000, fewest
	}
	return &o, nil
}

// wants says whether a group is to be measured.
func (o *options) wants(name string, quick bool) bool {
	if o.groups != "" {
		return slices.Contains(strings.Split(o.groups, ","), name)
	}
	return quick || !o.quick
}

// measureAll measures everything, each part in a process of its own, and reports.
func (o *options) measureAll() error {
	began := time.Now()
	all := &speed.Results{Facts: facts(o.bin)}
	var errs []error
	part := func(name string, cmd *exec.Cmd, file string) {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // the tables come when all is measured
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		rows, err := speed.Read(file)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			return
		}
		all.Merge(rows)
		errs = append(errs, os.Remove(file))
	}
	// A signal of the terminal reaches the parts too: they end, and this reports.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	if slices.ContainsFunc(groups, func(g group) bool { return o.wants(g.name, g.quick) }) {
		file := o.csv + ".containers"
		part("containers", exec.Command("/proc/self/exe", append(os.Args[1:], "-inside", "-csv", file)...), file)
	}
	if o.wants(pods, false) {
		file := o.csv + ".pods"
		cmd := exec.Command("go", "test", "-v", "-count=1", "-timeout=60m", "-run=^TestPodSpeed$", "./engines", "-args",
			"-bin", o.bin, "-speed", file)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(o.bin, "stack")+":"+os.Getenv("PATH"))
		part(pods, cmd, file)
	}
	for _, file := range strings.FieldsFunc(o.with, func(r rune) bool { return r == ',' }) {
		rows, err := speed.Read(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all.Merge(rows)
	}
	all.Facts = append(all.Facts, speed.Fact{Name: "run", Value: fmt.Sprintf("%s, in %.0f minutes",
		began.UTC().Format(time.DateOnly), time.Since(began).Minutes())})
	printTables(os.Stdout, all)
	printTargets(os.Stdout, all)
	errs = append(errs, all.Write(o.csv))
	if failed := failures(all); len(failed) > 0 {
		fmt.Printf("\nFAILED:\n  %s\n", strings.Join(failed, "\n  "))
		errs = append(errs, fmt.Errorf("%d rows could not be measured", len(failed)))
	}
	return errors.Join(errs...)
}

// measureInside measures the groups of this program, in a machine.
func (o *options) measureInside() (Err error) {
	p := newProgress()
	defer p.clear()
	p.start("preparing")
	b := &bench{progress: p, results: &speed.Results{}, stop: make(chan os.Signal, 1), sizes: o.sizes,
		fewest: fewest, runs: o.runs, quick: o.quick}
	signal.Notify(b.stop, os.Interrupt, syscall.SIGTERM)
	defer func() { Err = errors.Join(Err, b.results.Write(o.csv)) }()
	for _, name := range []string{"crun", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			b.absent(&subject{row: speed.Row{Group: "start", What: startToExit, Variant: "all", Runtime: name}},
				"missing: "+err.Error())
			continue
		}
		b.runtimes = append(b.runtimes, name)
	}
	if len(b.runtimes) == 0 {
		return errors.New("there is neither crun nor runc")
	}
	var err error
	if b.host, err = newHost(o.bin, o.storeSize, o.sizes, p); err != nil {
		return err
	}
	for _, g := range groups {
		if !o.wants(g.name, g.quick) {
			continue
		}
		p.start(g.name)
		budget := g.budget
		if o.quick {
			budget = 0
		}
		err := b.measureGroup(g, budget)
		b.fewest, b.runs = fewest, o.runs
		if errors.Is(err, errStopped) {
			return err
		}
		if err != nil {
			b.failed(speed.Row{Group: g.name, What: "all", Variant: "all"}, err)
		}
		// What ends this program later does not take the rows along.
		if err := b.results.Write(o.csv); err != nil {
			return err
		}
	}
	return nil
}

// measureGroup ends with an error, whatever the group does.
func (b *bench) measureGroup(g group, budget time.Duration) (err error) {
	defer func() {
		if broken := recover(); broken != nil {
			stack := make([]byte, 4096)
			err = fmt.Errorf("%v: %s", broken, stack[:runtime.Stack(stack, false)])
		}
	}()
	return g.measure(b, budget)
}

// failures are the rows that should be there.
func failures(r *speed.Results) (names []string) {
	for _, row := range r.Rows {
		if row.N == 0 && strings.HasPrefix(row.Note, "failed: ") {
			names = append(names, row.Name()+": "+row.Note)
		}
	}
	return names
}
