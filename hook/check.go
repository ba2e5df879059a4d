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

// Container is a container before its creation, as its config.json or its engine
// describes it.
type Container struct {
	ID          string // empty: not known yet
	Engine      spec.Engine
	Bundle      string // base of relative mount sources
	Root        string // root.path of config.json; empty: not known
	Annotations map[string]string
	Mounts      []specs.Mount
}

// CheckContainer returns what a container asks for, or nil if it asks for nothing, and
// the positions of the mounts that the view replaces. If the annotations name no mode,
// the mode is the configuration's. Annotations that are not understood are an error, and
// so is a mount that leaks the store. CheckContainer resolves no closure. It reads only
// the configuration, the host's mounts and the mount sources.
func CheckContainer(configPath string, container Container) (request *spec.Request, replaced []int, _ error) {
	i, err := checkContainer(configPath, container, false)
	if i == nil {
		return nil, nil, err
	}
	return i.request, i.mounts.replaced, nil
}

// checkContainer is CheckContainer with all that was found out. The host in it is closed. If
// the hook is added to the same config.json, it judges the container alone where no name
// concerns the store; then there is no host.
func checkContainer(configPath string, container Container, hookFollows bool) (*inspected, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return nil, &failure{"", "reading the configuration", err}
	}
	var p progress
	p.at("reading the annotations")
	request, err := spec.ParseAnnotations(c.Store(), container.Engine, container.ID, container.Annotations)
	if err != nil {
		return nil, &failure{container.ID, p.doing(), err}
	}
	if request == nil {
		return nil, nil
	}
	request.Mode = modeOf(request, c)
	if hookFollows && !request.Sandbox &&
		!spec.ConcernsStore(c.Store(), c.RuntimeDir, container.Bundle, container.Root, container.Mounts) {
		return &inspected{request: request}, nil
	}
	i, err := inspect(&p, c, container, request)
	if err != nil {
		return nil, &failure{container.ID, p.doing(), err}
	}
	i.host.Close()
	return i, nil
}

// inspected is what a container asks for by its annotations and its mount list.
type inspected struct {
	request *spec.Request
	host    *spec.Host
	mounts  checkedMounts
	// rootHasMore: layers of a sandbox's root are store paths, or something is mounted in the
	// root before the runtime mounts anything.
	rootHasMore bool
}

// needsNoHook reports whether a container is the sandbox of a pod, for which the hook would
// find nothing to do: containerd's CRI made it, as the path of its bundle shows; no mount of
// it has anything of the store; and each is of the kernel, of memory, or from a directory
// with the sandbox's own ID for its name, in which containerd alone makes mounts.
func (i *inspected) needsNoHook(container Container, bundle spec.Config) bool {
	return i.request.Sandbox && spec.EngineOfBundle(container.Bundle, container.ID) == spec.Containerd &&
		!bundle.AsksForPropagation() && !i.rootHasMore &&
		len(i.mounts.asked)+len(i.mounts.replaced) == 0 &&
		spec.AreBelow(container.ID, container.Bundle, container.Mounts)
}

// asked returns the store paths that the container asks for by name, in annotations and
// mounts.
func (i *inspected) asked() []closure.BaseName {
	return slices.Concat(i.request.Asked(), i.mounts.asked)
}

