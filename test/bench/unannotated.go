// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/speed"
)

// configFile is where the programs look for their configuration.
const configFile = "/etc/nix-closure/config.toml"

// The rows that have a target.
const (
	bothStagesMore = "the hook's two stages, more than two empty programs"
	wrapperMore    = "nix-closure-runtime, more than an empty program that execs"
)

// measureUnannotated times the processes that a container without an annotation has, by
// themselves.
func measureUnannotated(b *bench, budget time.Duration) error {
	// A process takes a millisecond, and the difference of two is asked for.
	b.fewest, b.runs = 6*b.fewest, 6*b.runs
	hooks, err := b.hookSubjects()
	if err != nil {
		return err
	}
	wrapped, err := b.wrapperSubjects()
	if err != nil {
		return err
	}
	// The wrapper has no other way to hear of its runtime.
	text := fmt.Sprintf("runtime = %q\n", b.stand())
	if err := errors.Join(os.MkdirAll(filepath.Dir(configFile), 0o755),
		os.WriteFile(configFile, []byte(text), 0o644)); err != nil {
		return err
	}
	return errors.Join(b.measure(append(hooks, wrapped...), budget), os.Remove(configFile))
}

func (b *bench) hookSubjects() ([]*subject, error) {
	h := b.host
	state := filepath.Join(h.dir, "state.json")
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": "nix-closure-bench", "status": "creating", "pid": os.Getpid(), "bundle": h.dir,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(state, text, 0o644); err != nil {
		return nil, err
	}
	const what = "a hook's process"
	empty := func() (float64, error) { return timeProcess(state, h.programs.empty) }
	stage := func(name string) func() (float64, error) {
		return func() (float64, error) { return timeProcess(state, h.hook(), name) }
	}
	row := speed.Row{Group: "unannotated", What: what, Unit: "ms"}
	named := func(variant, of string) speed.Row {
		r := row
		r.Variant, r.Of = variant, of
		return r
	}
	const emptyProgram = "an empty program"
	return []*subject{
		{row: named(emptyProgram, ""), run: empty},
		{row: named("nix-closure-hook createRuntime", emptyProgram), run: stage("createRuntime"), beside: empty},
		{row: named("nix-closure-hook poststop", emptyProgram), run: stage("poststop"), beside: empty},
		{row: named(bothStagesMore, ""), run: more(stage("createRuntime"), empty, stage("poststop"), empty)},
	}, nil
}

// more gives the first and third minus the second and fourth, and so on.
func more(steps ...func() (float64, error)) func() (float64, error) {
	return func() (sum float64, _ error) {
		for i, step := range steps {
			value, err := step()
			if err != nil {
				return 0, err
			}
			if i%2 == 1 {
				value = -value
			}
			sum += value
		}
		return sum, nil
	}
}

// stand is a runtime that does nothing, for the wrapper to become.
func (b *bench) stand() string { return filepath.Join(b.host.dir, "stand", "runc") }

// wrapperSubjects call the wrapper in front of a runtime that does nothing.
func (b *bench) wrapperSubjects() ([]*subject, error) {
	h := b.host
	bundle := bundle{root: h.image, mounts: []mount{bindStorePath(storeDir)}}
	dir := filepath.Join(h.dir, "bundles", "wrapper")
	if err := errors.Join(bundle.write(dir, "/bin/true"), os.MkdirAll(filepath.Dir(b.stand()), 0o755),
		programs.Copy(h.programs.empty, b.stand()), os.Symlink(b.stand(), h.programs.become+".to")); err != nil {
		return nil, err
	}
	wrapper := filepath.Join(h.bin, "nix-closure-runtime")
	var all []*subject
	for _, call := range [][]string{
		{"create", "--bundle", dir, "unknown"}, {"start", "unknown"}, {"state", "unknown"}, {"kill", "unknown", "KILL"},
		{"delete", "unknown"}, {"exec", "unknown", "/bin/true"}, {"events", "--stats", "unknown"}, {"features"},
	} {
		by := func(program string) func() (float64, error) {
			return func() (float64, error) {
				return timeProcess(os.DevNull, program, append([]string{"--root", "/run/stand"}, call...)...)
			}
		}
		execs := by(h.programs.become)
		row := speed.Row{Group: "unannotated", What: "call a runtime: " + call[0], Unit: "ms"}
		const emptyExecs = "an empty program that execs"
		a, c, d := row, row, row
		a.Variant, c.Variant, d.Variant = emptyExecs, "nix-closure-runtime", wrapperMore
		c.Of = emptyExecs
		all = append(all, &subject{row: a, run: execs}, &subject{row: c, run: by(wrapper), beside: execs},
			&subject{row: d, run: more(by(wrapper), execs)})
	}
	return all, nil
}
