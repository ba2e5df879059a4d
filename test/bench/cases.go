// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nix-closure/nix-closure/test/synthetic"
)

// The variants, in the order of the table.
const (
	floor       = "floor"
	whole       = "whole"
	unannotated = "no annotation"
	overlayWarm = "overlay warm"
	overlayCold = "overlay cold"
	registered  = "registration"
	bindWarm    = "bind"
	mounts      = "mounts"
	mountsNew   = "mounts, new"
)

// A testCase is one cell of the table: a variant at a size on a runtime.
type testCase struct {
	runtime *containerRuntime
	variant string
	// paths is the number of store paths that the container sees.
	paths int
	// links: Nix's directory of hard links is beside the store paths.
	links bool
	// wholeStore: all of the host's, whatever the size asked for.
	wholeStore bool
	// bundle is the container that is timed; counting is the same one with
	// another program, which counts what it sees.
	bundle, counting string
	// prepare, where there is one, runs before each container, untimed.
	prepare func() error
	// before is the bundle of a container that runs untimed after prepare.
	before string

	samples []time.Duration
	// absent says why there are no samples: the variant is known not to reach
	// every size on every runtime.
	absent string
}

func (c *testCase) String() string {
	return fmt.Sprintf("%s, %s, %d paths", c.runtime.name, c.variant, c.paths)
}

// host is where the cases' bundles are made and what they refer to.
type host struct {
	dir      string
	programs programs
	hook     string
	store    *synthetic.Store
	image    string
	// warm and cold are configured with runtime directories of their own, so
	// that making one cold leaves the other warm.
	warm, cold hookConfig
}

// makeCases makes the cases of one runtime.
func (h *host) makeCases(r *containerRuntime, sizes []int) ([]*testCase, error) {
	var cases []*testCase
	all := len(h.store.Paths)
	directory := func(variant string, paths int, program string) string {
		return filepath.Join(h.dir, "bundles", r.name, fmt.Sprintf("%s %d", variant, paths), program)
	}
	add := func(c testCase, b bundle) error {
		c.runtime = r
		c.bundle = directory(c.variant, c.paths, "true")
		c.counting = directory(c.variant, c.paths, "count")
		c.before = directory(whole, all, "true")
		cases = append(cases, &c)
		return errors.Join(b.write(c.bundle, "/bin/true"), b.write(c.counting, "/bin/count"))
	}
	allOfStore := []mount{bindStorePath(storeDir)}
	err := errors.Join(
		add(testCase{variant: floor, paths: all, wholeStore: true},
			bundle{root: h.image, mounts: allOfStore, hooks: bothStages(h.programs.empty)}),
		add(testCase{variant: whole, paths: all, wholeStore: true},
			bundle{root: h.image, mounts: allOfStore}),
		add(testCase{variant: unannotated, paths: all, wholeStore: true},
			bundle{root: h.image, mounts: allOfStore, hooks: bothStages(h.hook, h.warm.args()...)}),
	)
	for _, n := range sizes {
		inMode := func(mode string, c hookConfig) bundle {
			return bundle{
				root:        h.image,
				hooks:       bothStages(h.hook, c.args()...),
				annotations: h.annotations(n, mode),
			}
		}
		registering := inMode("overlay", h.warm)
		registering.annotations["nix-closure/registration"] = "true"
		mounted, mountErr := h.mounted(n, "image %d")
		fresh, freshErr := h.mounted(n, "new image %d")
		err = errors.Join(err, mountErr, freshErr,
			add(testCase{variant: overlayWarm, paths: n}, inMode("overlay", h.warm)),
			add(testCase{variant: overlayCold, paths: n, prepare: h.cold.forget}, inMode("overlay", h.cold)),
			add(testCase{variant: registered, paths: n, links: true}, registering),
			add(testCase{variant: bindWarm, paths: n}, inMode("bind", h.warm)),
			add(testCase{variant: mounts, paths: n}, mounted),
			add(testCase{variant: mountsNew, paths: n, prepare: func() error { return emptyStore(fresh.root) }}, fresh),
		)
	}
	return cases, err
}

// annotations ask for the closure that has n paths.
func (h *host) annotations(n int, mode string) map[string]string {
	return map[string]string{"nix-closure/roots": h.store.Root(n), "nix-closure/mode": mode}
}

// mounted has one mount for each path of the closure. The runtime makes the
// mount points in the image, hence an image for each size, on a tmpfs. In one
// variant they stay there from the first container on, and the others look
// slower than they are; in the other each container begins without, as with an
// engine that gives it a new upper layer.
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

// hookConfig is a config.toml of the hook, and the runtime directory that it
// names.
type hookConfig struct {
	file, runtimeDir string
}

func makeHookConfig(file, runtimeDir string) (hookConfig, error) {
	text := fmt.Sprintf("runtime-dir = %q\n", runtimeDir)
	return hookConfig{file, runtimeDir}, os.WriteFile(file, []byte(text), 0o644)
}

func (c hookConfig) args() []string { return []string{"--config", c.file} }

// forget removes what the hook keeps from one container for the next.
func (c hookConfig) forget() error {
	return errors.Join(
		os.RemoveAll(filepath.Join(c.runtimeDir, "views")),
		os.RemoveAll(filepath.Join(c.runtimeDir, "closures")),
	)
}
