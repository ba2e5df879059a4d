// SPDX-License-Identifier: Apache-2.0

package main

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

//go:embed programs/*/main.go
var sources embed.FS

// build makes the program that is named by the last element of the path.
func build(program string) error {
	source := program + ".go"
	text, err := sources.ReadFile("programs/" + filepath.Base(program) + "/main.go")
	if err == nil {
		err = os.WriteFile(source, text, 0o600)
	}
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", program, err, out)
	}
	// See install.
	if text, err = os.ReadFile(program); err == nil {
		err = errors.Join(os.Remove(program), os.WriteFile(program, text, 0o755))
	}
	return err
}

type host struct {
	dir, empty, observe string
	root                string // store path with the closure
	containers          int
}

// program is what is in the place of a hook.
type program struct {
	name string
	argv []string // before the stage
	env  string
}

// kind is a kind of container.
type kind struct {
	name      string
	annotated bool
	layered   bool // its root is an overlay, as engines have it
}

var kinds = []kind{
	{"annotated", true, false},
	{"annotated, root on an overlay", true, true},
	{"no annotation", false, false},
}

var stages = []string{"createRuntime", "poststop"}

func (h *host) image() string { return h.dir + "/image" }

func (h *host) makeImage() error {
	layers := h.dir + "/layers"
	for _, dir := range []string{"bin", "dev", "proc", "sys", "nix/store"} {
		if err := os.MkdirAll(h.image()+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(layers+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(h.empty)
	if err == nil {
		err = os.WriteFile(h.image()+"/bin/true", text, 0o755)
	}
	if err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", h.image(), layers)
	if out, err := exec.Command("mount", "-t", "overlay", "-o", options, "overlay", layers+"/root").
		CombinedOutput(); err != nil {
		return fmt.Errorf("mounting an overlay: %w: %s", err, out)
	}
	return nil
}

// start runs a container with a hook at both stages. wrapper is before the hook's path.
func (h *host) start(k kind, p program, wrapper ...string) error {
	type object = map[string]any
	root := h.image()
	if k.layered {
		root = h.dir + "/layers/root"
	}
	hooks := object{}
	argv := slices.Concat(wrapper, p.argv)
	for _, stage := range stages {
		hooks[stage] = []object{{"path": argv[0], "args": append(slices.Clone(argv), stage), "env": []string{p.env}}}
	}
	config := object{
		"ociVersion": "1.0.2", "root": object{"path": root}, "hooks": hooks,
		"process": object{"user": object{"uid": 0, "gid": 0}, "args": []string{"/bin/true"}, "cwd": "/"},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"ro"}},
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}
	if k.annotated {
		config["annotations"] = object{"nix-closure/roots": h.root, "nix-closure/mode": "overlay"}
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	bundle := h.dir + "/bundle"
	err = errors.Join(os.MkdirAll(bundle, 0o755), os.WriteFile(bundle+"/config.json", text, 0o600))
	if err != nil {
		return err
	}
	h.containers++
	id := fmt.Sprintf("c%d", h.containers)
	out, err := exec.Command("runc", "--root", "/run/runc", "run", "--bundle", bundle, id).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc: %w: %s", err, out)
	}
	return nil
}

const (
	traced   = 3  // containers whose system calls are counted; the median counts
	observed = 15 // containers whose page faults are counted
)

// count counts what a program does for a container.
func (h *host) count(p program, k kind) (rows []row, _ error) {
	for range 2 { // the hook trusts what it remembers of the database after a second
		if err := h.start(k, p); err != nil {
			return nil, err
		}
		time.Sleep(1100 * time.Millisecond)
	}
	calls := map[string]map[string][]int{}
	trace := h.dir + "/trace"
	for range traced {
		if err := os.RemoveAll(trace); err != nil {
			return nil, err
		}
		if err := h.start(k, p, "/usr/bin/strace", "-f", "-y", "-A", "-o", trace); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(trace)
		if err != nil {
			return nil, err
		}
		for stage, counts := range purposesOf(string(text)) {
			for _, rule := range rules {
				if calls[stage] == nil {
					calls[stage] = map[string][]int{}
				}
				calls[stage][rule.purpose] = append(calls[stage][rule.purpose], counts[rule.purpose])
			}
		}
	}
	observations := h.dir + "/observations"
	if err := os.RemoveAll(observations); err != nil {
		return nil, err
	}
	for range observed {
		if err := h.start(k, p, h.observe, observations); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(observations)
	if err != nil {
		return nil, err
	}
	for _, stage := range stages {
		sum := 0
		for _, rule := range rules {
			n := median(calls[stage][rule.purpose])
			rows = append(rows, row{kind: k.name, stage: stage, program: p.name, what: rule.purpose, count: n})
			sum += n
		}
		var faults, cpu []int
		for line := range strings.Lines(string(text)) {
			var of string
			var f, c, wall int
			if _, err := fmt.Sscan(line, &of, &f, &c, &wall); err != nil {
				return nil, err
			}
			if of == stage {
				faults, cpu = append(faults, f), append(cpu, c)
			}
		}
		rows = append(rows, row{kind: k.name, stage: stage, program: p.name, what: allCalls, count: sum},
			row{kind: k.name, stage: stage, program: p.name, what: pageFaults, count: median(faults)},
			row{kind: k.name, stage: stage, program: p.name, what: cpuTime, count: median(cpu)})
	}
	return rows, nil
}

func median(all []int) int {
	if len(all) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(all))[len(all)/2]
}
