// SPDX-License-Identifier: Apache-2.0

// Command startcost counts what the hook does at a container's start and end: the system
// calls, by what they are for (strace), and the page faults and the time on a processor, as
// the kernel counts them. Beside them stands a program that does nothing, in the hook's
// place: what remains is the hook's own. With -before, an older build is counted in the same
// run.
//
// It starts containers with runc in a machine of the tests, from a closure of 1,000 paths
// that the hook remembers.
package main

import (
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/stores/synthetic"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// paths is the size of the closure, and storePaths of the host's store.
const (
	paths      = 1000
	storePaths = 5000
)

func main() {
	bin := flag.String("bin", "", "directory of nix-closure-hook and nix-closure")
	before := flag.String("before", "", "directory of older ones, to compare with")
	name := flag.String("before-name", "before", "what the older ones are called")
	file := flag.String("csv", "", "file for the rows")
	page := flag.String("page", "", "Markdown file for the table")
	flag.Parse()
	if *bin == "" || *file == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: startcost -bin DIR -csv FILE [-page FILE] [-before DIR [-before-name NAME]]")
		os.Exit(2)
	}
	os.Exit(testhost.RunOnDisk(func() int {
		if err := run(*bin, *before, *name, *file, *page); err != nil {
			fmt.Fprintln(os.Stderr, "startcost:", err)
			return 1
		}
		return 0
	}))
}

func run(bin, before, name, file, page string) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	all := []program{{name: "an empty program", argv: []string{h.empty}, env: "LC_ALL=C"}}
	builds := []struct{ name, dir, env string }{{name, before, "LC_ALL=C"}, {"now", bin, "GOMAXPROCS=1"}}
	for i, b := range builds {
		if b.dir == "" {
			continue
		}
		dir := filepath.Join(h.dir, b.name)
		err := programs.Install(dir, filepath.Join(b.dir, "nix-closure-hook"), filepath.Join(b.dir, "nix-closure"))
		if err != nil {
			return err
		}
		config := dir + "/config.toml"
		text := fmt.Sprintf("runtime-dir = \"/run/nix-closure-%d\"\n", i)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
		all = append(all,
			program{b.name, []string{dir + "/nix-closure-hook", "--config", config}, b.env})
	}
	var rows []row
	for _, k := range kinds {
		for _, p := range all {
			counted, err := h.count(p, k)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", p.name, k.name, err)
			}
			rows = append(rows, counted...)
		}
	}
	return errors.Join(writeCSV(file, rows), writePage(page, rows))
}

// row is one figure: how often a build of the hook does something at a stage.
type row struct {
	kind, stage, program, what string
	count                      int
}

func writeCSV(file string, rows []row) (Err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { Err = errors.Join(Err, f.Close()) }()
	lines := [][]string{{"container", "stage", "program", "what", "count"}}
	for _, r := range rows {
		lines = append(lines, []string{r.kind, r.stage, r.program, r.what, strconv.Itoa(r.count)})
	}
	return csv.NewWriter(f).WriteAll(lines)
}

// newHost makes the store, the image and the programs.
func newHost() (*host, error) {
	h := &host{dir: testhost.Dir()}
	h.empty, h.observe = h.dir+"/empty", h.dir+"/observe"
	if err := programs.Build(h.dir, "empty", "observe"); err != nil {
		return nil, err
	}
	store, err := synthetic.Make(storePaths, []int{paths})
	if err != nil {
		return nil, err
	}
	h.root = store.Root(paths)
	return h, h.makeImage()
}
