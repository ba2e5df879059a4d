// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

// ways are the containers that later groups compare: how a closure of the usual size is
// shown, by one runtime.
func (s *starter) ways() ([]startVariant, error) {
	variants, err := s.variants(usualPaths)
	if err != nil {
		return nil, err
	}
	ways := []startVariant{
		{name: floor, bundle: bundle{root: s.b.host.image, mounts: []mount{bindStorePath(storeDir)},
			hooks: bothStages(s.b.host.programs.empty)}},
	}
	for _, v := range variants {
		if v.name == overlayWarm || v.name == bindWarm || v.name == mounts {
			ways = append(ways, v)
		}
	}
	return ways, nil
}

// measureRemove times the removal of containers that were made and not started: their end,
// that of their mounts, and the hook's last stage.
func measureRemove(b *bench, budget time.Duration) error {
	var all []*subject
	for _, runtime := range b.runtimes {
		s, err := b.newStarter(runtime)
		if err != nil {
			return err
		}
		ways, err := s.ways()
		if err != nil {
			return err
		}
		remove := func(w startVariant) (func() (float64, error), error) {
			dir := s.dir("remove "+w.name, w.paths, "true")
			return func() (float64, error) {
				s.runtime.count++
				id := fmt.Sprintf("remove-%d", s.runtime.count)
				if err := s.runtime.create(dir, id); err != nil {
					return 0, err
				}
				began := time.Now()
				err := s.runtime.remove(id)
				return milliseconds(time.Since(began)), err
			}, w.bundle.write(dir, "/bin/true")
		}
		var ground *subject
		for _, w := range ways {
			run, err := remove(w)
			if err != nil {
				return err
			}
			x := &subject{run: run, row: speed.Row{Group: "remove", What: "delete a created container", Variant: w.name,
				Paths: w.paths, Runtime: runtime, Unit: "ms"}}
			if ground == nil {
				ground = x
			} else {
				x.row.Of, x.beside = ground.row.Variant, ground.run
			}
			all = append(all, x)
		}
	}
	return b.measure(all, budget)
}

// readings is how often a container reads its mountinfo.
const readings = 20

// measureMountinfo times what a program inside pays that reads its mountinfo.
func measureMountinfo(b *bench, budget time.Duration) error {
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	ways, err := s.ways()
	if err != nil {
		return err
	}
	var all []*subject
	for _, w := range ways {
		dir := s.dir("mountinfo "+w.name, w.paths, "walk")
		if err := w.bundle.write(dir, "/bin/walk", "mountinfo", strconv.Itoa(readings)); err != nil {
			return err
		}
		x := &subject{row: speed.Row{Group: "mountinfo", What: "read /proc/self/mountinfo inside", Variant: w.name,
			Paths: w.paths, Runtime: s.runtime.name, Unit: "µs"}}
		x.run = func() (float64, error) {
			text, err := s.runtime.output(dir)
			if err != nil {
				return 0, err
			}
			ns, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			return ns / 1000 / readings, err
		}
		if len(all) > 0 {
			x.row.Of, x.beside = all[0].row.Variant, all[0].run
		}
		all = append(all, x)
	}
	return b.measure(all, budget)
}
