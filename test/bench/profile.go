// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	profileSymbols = 12
	profileStarts  = 60
)

// measureProfile says where the time goes of what has a target that is hard to reach: the
// functions with most samples.
func measureProfile(b *bench, _ time.Duration) error {
	_, missing := exec.LookPath("perf")
	if missing == nil {
		return errors.Join(b.profileStart(), b.profileFiles())
	}
	b.absent(&subject{row: speed.Row{Group: "profile", What: "all", Variant: "perf"}}, "missing: "+missing.Error())
	return nil
}

// profileStart looks at the hook, in starts of a closure that has a view already.
func (b *bench) profileStart() error {
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	v := startVariant{name: overlayWarm, paths: usualPaths, bundle: b.host.closure(usualPaths, "overlay", b.host.warm)}
	if err := errors.Join(s.write(v), s.check(v)); err != nil {
		return err
	}
	loop := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do "$0" --root %s run --bundle "$1" profile-$i; i=$((i+1)); done`,
		profileStarts, s.runtime.root)
	return b.profile("the hook, overlay, warm", "nix-closure-hoo", usualPaths, exec.Command("/bin/sh", "-euc", loop,
		s.runtime.path, s.dir(v.name, v.paths, "true")))
}

// profileFiles looks at a program inside that touches each file for the first time.
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
	dir := s.dir("profile", usualPaths, "walk")
	if err := c.write(dir, "/bin/walk", "stat", "/lists/stat", "read", "/lists/read"); err != nil {
		return err
	}
	script := fmt.Sprintf(`mount -o loop,ro,noatime %s %s && xargs cat <%s/read >/dev/null
		for i in 1 2 3 4 5; do "$0" --root %s run --bundle "$1" profile-files-$i >/dev/null; done`,
		d.image, storeDir, d.dir, s.runtime.root)
	return b.profile(statAndRead+freshView+", overlay", "walk", usualPaths, unshared("/bin/sh", "-euc", script,
		s.runtime.path, dir))
}

// sample is a line of perf report: its part in percent, and the function.
var sample = regexp.MustCompile(`^\s*([0-9.]+)%\s+\[(.)\] (\S+)`)

// profile samples a command, and adds a row for each function of one of its programs.
func (b *bench) profile(what, program string, paths int, cmd *exec.Cmd) error {
	b.progress.show("profile of %s", what)
	data := filepath.Join(b.host.dir, "perf.data")
	args := append([]string{"record", "--quiet", "--all-cpus", "--event", "cpu-clock", "--freq", "4000", "--output",
		data, "--", cmd.Path}, cmd.Args[1:]...)
	record := exec.Command("perf", args...)
	record.SysProcAttr = cmd.SysProcAttr
	if _, err := timeCommand(record); err != nil {
		return err
	}
	defer func() { _ = os.Remove(data) }()
	text, err := output("perf", "report", "--stdio", "--no-children", "--percentage", "relative", "--sort", "symbol",
		"--comms", program, "--input", data)
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(text) {
		fields := sample.FindStringSubmatch(line)
		// An address is a function of a program without symbols.
		if fields == nil || found == profileSymbols || strings.HasPrefix(fields[3], "0x") {
			continue
		}
		percent, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return err
		}
		where := map[string]string{"k": "the kernel's ", ".": ""}[fields[2]]
		found++
		b.results.Rows = append(b.results.Rows, speed.Row{Group: "profile", What: what, Variant: where + fields[3],
			Paths: paths, Runtime: b.runtimes[0], N: 1, Median: percent, P10: percent, P90: percent, Unit: "%"})
	}
	if found == 0 {
		return fmt.Errorf("perf has no sample of %s: %.300s", program, text)
	}
	return nil
}
