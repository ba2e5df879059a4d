// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Container is a container that is not made yet, as its config.json or its engine
// has it.
type Container struct {
	ID          string // empty: not known yet
	Engine      spec.Engine
	Bundle      string // where relative sources of mounts begin
	Root        string // root.path of config.json; empty: not known
	Annotations map[string]string
	Mounts      []specs.Mount
}

// CheckContainer says what a container asks for, nil for nothing, and which of its
// mounts, by position, the view takes the place of. Where the annotations name no
// mode, the configuration does. Annotations that are not understood are an error,
// and so is a mount that leaks the store. It resolves no closure, and reads only the
// configuration, the mounts of the host and the sources.
func CheckContainer(configPath string, container Container) (request *spec.Request, replaced []int, _ error) {
	c, err := config.Read(configPath)
	if err != nil {
		return nil, nil, &failure{"", "reading the configuration", err}
	}
	checked, err := check(c, container)
	if err != nil || checked.request == nil {
		return nil, nil, err
	}
	defer checked.host.Close()
	checked.request.Mode = modeOf(checked.request, c)
	return checked.request, checked.mounts.replaced, nil
}

// checked is a container that may have what it asks for, as far as its annotations and
// its mount list tell.
type checked struct {
	request *spec.Request // nil: it asks for nothing, and the rest is not set
	host    *spec.Host
	mounts  checkedMounts
}

// asked are the store paths that the container asks for by name: by annotations and
// by mounts.
func (c checked) asked() []closure.BaseName {
	return slices.Concat(c.request.Asked(), c.mounts.asked)
}

// roots are what the closure begins with, beside a closure-info: each once, those of
// the annotations first.
func (c checked) roots() []closure.BaseName {
	all := slices.Clone(c.request.Roots)
	for _, r := range c.mounts.roots {
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}

// check is the first step of every stage and engine: what a container asks for, and
// what its mounts show. Close the host that it returns.
func check(c config.Config, container Container) (checked, error) {
	fail := func(doing string, err error) (checked, error) {
		return checked{}, &failure{container.ID, doing, err}
	}
	request, err := spec.ParseAnnotations(c.Store(), container.Engine, container.ID, container.Annotations)
	if err != nil {
		return fail("reading the annotations", err)
	}
	if request == nil {
		return checked{}, nil
	}
	host, err := lookAtHost(c)
	if err != nil {
		return fail("looking at the host's store", err)
	}
	if container.Root != "" {
		if err := host.CheckRoot(container.Bundle, container.Root); err != nil {
			host.Close()
			return fail("looking at the container's root", err)
		}
	}
	mounts, err := classify(host, container.Bundle, container.Mounts)
	if err != nil {
		host.Close()
		return fail("looking at the container's mounts", err)
	}
	return checked{request, host, mounts}, nil
}

// checkedMounts is what a mount list means. Positions are of the list.
type checkedMounts struct {
	replaced []int
	// admitted are taken off by createRuntime only: without them in config.json, it
	// would not know what was asked for.
	admitted []int
	roots    []closure.BaseName // of those that are admitted
	asked    []closure.BaseName // by any mount
}

// classify tells what the mounts mean. It fails for one that leaks the store.
func classify(host *spec.Host, bundle string, mounts []specs.Mount) (checkedMounts, error) {
	var c checkedMounts
	for i, m := range mounts {
		v, err := host.Classify(bundle, m)
		if err != nil {
			return c, fmt.Errorf("mount of %s on %s: %w", m.Source, m.Destination, err)
		}
		switch v.Class {
		case spec.Admitted:
			c.admitted = append(c.admitted, i)
			c.roots = append(c.roots, v.Asked...)
		case spec.Replaced:
			c.replaced = append(c.replaced, i)
		case spec.Leaks:
			return c, leak(m, v.Shows)
		}
		c.asked = append(c.asked, v.Asked...)
	}
	return c, nil
}

func leak(m specs.Mount, shows string) error {
	return fmt.Errorf("mount of %s on %s: shows %s of the host, and with it more than the closure; take the mount out", m.Source, m.Destination, shows)
}

// allow applies the policy to store paths that a container asks for.
func allow(c config.Config, request *spec.Request, paths []closure.BaseName) error {
	err := c.CheckAllowed(request.Namespace, paths)
	if err != nil && request.IgnoredNamespace != "" {
		err = fmt.Errorf("%w; annotation %s was not believed, because an image or a user may have set it", err, request.IgnoredNamespace)
	}
	return err
}

// MissingView tells whether a container that runs asks for a closure by its
// annotations, and has none as far as this host remembers.
func MissingView(configPath string, engine spec.Engine, id string, annotations map[string]string) (bool, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return false, err
	}
	// What is not understood asks for something.
	if request, err := spec.ParseAnnotations(c.Store(), engine, id, annotations); err == nil && (request == nil || request.Sandbox) {
		return false, nil
	}
	if _, err := os.Lstat(c.RuntimeDir); errors.Is(err, fs.ErrNotExist) {
		return true, nil // and is not made for this
	}
	dir, err := OpenRuntimeDir(c)
	if err != nil {
		return false, err
	}
	r, ok, err := dir.readRecord(id)
	return err == nil && (!ok || !r.Attached), err
}
