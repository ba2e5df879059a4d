// SPDX-License-Identifier: Apache-2.0

// Command bench measures what the hook adds to the start of a container: whole
// runs of crun and runc, with the store bound whole, with the hook in each of
// its modes, and with one mount for each store path.
//
// Read bundle.go for what is run, cases.go for what is compared, measure.go for
// how, and figures.go for what is promised.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/nix-closure/nix-closure/test/machine"
	"github.com/nix-closure/nix-closure/test/synthetic"
)

type options struct {
	bin, csv string
	runs     int
	sizes    []int
	store    int
	runtimes []string
}

func main() {
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	os.Exit(machine.RunOnDisk(func() int {
		if err := o.run(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

func parse() (*options, error) {
	var o options
	flag.StringVar(&o.bin, "bin", "", "directory of nix-closure-hook and nix-closure")
	flag.StringVar(&o.csv, "csv", "", "file for the measurements")
	flag.IntVar(&o.runs, "runs", 100, "timed runs of each variant; slow ones have fewer")
	flag.IntVar(&o.store, "store", 30000, "store paths on the host")
	sizes := flag.String("sizes", "100,1000,5000,20000", "store paths of a container")
	runtimes := flag.String("runtimes", "crun,runc", "runtimes to measure with")
	flag.Parse()
	if o.bin == "" || o.csv == "" || flag.NArg() > 0 || o.runs < 1 {
		return nil, errors.New("usage: bench -bin DIR -csv FILE [-runs N] [-sizes N,…] [-store N] " +
			"[-runtimes NAME,…]")
	}
	for field := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || n > o.store {
			return nil, fmt.Errorf("-sizes: %q is not a number from 1 to the size of the store", field)
		}
		o.sizes = append(o.sizes, n)
	}
	slices.Sort(o.sizes)
	o.sizes = slices.Compact(o.sizes)
	o.runtimes = strings.Split(*runtimes, ",")
	return &o, nil
}

func (o *options) run() error {
	p := newProgress()
	defer p.clear()
	h, err := o.prepare(p)
	if err != nil {
		return err
	}
	r := &results{runtimes: o.runtimes, sizes: o.sizes}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	var runtimes []*containerRuntime
	for _, name := range o.runtimes {
		c, err := findRuntime(name, h.dir, stop)
		if err != nil {
			return err
		}
		cases, err := h.makeCases(c, o.sizes)
		if err != nil {
			return err
		}
		runtimes = append(runtimes, c)
		r.cases = append(r.cases, cases...)
	}
	if err := check(r.cases, p); err != nil {
		return err
	}
	if r.bare, err = h.measureBare(p); err != nil {
		return err
	}
	if slices.Contains(o.sizes, memoryPaths) {
		if r.resolving, err = h.measureResolve(p); err != nil {
			return err
		}
		if r.peaks, err = h.measureMemory(runtimes[0], memoryPaths, p); err != nil {
			return err
		}
	}
	if slices.Contains(o.sizes, usualPaths) {
		if r.verified, err = h.measureVerify(runtimes[0], usualPaths, p); err != nil {
			return err
		}
	}
	if err := measure(slices.Clone(r.cases), o.runs, p); err != nil {
		return err
	}
	p.clear()
	r.printTable()
	r.printFigures()
	return r.writeCSV(o.csv)
}

// prepare makes the programs, the image, the configurations and the store.
func (o *options) prepare(p *progress) (*host, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	h := &host{dir: machine.Dir(), hook: filepath.Join(bin, "nix-closure-hook")}
	if _, err := os.Stat(h.hook); err != nil {
		return nil, err
	}
	p.show("building programs")
	if h.programs, err = buildPrograms(filepath.Join(h.dir, "programs")); err != nil {
		return nil, err
	}
	h.image = filepath.Join(h.dir, "image")
	if err := makeImage(h.image, h.programs); err != nil {
		return nil, err
	}
	if h.warm, err = makeHookConfig(filepath.Join(h.dir, "warm.toml"), "/run/nix-closure"); err != nil {
		return nil, err
	}
	if h.cold, err = makeHookConfig(filepath.Join(h.dir, "cold.toml"), "/run/nix-closure-cold"); err != nil {
		return nil, err
	}
	p.show("making a store of %d paths", o.store)
	h.store, err = synthetic.Make(o.store, o.sizes)
	return h, err
}
