// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

// The variants that others are compared to, or that have a target.
const (
	floor       = "store bound whole, two empty hooks"
	whole       = "store bound whole"
	unannotated = "store bound whole, no annotation"
	overlayWarm = "overlay"
	overlayCold = "overlay, first start"
	registered  = "overlay with registration"
	bindWarm    = "bind"
	mounts      = "mounts in config.json"
	mountsNew   = "mounts in config.json, new image"
	bubblewrap  = "bubblewrap, a bind for each path"
)

const startToExit = "start to exit"

// startVariant is a container that is started and ends.
type startVariant struct {
	name  string
	paths int
	// entries is what the container's store directory has, beside the store paths.
	entries int
	bundle  bundle
	// prepare, where there is one, runs before each container, untimed.
	prepare func() error
}

// starter starts the containers of one runtime.
type starter struct {
	b       *bench
	runtime *containerRuntime
	// before is the bundle of a container that runs untimed before each timed one.
	// Moving a process into a cgroup waits for an RCU grace period, a wait as long as a
	// container's start, unless another process was moved a moment ago. Without the
	// container before it, a run would have this wait or not depending on how long the
	// previous one took.
	before string
	floor  string
	// noBubblewrap says why bubblewrap is not tried with more paths.
	noBubblewrap string
}

func (s *starter) dir(variant string, paths int, program string) string {
	return filepath.Join(s.b.host.dir, "bundles", s.runtime.name, fmt.Sprintf("%s %d", variant, paths), program)
}

// write makes the bundles of a variant: one that is timed, and one that counts.
func (s *starter) write(v startVariant) error {
	return errors.Join(v.bundle.write(s.dir(v.name, v.paths, "true"), "/bin/true"),
		v.bundle.write(s.dir(v.name, v.paths, "count"), "/bin/count"))
}

func (s *starter) time(bundle string) (float64, error) {
	if _, err := s.runtime.time(s.before); err != nil {
		return 0, err
	}
	took, err := s.runtime.time(bundle)
	return milliseconds(took), err
}

// newStarter makes the containers that all others are compared to.
func (b *bench) newStarter(runtime string) (*starter, error) {
	r, err := findRuntime(runtime, b.host.dir, b.stop)
	if err != nil {
		return nil, err
	}
	s := &starter{b: b, runtime: r}
	s.before, s.floor = s.dir(whole, 0, "true"), s.dir(floor, 0, "true")
	allOfStore := []mount{bindStorePath(storeDir)}
	for _, v := range []startVariant{
		{name: floor, bundle: bundle{mounts: allOfStore, hooks: bothStages(b.host.programs.empty)}},
		{name: whole, bundle: bundle{mounts: allOfStore}},
		{name: unannotated, bundle: bundle{mounts: allOfStore,
			hooks: bothStages(b.host.hook(), b.host.warm.args()...)}},
	} {
		v.bundle.root = b.host.image
		if err := s.write(v); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// closure is a container with a closure of so many paths.
func (h *host) closure(n int, mode string, c hookConfig) bundle {
	return bundle{root: h.image, hooks: bothStages(h.hook(), c.args()...), annotations: h.annotations(n, mode)}
}

// variants are the ways to show a closure of n paths.
func (s *starter) variants(n int) ([]startVariant, error) {
	h := s.b.host
	registering := h.closure(n, "overlay", h.warm)
	registering.annotations["nix-closure/registration"] = "true"
	mounted, err := h.mounted(n, "image %d")
	fresh, freshErr := h.mounted(n, "new image %d")
	all := []startVariant{
		{name: overlayWarm, paths: n, bundle: h.closure(n, "overlay", h.warm)},
		{name: overlayCold, paths: n, bundle: h.closure(n, "overlay", h.cold), prepare: h.cold.forget},
		// Nix's directory of hard links is beside the store paths.
		{name: registered, paths: n, entries: 1, bundle: registering},
		{name: bindWarm, paths: n, bundle: h.closure(n, "bind", h.warm)},
		{name: mounts, paths: n, bundle: mounted},
	}
	if n <= usualPaths {
		all = append(all, startVariant{name: mountsNew, paths: n, bundle: fresh,
			prepare: func() error { return emptyStore(fresh.root) }})
	}
	return all, errors.Join(err, freshErr)
}

// mounted has one mount for each path of the closure. The runtime makes the mount points
// in the image, hence an image for each size, on a tmpfs. In one variant they stay there
// from the first container on, and the others look slower than they are; in the other
// each container begins without, as with an engine that gives it a new upper layer.
func (h *host) mounted(n int, image string) (bundle, error) {
	b := bundle{root: filepath.Join("/run", fmt.Sprintf(image, n))}
	for _, p := range h.store.Closure(n) {
		b.mounts = append(b.mounts, bindStorePath(p))
	}
	return b, makeImage(b.root, h.programs)
}

// emptyStore removes the mount points that a runtime left in an image.
func emptyStore(image string) error {
	dir := filepath.Join(image, storeDir)
	return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755))
}

// measureStart times whole containers, from their creation to their removal.
func measureStart(b *bench, budget time.Duration) error {
	var all []*subject
	for _, runtime := range b.runtimes {
		s, err := b.newStarter(runtime)
		if err != nil {
			b.failed(speed.Row{Group: "start", What: startToExit, Variant: "all", Runtime: runtime}, err)
			continue
		}
		subjects, err := s.subjects()
		if err != nil {
			return err
		}
		all = append(all, subjects...)
	}
	return b.measure(all, budget)
}

