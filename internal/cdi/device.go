// SPDX-License-Identifier: Apache-2.0

// Package cdi reads and writes the CDI devices of this program: closures with names, which
// an engine gives to a container by --device nix-closure/closure=NAME
// (https://github.com/cncf-tags/container-device-interface/blob/v1.1.0/SPEC.md).
//
// A device has no device node. It has the engine call the hook, and the hook's arguments
// have the annotations, so the container needs none.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/parser"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

const (
	// Kind is the kind of the devices.
	Kind = "nix-closure/closure"
	// Path is the file that engines read the devices from, unless another is named.
	Path = "/etc/cdi/nix-closure.json"
	// hookProgram is the file name of the hook.
	hookProgram = "nix-closure-hook"
	// askedVariable is a variable in the environment of a device's hooks. The hook does not
	// read it: it is a note of what the roots were given as, separated by colons. CDI has
	// annotations of devices for such notes since its version 0.6.0, but podman 4.3.1 does
	// not know the devices of a file of that version.
	askedVariable = "NIX_CLOSURE_ASKED="
)

// Device is a closure with a name.
type Device struct {
	Name string
	// Request is what the device asks for in place of the container; nil: see Trouble.
	Request *spec.Request
	// Asked are the roots as they were given: store paths, or links to them. nil: as
	// Request has them.
	Asked []string
	// Hook and Config are the paths of the hook's program and of the configuration that it
	// is called with; Config is empty for the usual one.
	Hook, Config string
	// Engine is what the hook is called with; empty: a device is for every engine.
	Engine spec.Engine
	// Trouble says why this program cannot tell what the device gives: another program wrote
	// it. Only the name is set then.
	Trouble error
}

// FullName is the name by which an engine knows the device.
func (d Device) FullName() string { return parser.QualifiedName("nix-closure", "closure", d.Name) }

// annotations are those that the hook is called with.
func (d Device) annotations(store closure.Store) map[string]string {
	all := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			all[spec.Prefix+key] = value
		}
	}
	var roots []string
	for _, root := range d.Request.Roots {
		roots = append(roots, store.Path(root))
	}
	set(spec.KeyRoots, strings.Join(roots, ":"))
	if d.Request.ClosureInfo != "" {
		set(spec.KeyClosureInfo, store.Path(d.Request.ClosureInfo))
	}
	set(spec.KeyMode, string(d.Request.Mode))
	for key, unusual := range map[string]bool{
		spec.KeyRegistration: d.Request.Registration, spec.KeyWritable: d.Request.Writable,
	} {
		if unusual {
			set(key, "true")
		}
	}
	if !d.Request.Listing {
		set(spec.KeyListing, "false")
	}
	return all
}

// stages are those at which a device's hook is called.
var stages = []string{"createRuntime", "poststop"}

// edits are the device as CDI has it.
func (d Device) edits(store closure.Store) specs.Device {
	args := []string{hookProgram}
	if d.Config != "" {
		args = append(args, "--config", d.Config)
	}
	if d.Engine != spec.UnknownEngine {
		args = append(args, "--engine", string(d.Engine))
	}
	annotations := d.annotations(store)
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		args = append(args, "--annotation", key+"="+annotations[key])
	}
	// With an empty environment, some runtimes give a hook the container's.
	env := spec.HookEnv()
	if d.Asked != nil {
		env = append(env, askedVariable+strings.Join(d.Asked, ":"))
	}
	device := specs.Device{Name: d.Name}
	for _, stage := range stages {
		device.ContainerEdits.Hooks = append(device.ContainerEdits.Hooks, &specs.Hook{
			HookName: stage, Path: d.Hook, Args: append(slices.Clone(args), stage), Env: env,
		})
	}
	return device
}

// parseDevice understands what edits wrote, also where a person or another program wrote the
// same by hand.
func parseDevice(store closure.Store, device specs.Device) (d Device) {
	d.Name = device.Name
	defer func() {
		if d.Trouble != nil {
			d = Device{Name: d.Name, Trouble: d.Trouble}
		}
	}()
	others := device.ContainerEdits
	others.Hooks = nil
	if len(device.Annotations) > 0 || !isEmpty(others) {
		d.Trouble = errors.New("it has other edits than calls of the hook")
		return d
	}
	called := map[string]call{}
	for _, hook := range device.ContainerEdits.Hooks {
		c, err := parseCall(hook)
		if err == nil && (!slices.Contains(stages, hook.HookName) || c.stage != hook.HookName) {
			err = fmt.Errorf("it calls the hook for %q at the stage %q", c.stage, hook.HookName)
		}
		if d.Trouble = err; err != nil {
			return d
		}
		called[hook.HookName] = c
	}
	create, ok := called["createRuntime"]
	if !ok || len(called) != len(device.ContainerEdits.Hooks) {
		d.Trouble = errors.New("it does not call the hook once at createRuntime")
		return d
	}
	if stop, ok := called["poststop"]; ok && !stop.sameButStage(create) {
		d.Trouble = errors.New("it calls the hook with other arguments at createRuntime than at poststop")
		return d
	}
	d.Hook, d.Config, d.Engine, d.Asked = create.program, create.config, create.engine, create.asked
	d.Request, d.Trouble = spec.ParseAnnotations(store, spec.UnknownEngine, "", create.annotations)
	if d.Request == nil && d.Trouble == nil {
		d.Trouble = errors.New("it calls the hook without --annotation")
	}
	return d
}

// call is a call of the hook.
type call struct {
	program, config, stage string
	engine                 spec.Engine
	annotations            map[string]string
	asked                  []string
}

func (c call) sameButStage(other call) bool {
	return c.program == other.program && c.config == other.config && c.engine == other.engine &&
		maps.Equal(c.annotations, other.annotations)
}

func parseCall(hook *specs.Hook) (call, error) {
	c := call{program: hook.Path, annotations: map[string]string{}}
	if filepath.Base(hook.Path) != hookProgram {
		return c, fmt.Errorf("it calls %s, which is not %s", hook.Path, hookProgram)
	}
	if len(hook.Args) < 2 {
		return c, errors.New("it calls the hook without a stage")
	}
	args := hook.Args[1:]
	for len(args) > 1 {
		name, value, inline := strings.Cut(args[0], "=")
		if args = args[1:]; !inline {
			value, args = args[0], args[1:]
		}
		switch name {
		case "--config":
			c.config = value
		case "--engine":
			engine, err := spec.ParseEngine(value)
			if err != nil {
				return c, fmt.Errorf("it calls the hook with --engine: %w", err)
			}
			c.engine = engine
		case "--annotation":
			key, value, ok := strings.Cut(value, "=")
			if _, twice := c.annotations[key]; !ok || twice {
				return c, fmt.Errorf("it calls the hook with --annotation %q: not KEY=VALUE, each key once", key)
			}
			c.annotations[key] = value
		default:
			return c, fmt.Errorf("it calls the hook with %q, which is not an option", name)
		}
	}
	if len(args) != 1 {
		return c, errors.New("it calls the hook without a stage")
	}
	c.stage = args[0]
	for _, variable := range hook.Env {
		if asked, ok := strings.CutPrefix(variable, askedVariable); ok {
			c.asked = strings.Split(asked, ":")
		}
	}
	return c, nil
}
