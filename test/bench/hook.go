// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

// The rows that have a target.
const (
	peakMemory = "the hook's peak memory"
	verifyOne  = "verify one container"
)

// measureHook measures the hook's memory, and what it takes to prove what a container
// sees.
func measureHook(b *bench, budget time.Duration) error {
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	return errors.Join(s.peaks(b.sizes[len(b.sizes)-1]), s.verify(budget))
}

// peaks runs containers whose hook is the hook, measured.
func (s *starter) peaks(paths int) error {
	b, h := s.b, s.b.host
	var all []*subject
	for _, mode := range []string{"overlay", "bind"} {
		dir := filepath.Join(h.dir, "bundles", "peaks", mode)
		peaksFile := filepath.Join(dir, "peaks")
		c := h.closure(paths, mode, h.cold)
		c.hooks = bothStages(h.programs.observe, append([]string{peaksFile, h.hook()}, h.cold.args()...)...)
		if err := c.write(dir, "/bin/true"); err != nil {
			return err
		}
		run := func() (float64, error) {
			if _, err := s.runtime.time(dir); err != nil {
				return 0, err
			}
			return takePeak(peaksFile)
		}
		row := speed.Row{Group: "hook", What: peakMemory, Variant: mode, Paths: paths, Runtime: s.runtime.name,
			Unit: "MiB"}
		first := row
		first.Variant += ", first start"
		all = append(all, &subject{row: row, run: run}, &subject{row: first, run: func() (float64, error) {
			if err := h.cold.forget(); err != nil {
				return 0, err
			}
			return run()
		}})
	}
	return b.measure(all, 0)
}

// takePeak reads the largest peak of what observe noted in the file, removes the file, and gives the number in
// MiB.
func takePeak(file string) (_ float64, Err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { Err = errors.Join(Err, f.Close(), os.Remove(file)) }()
	largest := 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var stage string
		var faults, cpu, kib int
		if _, err := fmt.Sscan(lines.Text(), &stage, &faults, &cpu, &kib); err != nil {
			return 0, err
		}
		largest = max(largest, kib)
	}
	return float64(largest) / 1024, lines.Err()
}

// verify proves what one container of each mode sees, without contents.
func (s *starter) verify(budget time.Duration) (Err error) {
	b, h := s.b, s.b.host
	var all []*subject
	for _, mode := range []string{"overlay", "bind"} {
		dir := filepath.Join(h.dir, "bundles", "verify", mode)
		c := h.closure(usualPaths, mode, h.warm)
		if err := c.write(dir, "/bin/true"); err != nil {
			return err
		}
		id := "verify-" + mode
		// What is made and not started has all of its mounts.
		if err := s.runtime.create(dir, id); err != nil {
			return err
		}
		defer func() { Err = errors.Join(Err, s.runtime.remove(id)) }()
		all = append(all, &subject{
			row: speed.Row{Group: "hook", What: verifyOne, Variant: mode, Paths: usualPaths, Runtime: s.runtime.name,
				Unit: "ms"},
			run: func() (float64, error) {
				return timeCommand(exec.Command(h.command(), slices.Concat(h.warm.args(), []string{"verify", id})...))
			},
		})
	}
	return b.measure(all, budget)
}

// create makes a container that waits for its start.
func (r *containerRuntime) create(bundle, id string) error {
	cmd := exec.Command(r.path, "--root", r.root, "create", "--bundle", bundle, id)
	cmd.Stderr = r.stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s create: %w: %s", r.name, err, r.complaint())
	}
	return nil
}

// remove ends a container, and removes it.
func (r *containerRuntime) remove(id string) error {
	cmd := exec.Command(r.path, "--root", r.root, "delete", "--force", id)
	cmd.Stderr = r.stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s delete: %w: %s", r.name, err, r.complaint())
	}
	return nil
}