func (s *starter) subjects() ([]*subject, error) {
	b := s.b
	row := func(variant string, paths int) speed.Row {
		return speed.Row{Group: "start", What: startToExit, Variant: variant, Paths: paths, Runtime: s.runtime.name,
			Unit: "ms", Of: floor}
	}
	timeFloor := func() (float64, error) { return s.time(s.floor) }
	ground := &subject{row: row(floor, 0), run: timeFloor}
	ground.row.Of = ""
	all := []*subject{ground}
	for _, variant := range []string{whole, unannotated} {
		bundle := s.dir(variant, 0, "true")
		all = append(all, &subject{row: row(variant, 0), beside: timeFloor,
			run: func() (float64, error) { return s.time(bundle) }})
	}
	warm := map[int]*subject{}
	for _, n := range b.sizes {
		variants, err := s.variants(n)
		if err != nil {
			return nil, err
		}
		byName := map[string]*subject{}
		for _, v := range variants {
			x := &subject{row: row(v.name, n), beside: timeFloor, run: func() (float64, error) {
				if v.prepare != nil {
					if err := v.prepare(); err != nil {
						return 0, err
					}
				}
				return s.time(s.dir(v.name, v.paths, "true"))
			}}
			b.progress.show("checking %s", x.row.Name())
			if err := errors.Join(s.write(v), s.check(v)); err != nil {
				if errors.Is(err, errStopped) {
					return nil, err
				}
				// Only a runtime that is given very many mounts may fail.
				if strings.HasPrefix(v.name, mounts) {
					b.absent(x, "fails: "+err.Error())
				} else {
					b.failed(x.row, err)
				}
				continue
			}
			byName[v.name] = x
			all = append(all, x)
		}
		warm[n] = byName[overlayWarm]
		if binds := byName[bindWarm]; binds != nil {
			for _, m := range []string{mounts, mountsNew} {
				if byName[m] != nil {
					binds.others = append(binds.others, other{m, byName[m]})
				}
			}
		}
		// A quick run has no time for it.
		if s.runtime.name == b.runtimes[0] && (!b.quick || n < usualPaths) {
			if x := s.bubblewrap(n, row(bubblewrap, n)); x != nil {
				x.beside = timeFloor
				all = append(all, x)
			}
		}
	}
	if usual := warm[usualPaths]; usual != nil {
		for _, n := range b.sizes {
			if n > usualPaths && warm[n] != nil {
				warm[n].others = append(warm[n].others, other{atUsual, usual})
			}
		}
	}
	return all, nil
}

// atUsual is what larger closures are compared to.
const atUsual = "the same with 1,000 paths"

// check sees to it that the container has the store paths that it should have, and that
// something is behind each of them.
func (s *starter) check(v startVariant) error {
	if v.prepare != nil {
		if err := v.prepare(); err != nil {
			return err
		}
	}
	seen, err := s.runtime.output(s.dir(v.name, v.paths, "count"))
	if err != nil {
		return err
	}
	return rightCount(seen, v.paths+v.entries, v.paths)
}

// rightCount judges what the program count printed.
func rightCount(seen string, entries, filled int) error {
	if want := fmt.Sprintln(entries, filled); seen != want {
		return fmt.Errorf("the container sees the wrong store: entries and those not empty are %q and should be %q",
			seen, want)
	}
	return nil
}

// bubblewrap shows a closure without a runtime: the namespaces of the containers, and a
// bind mount for each store path. Nil where it is missing or cannot.
func (s *starter) bubblewrap(n int, row speed.Row) *subject {
	b := s.b
	row.Runtime = "bwrap"
	row.Of = floor + ", " + s.runtime.name
	x := &subject{row: row}
	if s.noBubblewrap != "" {
		b.absent(x, s.noBubblewrap)
		return nil
	}
	program, err := exec.LookPath("bwrap")
	if err != nil {
		b.absent(x, "missing: "+err.Error())
		return nil
	}
	args := []string{"--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--proc", "/proc",
		"--dev", "/dev", "--ro-bind", filepath.Join(b.host.image, "bin"), "/bin"}
	for _, p := range b.host.store.Closure(n) {
		args = append(args, "--ro-bind", p, p)
	}
	// A command line has no room for so many.
	file := filepath.Join(b.host.dir, fmt.Sprintf("bwrap-%d", n))
	if err := os.WriteFile(file, []byte(strings.Join(args, "\x00")+"\x00"), 0o644); err != nil {
		b.failed(x.row, err)
		return nil
	}
	command := func(ctx context.Context, program ...string) (*exec.Cmd, *os.File, error) {
		f, err := os.Open(file)
		cmd := exec.CommandContext(ctx, program[0], slices.Concat([]string{"--args", "3", "--"}, program[1:])...)
		cmd.ExtraFiles = []*os.File{f}
		return cmd, f, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*tooSlow)
	defer cancel()
	if cmd, f, err := command(ctx, program, "/bin/count"); err != nil {
		b.failed(x.row, err)
		return nil
	} else {
		var stderr limited
		cmd.Stderr = &stderr
		began := time.Now()
		out, err := cmd.Output()
		_ = f.Close()
		if err == nil {
			err = rightCount(string(out), n, n)
		}
		if err != nil {
			b.absent(x, fmt.Sprintf("ended after %.0f s: %v %s", time.Since(began).Seconds(), err, stderr))
			s.noBubblewrap = fmt.Sprintf("not tried: it cannot with %d", n)
			return nil
		}
	}
	x.run = func() (float64, error) {
		cmd, f, err := command(context.Background(), program, "/bin/true")
		if err != nil {
			return 0, err
		}
		defer func() { _ = f.Close() }()
		if _, err := s.runtime.time(s.before); err != nil {
			return 0, err
		}
		return timeCommand(cmd)
	}
	return x
}
