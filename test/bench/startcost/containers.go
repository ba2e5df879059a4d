// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/test/bench/programs"
)

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
	beside    int  // containers of the same closure that run meanwhile
}

var kinds = []kind{
	{name: "annotated", annotated: true},
	{name: "annotated, root on an overlay", annotated: true, layered: true},
	{name: "annotated, root on an overlay, beside 110 others", annotated: true, layered: true, beside: 110},
	{name: "no annotation"},
}

var stages = []string{"createRuntime", "poststop"}

func (h *host) image() string { return h.dir + "/image" }

func (h *host) makeImage() error {
	for _, dir := range []string{"bin", "dev", "proc", "sys", "nix/store"} {
		if err := os.MkdirAll(h.image()+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := programs.Copy(h.empty, h.image()+"/bin/true"); err != nil {
		return err
	}
	return h.mountRoot(h.dir + "/layers")
}

// mountRoot mounts the image with a layer of a container's own.
func (h *host) mountRoot(layers string) error {
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(layers+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", h.image(), layers)
	if out, err := exec.Command("mount", "-t", "overlay", "-o", options, "overlay", layers+"/root").
		CombinedOutput(); err != nil {
		return fmt.Errorf("mounting an overlay: %w: %s", err, out)
	}
	return nil
}

// fill creates the containers that are beside the others, and returns what removes them.
func (h *host) fill(k kind, p program) (empty func() error, _ error) {
	var made []string
	empty = func() (err error) {
		for _, id := range made {
			out, failed := exec.Command("runc", "--root", "/run/runc", "delete", "--force", id).CombinedOutput()
			if failed != nil {
				err = errors.Join(err, fmt.Errorf("runc delete: %w: %s", failed, out))
			}
			err = errors.Join(err, unix.Unmount(h.dir+"/"+id+"/root", unix.MNT_DETACH))
		}
		return err
	}
	for i := range k.beside {
		id := fmt.Sprintf("beside-%d", i)
		if err := h.mountRoot(h.dir + "/" + id); err != nil {
			return empty, err
		}
		bundle, err := h.bundle(k, p, h.dir+"/"+id+"/root")
		if err != nil {
			return empty, err
		}
		cmd := exec.Command("runc", "--root", "/run/runc", "create", "--bundle", bundle, id)
		if err := cmd.Run(); err != nil {
			return empty, fmt.Errorf("%v: %w", cmd, err)
		}
		made = append(made, id)
	}
	return empty, nil
}

// start runs a container with a hook at both stages. wrapper is before the hook's path.
func (h *host) start(k kind, p program, wrapper ...string) error {
	root := h.image()
	if k.layered {
		root = h.dir + "/layers/root"
	}
	bundle, err := h.bundle(k, p, root, wrapper...)
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

// bundle writes the bundle of a container.
func (h *host) bundle(k kind, p program, root string, wrapper ...string) (string, error) {
	type object = map[string]any
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
		return "", err
	}
	bundle := h.dir + "/bundle"
	return bundle, errors.Join(os.MkdirAll(bundle, 0o755), os.WriteFile(bundle+"/config.json", text, 0o600))
}

const (
	traced   = 3  // containers whose system calls are counted; the median counts
	observed = 15 // containers whose page faults are counted
)

// count counts what a program does for a container.
func (h *host) count(p program, k kind) (rows []row, Err error) {
	empty, err := h.fill(k, p)
	defer func() { Err = errors.Join(Err, empty()) }()
	if err != nil {
		return nil, err
	}
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
			var f, c, peak int
			if _, err := fmt.Sscan(line, &of, &f, &c, &peak); err != nil {
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
