// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	profileSymbols = 12
	profileStarts  = 60
	podmanStarts   = 15
	// warmWalks is how often files are looked at and read. The first time, the view is new.
	warmWalks = 40
	// How often a second perf looks: for functions, and for programs.
	functionFrequency = 4000
	programFrequency  = 999
)

// measureProfile says where the time goes of what has a target that is hard to reach: the
// programs and the functions with most samples.
func measureProfile(b *bench, _ time.Duration) error {
	if b.perfIsMissing("profile") {
		return nil
	}
	var errs []error
	for _, runtime := range b.runtimes {
		errs = append(errs, b.profileStart(runtime))
	}
	return errors.Join(append(errs, b.profileFiles())...)
}

func (b *bench) perfIsMissing(what string) bool {
	_, missing := exec.LookPath("perf")
	if missing != nil {
		b.absent(&subject{row: speed.Row{Group: "profile", What: what, Variant: "perf"}}, "missing: "+missing.Error())
	}
	return missing != nil
}

// profileStart looks at starts of a closure that has a view already, and at the floor.
func (b *bench) profileStart(runtime string) error {
	s, err := b.newStarter(runtime)
	if err != nil {
		return err
	}
	v := startVariant{name: overlayWarm, paths: usualPaths, bundle: b.host.closure(usualPaths, "overlay", b.host.warm)}
	if err := errors.Join(s.write(v), s.check(v)); err != nil {
		return err
	}
	ours := s.dir(v.name, v.paths, "true")
	row := speed.Row{What: startToExit + ", ", Runtime: runtime}
	floorRow, oursRow := row, row
	floorRow.What += floor
	oursRow.What += overlayWarm
	oursRow.Paths = usualPaths
	err = errors.Join(
		b.programTimes(floorRow, profileStarts, func() (float64, error) { return s.time(s.floor) }),
		b.programTimes(oursRow, profileStarts, func() (float64, error) { return s.time(ours) }))
	if err != nil || runtime != b.runtimes[0] {
		return err
	}
	return b.profile("the hook, overlay, warm", "nix-closure-hoo", usualPaths, func() error {
		for range profileStarts {
			if _, err := s.time(ours); err != nil {
				return err
			}
		}
		return nil
	})
}

// programTimes adds rows of what one of count starts costs, by program.
func (b *bench) programTimes(row speed.Row, count int, start func() (float64, error)) error {
	b.progress.show("programs of %s", row.What)
	data := filepath.Join(b.host.dir, "perf.data")
	defer func() { _ = os.Remove(data) }()
	err := speed.Sample(data, programFrequency, func() error {
		for range count {
			if _, err := start(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	times, err := speed.Programs(data, programFrequency)
	if err != nil {
		return err
	}
	row.Group, row.What = "profile", speed.TimePerProgram+row.What
	b.results.Rows = append(b.results.Rows, speed.ProgramRows(row, times, count)...)
	return nil
}

// profileFiles looks at a program inside that touches each file, for the first time and
// again.
func (b *bench) profileFiles() error {
	d, err := b.filesDisk()
	if err != nil {
		return err
	}
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	c := b.host.closure(usualPaths, "overlay", b.host.warm)
	c.annotations["nix-closure/roots"] = d.roots
	c.mounts = []mount{{Destination: "/lists", Type: "none", Source: d.dir, Options: []string{"rbind", "ro"}}}
	script := `mount -o loop,ro,noatime "$3" "$4" && xargs cat <"$5/read" >/dev/null
		i=0; while [ $i -lt $6 ]; do "$0" --root "$1" run --bundle "$2" profile-files-$i >/dev/null; i=$((i+1)); done`
	profile := func(name string, containers int, walk []string) error {
		dir := s.dir("profile "+name, usualPaths, "walk")
		if err := c.write(dir, append([]string{"/bin/walk"}, walk...)...); err != nil {
			return err
		}
		cmd := unshared("/bin/sh", "-euc", script, s.runtime.path, s.runtime.root, dir, d.image, storeDir, d.dir,
			strconv.Itoa(containers))
		return b.profile(statAndRead+name+", overlay", "walk", usualPaths, func() error {
			_, err := timeCommand(cmd)
			return err
		})
	}
	once := []string{"stat", "/lists/stat", "read", "/lists/read"}
	return errors.Join(profile(freshView, 5, once), profile(warmFiles, 1, slices.Repeat(once, warmWalks)))
}

// sample is a line of perf report: its part in percent, where, and the function.
var sample = regexp.MustCompile(`^\s*([0-9.]+)%\s+\[(.)\] (\S+)`)

// profile samples what f does, and adds a row for each function of one program.
func (b *bench) profile(what, program string, paths int, f func() error) error {
	b.progress.show("profile of %s", what)
	data := filepath.Join(b.host.dir, "perf.data")
	defer func() { _ = os.Remove(data) }()
	if err := speed.Sample(data, functionFrequency, f); err != nil {
		return err
	}
	text, err := speed.Report(data, "--percentage", "relative", "--sort", "symbol", "--comms", program)
	if err != nil {
		return err
	}
	parts, err := functions(text)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("perf has no sample of %s: %.300s", program, text)
	}
	for i, name := range slices.SortedFunc(maps.Keys(parts), func(a, c string) int {
		return cmp.Or(cmp.Compare(parts[c], parts[a]), cmp.Compare(a, c))
	}) {
		if i == profileSymbols {
			break
		}
		row := speed.Row{Group: "profile", What: what, Variant: name, Paths: paths, Runtime: b.runtimes[0], Unit: "%"}
		b.results.Rows = append(b.results.Rows, row.Summary([]float64{parts[name]}, nil))
	}
	return nil
}

// functions returns the percentage of each function in a report. A program without symbols
// is one function.
func functions(report string) (map[string]float64, error) {
	parts := map[string]float64{}
	for line := range strings.Lines(report) {
		fields := sample.FindStringSubmatch(line)
		if fields == nil {
			continue
		}
		percent, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return nil, err
		}
		name := fields[3]
		switch inKernel := fields[2] == "k"; {
		case inKernel:
			name = "the kernel's " + name
		case strings.HasPrefix(name, "0x"):
			name = "the program itself"
		}
		parts[name] += percent
	}
	return parts, nil
}