// roots returns the roots of the closure, besides a closure-info. Each root is there
// once; the roots of the annotations come first.
func (i *inspected) roots() []closure.BaseName {
	all := slices.Clone(i.request.Roots)
	for _, r := range i.mounts.roots {
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}

// inspect judges the mounts of a container that asks for something. It is the same for
// every stage and engine. The caller closes the returned host.
func inspect(
	p *progress, c config.Config, container Container, request *spec.Request,
) (_ *inspected, Err error) {
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
	i := &inspected{request: request, host: host}
	if container.Root != "" {
		p.at("looking at the container's root")
		if err := i.checkRoot(container); err != nil {
			return nil, err
		}
	}
	p.at("looking at the container's mounts")
	if i.mounts, err = classify(host, container.Bundle, container.Mounts); err != nil {
		return nil, err
	}
	return i, nil
}

// checkRoot judges a root before the container is created. Into the root of a sandbox it
// also looks, because there may be no hook to do so.
func (i *inspected) checkRoot(container Container) error {
	if !i.request.Sandbox {
		return i.host.CheckRoot(container.Bundle, container.Root)
	}
	layers, err := i.host.RootLayers(container.Bundle, container.Root)
	if err != nil {
		return err
	}
	i.rootHasMore = len(layers) > 0 || i.host.IsMountedIn(container.Bundle, container.Root)
	return nil
}

// checked is a container whose request is allowed.
type checked struct {
	*start
	*inspected
	store  closure.Store
	bundle spec.Config
	stated string // see located
	// device is the closure that the hook was called for, as a CDI device does; nil: the
	// container asks for its closure itself.
	device *spec.Request
	// pidStart is the start time of the container's process, see state.Record; 0: it has
	// no process.
	pidStart uint64
	// sharedPID: the container has no PID namespace of its own, see Record.
	sharedPID bool
}

// check reads what a container asks for and refuses what is not allowed. It returns nil
// for a container that asks for nothing.
func check(s *start) (*checked, error) {
	s.at("looking for the container's bundle")
	at, err := locate(s.call, s.state, os.Getppid())
	if err != nil {
		return nil, err
	}
	s.state.Bundle = at.bundle
	s.at("reading the annotations")
	// Errors in annotations are reported before errors in config.json.
	request, err := spec.ParseAnnotations(s.config.Store(), s.engine(), s.state.ID, s.state.Annotations)
	if err != nil || request == nil {
		return nil, err
	}
	if store := s.config.Store(); !request.Sandbox && !store.Ours() {
		s.daemon = closure.Daemon{Store: store}.Call()
	}
	s.at("reading the container's config.json")
	bundle, err := spec.ReadConfig(at.config)
	if err != nil {
		return nil, err
	}
	container := Container{Bundle: s.state.Bundle, Mounts: bundle.Mounts}
	i, err := inspect(s.progress, s.config, container, request)
	if err != nil {
		return nil, err
	}
	device, err := s.checkDevice(i.request)
	if err == nil && bundle.Root != "" {
		s.at("looking at the container's root")
		var layers []closure.BaseName
		layers, err = i.host.RootLayers(s.state.Bundle, bundle.Root)
		i.mounts.asked = append(i.mounts.asked, layers...)
	}
	if err != nil {
		i.host.Close()
		return nil, err
	}
	c := &checked{start: s, inspected: i, store: s.config.Store(), bundle: bundle, stated: at.stated, device: device}
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

// identifyProcess finds the container's process and its start time. The PID alone does
// not identify it: another process may get the PID after this one ends.
func (c *checked) identifyProcess() (err error) {
	if c.call.Stage == "createContainer" {
		// The runtime may report a PID of the container's PID namespace.
		c.state.Pid = proc.InitProcess()
	}
	if c.state.Pid > 0 {
		c.at("looking at the container's process")
		c.pidStart, err = proc.StartTime(c.state.Pid)
	}
	return err
}

// checkDevice returns the closure that the hook's call names, as a CDI device does; nil: the
// call names none. It refuses a container whose own annotations ask for another closure.
// Annotations for one container of a pod can do so, because they override all others.
func (s *start) checkDevice(request *spec.Request) (*spec.Request, error) {
	own := s.call.Annotations
	if own[spec.Prefix+spec.KeyRoots] == "" && own[spec.Prefix+spec.KeyClosureInfo] == "" {
		return nil, nil
	}
	s.at("reading the annotations")
	device, err := spec.ParseAnnotations(s.config.Store(), spec.UnknownEngine, s.state.ID, s.call.Annotations)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(device.Asked(), request.Asked()) {
		return nil, fmt.Errorf("the container's annotations ask for the closure of %s, and the hook was called for "+
			"that of %s, as a device does; give one container one closure", request.Asked(), device.Asked())
	}
	return device, nil
}

// allowed refuses store paths that the configuration does not allow for this container.
// What a device names needs no rule: whoever wrote the engine's files chose the closure,
// and not the container. What the container's mounts ask for needs one.
func (c *checked) allowed(paths []closure.BaseName) error {
	c.at("checking what is allowed here")
	if c.device != nil {
		named := c.device.Asked()
		paths = slices.DeleteFunc(slices.Clone(paths), func(b closure.BaseName) bool {
			return slices.Contains(named, b)
		})
	}
	err := c.config.Policy().Check(c.request.Namespace, paths)
	if err != nil && c.request.IgnoredNamespace != "" {
		err = fmt.Errorf("%w; annotation %s was ignored, because an image or a user may have set it",
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

// lookAtHost reads the host's mount namespace, once for all mounts.
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

// checkedMounts is the meaning of a mount list. Positions are indexes into that list.
type checkedMounts struct {
	replaced []int
	// admitted mounts are detached by createRuntime only. They stay in config.json,
	// because createRuntime reads from them what was asked for.
	admitted []int
	roots    []closure.BaseName // of the admitted mounts
	asked    []closure.BaseName // by all mounts and by the root
}

// classify sorts the mounts by class. It fails for a mount that leaks the store.
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

// MissingView reports whether a running container asks for a closure by its annotations
// but has no view on record.
func MissingView(configPath string, engine spec.Engine, id string, annotations map[string]string) (bool, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return false, err
	}
	// Annotations that are not understood still ask for something.
	request, err := spec.ParseAnnotations(c.Store(), engine, id, annotations)
	if err == nil && (request == nil || request.Sandbox) {
		return false, nil
	}
	if _, err := os.Lstat(c.RuntimeDir); errors.Is(err, fs.ErrNotExist) {
		return true, nil // do not create the directory for this
	}
	dir, err := state.Open(c)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	r, ok, err := dir.Record(id)
	return err == nil && (!ok || !r.Attached), err
}
