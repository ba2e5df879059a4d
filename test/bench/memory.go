// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	// manyContainers of each way, and memoryStep of them at a time.
	manyContainers = 200
	memoryStep     = 10
	slabEach       = "kernel memory (slab) a container"
	touched        = ", each file read"
)

// meminfo has the fields of proc_meminfo(5) that containers change, in KiB.
type meminfo struct{ slab, cache float64 }

func readMeminfo() (m meminfo, Err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return m, err
	}
	defer func() { Err = errors.Join(Err, f.Close()) }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return m, fmt.Errorf("/proc/meminfo: %q: %w", lines.Text(), err)
		}
		switch fields[0] {
		case "SReclaimable:", "SUnreclaim:":
			m.slab += kib
		case "Cached:", "Buffers:":
			m.cache += kib
		}
	}
	return m, lines.Err()
}

// running is one way, of which ever more containers run.
type running struct {
	way         startVariant
	dir         string
	reads       bool
	slab, cache []float64 // of each step, KiB a container
	ids         []string
}

// measureMemory starts containers that wait, a few of each way in turn, until there are
// many. After each step it looks at what the kernel has more. In the second half of the
// ways, each container reads every file of its closure.
func measureMemory(b *bench, _ time.Duration) (Err error) {
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	var all []*running
	for _, reads := range []bool{false, true} {
		ways, err := s.ways()
		if err != nil {
			return err
		}
		for i, w := range ways {
			r := &running{way: w, reads: reads}
			// The floor has no files of its own to read.
			if reads && i == 0 {
				continue
			}
			command := []string{"/bin/idle"}
			if reads {
				r.way.name += touched
				command = append(command, "read")
			}
			r.dir = s.dir("memory "+r.way.name, w.paths, "idle")
			if err := w.bundle.write(r.dir, command...); err != nil {
				return err
			}
			all = append(all, r)
		}
	}
	defer func() {
		for _, r := range all {
			for _, id := range r.ids {
				Err = errors.Join(Err, s.runtime.remove(id))
			}
		}
	}()
	steps := manyContainers / memoryStep
	for step := range steps {
		for _, r := range all {
			b.progress.show("%d containers of each way: %s", step*memoryStep, r.way.name)
			if err := r.more(s); err != nil {
				return err
			}
		}
	}
	for i, what := range []string{slabEach, "page cache a container"} {
		ground := all[0]
		for _, r := range all {
			row := speed.Row{Group: "memory", What: what, Variant: r.way.name, Paths: r.way.paths,
				Runtime: s.runtime.name, Unit: "KiB"}
			values, of := r.slab, ground.slab
			if i == 1 {
				values, of = r.cache, nil
			}
			if r == ground {
				of = nil
			} else if of != nil {
				row.Of = ground.way.name
			}
			b.results.Rows = append(b.results.Rows, row.Summary(values, of))
		}
	}
	// What a container has above the floor, in overlay mode and as mounts.
	b.addedSlab(all)
	return nil
}

// addedSlabOverlay is what has a target: what the closure adds, overlay against bind.
const addedSlabOverlay = "overlay, more than the store bound whole"

func (b *bench) addedSlab(all []*running) {
	byName := map[string]*running{}
	for _, r := range all {
		byName[r.way.name] = r
	}
	added := func(r *running) (values []float64) {
		for i := range r.slab {
			values = append(values, r.slab[i]-all[0].slab[i])
		}
		return values
	}
	overlay, binds := byName[overlayWarm], byName[bindWarm]
	row := speed.Row{Group: "memory", What: slabEach, Variant: addedSlabOverlay, Paths: usualPaths,
		Runtime: b.runtimes[0], Unit: "KiB", Of: bindWarm + ", more than the store bound whole"}
	b.results.Rows = append(b.results.Rows, row.Summary(added(overlay), added(binds)))
}

// more starts a step's containers, and notes what they cost.
func (r *running) more(s *starter) error {
	before, err := readMeminfo()
	if err != nil {
		return err
	}
	for range memoryStep {
		s.runtime.count++
		id := fmt.Sprintf("memory-%d", s.runtime.count)
		if err := s.runtime.create(r.dir, id); err != nil {
			return err
		}
		r.ids = append(r.ids, id)
		if _, err := output(s.runtime.path, "--root", s.runtime.root, "start", id); err != nil {
			return err
		}
	}
	if r.reads {
		if err := s.settled(r.ids[len(r.ids)-memoryStep:]); err != nil {
			return err
		}
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	after, err := readMeminfo()
	if err != nil {
		return err
	}
	r.slab = append(r.slab, (after.slab-before.slab)/memoryStep)
	r.cache = append(r.cache, (after.cache-before.cache)/memoryStep)
	return nil
}

// settled waits until the containers only wait: they have used no processor for a while.
func (s *starter) settled(ids []string) error {
	var pids []int
	for _, id := range ids {
		text, err := output(s.runtime.path, "--root", s.runtime.root, "state", id)
		if err != nil {
			return err
		}
		var state struct{ Pid int }
		if err := json.Unmarshal([]byte(text), &state); err != nil {
			return err
		}
		pids = append(pids, state.Pid)
	}
	ticks := func() (sum int, _ error) {
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				return 0, err
			}
			_, fields, _ := strings.Cut(string(stat), ") ")
			for _, i := range []int{11, 12} { // utime, stime: proc_pid_stat(5)
				n, err := strconv.Atoi(strings.Fields(fields)[i])
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
		return sum, nil
	}
	last, quietSince := -1, time.Now()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		now, err := ticks()
		if err != nil {
			return err
		}
		if now != last {
			last, quietSince = now, time.Now()
		}
		if time.Since(quietSince) > 150*time.Millisecond {
			return nil
		}
	}
	return errors.New("the containers still work after 30 s")
}
