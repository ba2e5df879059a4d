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
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/proc"
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
	var p progress
	inspected, err := inspect(&p, c, container)
	if err != nil {
		return nil, nil, &failure{container.ID, p.doing(), err}
	}
	if inspected == nil {
		return nil, nil, nil
	}
	defer inspected.host.Close()
	inspected.request.Mode = modeOf(inspected.request, c)
	return inspected.request, inspected.mounts.replaced, nil
}

// inspected is what a container asks for, as its annotations and its mount list say.
type inspected struct {
	request *spec.Request
	host    *spec.Host
	mounts  checkedMounts
}

// asked are the store paths that the container asks for by name: by annotations and
// by mounts.
func (i *inspected) asked() []closure.BaseName {
	return slices.Concat(i.request.Asked(), i.mounts.asked)
}

// roots are what the closure begins with, beside a closure-info: each once, those of
// the annotations first.
func (i *inspected) roots() []closure.BaseName {
	all := slices.Clone(i.request.Roots)
	for _, r := range i.mounts.roots {
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}

// inspect is the same for every stage and engine: what a container asks for, and what
// its mounts show. It returns nil for one that asks for nothing. Close the host that
// it returns.
func inspect(p *progress, c config.Config, container Container) (_ *inspected, Err error) {
	p.at("reading the annotations")
	request, err := spec.ParseAnnotations(c.Store(), container.Engine, container.ID, container.Annotations)
	if err != nil || request == nil {
		return nil, err
	}
	p.at("looking at the host's store")
	host, err := lookAtHost(c)
	if err != nil {
		return nil, err
	}
	defer func() {
		if Err != nil {
			host.Close()
		}
	}()
	var layers []closure.BaseName
	if container.Root != "" {
		p.at("looking at the container's root")
		if layers, err = host.CheckRoot(container.Bundle, container.Root); err != nil {
			return nil, err
		}
	}
	p.at("looking at the container's mounts")
	mounts, err := classify(host, container.Bundle, container.Mounts)
	if err != nil {
		return nil, err
	}
	mounts.asked = append(mounts.asked, layers...)
	return &inspected{request, host, mounts}, nil
}

// checked is a container that may have what it asks for.
type checked struct {
	*start
	*inspected
	store  closure.Store
	bundle spec.Config
	stated string // see located
	// pidStart is when the container's process started, see Record; 0: it has none.
	pidStart uint64
	// sharedPID: the container has no PID namespace of its own, see Record.
	sharedPID bool
}

// check reads what a container asks for, and refuses what it may not have. It
// returns nil for a container that asks for nothing.
func check(s *start) (*checked, error) {
	s.at("looking for the container's bundle")
	at, err := locate(s.call, s.state, os.Getppid())
	if err != nil {
		return nil, err
	}
	s.state.Bundle = at.bundle
	s.at("reading the annotations")
	// What they say is said before anything of config.json.
	request, err := spec.ParseAnnotations(s.config.Store(), s.engine(), s.state.ID, s.state.Annotations)
	if err != nil || request == nil {
		return nil, err
	}
	s.at("reading the container's config.json")
	bundle, err := spec.ReadConfig(at.config)
	if err != nil {
		return nil, err
	}
	i, err := inspect(s.progress, s.config, Container{
		ID: s.state.ID, Engine: s.engine(), Bundle: s.state.Bundle, Root: bundle.Root,
		Annotations: s.state.Annotations, Mounts: bundle.Mounts,
	})
	if err != nil {
		return nil, err
	}
	if err := s.checkDevice(i.request); err != nil {
		i.host.Close()
		return nil, err
	}
	c := &checked{start: s, inspected: i, store: s.config.Store(), bundle: bundle, stated: at.stated}
	if err := c.allowed(c.asked()); err != nil {
		c.host.Close()
		return nil, err
	}
	s.at("looking at the container's PID namespace")
	c.sharedPID, err = sharesPIDs(s.config, bundle)
	if err != nil && !request.Sandbox {
		c.host.Close()
		return nil, err
	}
	if err := c.identifyProcess(); err != nil {
		c.host.Close()
		return nil, err
	}
	return c, nil
}

// identifyProcess finds out which process the container's is. From here on it is known
// by more than its number, which may be another's when it has ended.
func (c *checked) identifyProcess() (err error) {
	if c.call.Stage == "createContainer" {
		// What the runtime says may be of the container's PID namespace.
		c.state.Pid = proc.InitProcess()
	}
	if c.state.Pid > 0 {
		c.at("looking at the container's process")
		c.pidStart, err = proc.StartTime(c.state.Pid)
	}
	return err
}

// checkDevice refuses a container whose own annotations name another closure than the
// hook's call, as those for one container of a pod do, which win over all others.
func (s *start) checkDevice(request *spec.Request) error {
	own := s.call.Annotations
	if own[spec.Prefix+spec.KeyRoots] == "" && own[spec.Prefix+spec.KeyClosureInfo] == "" {
		return nil
	}
	s.at("reading the annotations")
	device, err := spec.ParseAnnotations(s.config.Store(), spec.UnknownEngine, s.state.ID, s.call.Annotations)
	if err != nil {
		return err
	}
	if !slices.Equal(device.Asked(), request.Asked()) {
		return fmt.Errorf("the container's annotations ask for the closure of %s, and the hook was called for "+
			"that of %s, as for a device; give one container one closure", request.Asked(), device.Asked())
	}
	return nil
}

// allowed refuses store paths that the configuration does not allow to a container.
func (c *checked) allowed(paths []closure.BaseName) error {
	c.at("checking what is allowed here")
	err := c.config.Policy().Check(c.request.Namespace, paths)
	if err != nil && c.request.IgnoredNamespace != "" {
		err = fmt.Errorf("%w; annotation %s was not believed, because an image or a user may have set it",
			err, c.request.IgnoredNamespace)
	}
	return err
}

func modeOf(r *spec.Request, c config.Config) spec.Mode {
	if r.Mode != "" {
		return r.Mode
	}
	return c.Mode
}

// lookAtHost finds out what the host's mount namespace has, once for all mounts.
func lookAtHost(c config.Config) (*spec.Host, error) {
	mountinfo, err := proc.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	host, err := spec.LookAtHost(c.Store(), c.RuntimeDir, mountinfo)
	if err == nil {
		host.ProcessesAllowed, host.FUSEAllowed = c.SharedPID, c.FUSE
	}
	return host, err
}

// checkedMounts is what a mount list means. Positions are of the list.
type checkedMounts struct {
	replaced []int
	// admitted are taken off by createRuntime only: without them in config.json, it
	// would not know what was asked for.
	admitted []int
	roots    []closure.BaseName // of those that are admitted
	asked    []closure.BaseName // by any mount, and by the root
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
	return fmt.Errorf("mount of %s on %s: shows %s of the host, and with it more than the closure; take the "+
		"mount out", m.Source, m.Destination, shows)
}

// MissingView tells whether a container that runs asks for a closure by its
// annotations, and has none as far as this host remembers.
func MissingView(configPath string, engine spec.Engine, id string, annotations map[string]string) (bool, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return false, err
	}
	// What is not understood asks for something.
	request, err := spec.ParseAnnotations(c.Store(), engine, id, annotations)
	if err == nil && (request == nil || request.Sandbox) {
		return false, nil
	}
	if _, err := os.Lstat(c.RuntimeDir); errors.Is(err, fs.ErrNotExist) {
		return true, nil // and is not made for this
	}
	dir, err := state.Open(c)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	r, ok, err := dir.Record(id)
	return err == nil && (!ok || !r.Attached), err
}
