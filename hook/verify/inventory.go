// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Container is a container that runs, as far as this host knows it.
type Container struct {
	ID   string
	Name string // the engine's, where it says one
	// Record is what the host remembers; nil: nothing, though the container asks for a
	// closure.
	Record *state.Record
	// Damaged says why the record cannot be read.
	Damaged error
	// Running is what a runtime says of the container; nil: no runtime that was asked
	// knows it.
	Running *Running
	// Twin is another container whose record is of the same process; empty: there is none.
	Twin string
	// Ended: the record's process has ended, and no runtime knows a container of this ID
	// that runs.
	Ended bool
}

// hasEnded reports whether no process of the container is left. Without a PID namespace of
// its own, others than the first may be.
func (c Container) hasEnded() bool {
	switch {
	case c.Damaged != nil || c.Running != nil && !c.Running.ended():
		return false
	case c.Record == nil || c.Ended:
		return true
	}
	runs, err := c.Record.ProcessRuns()
	return c.Record.Pid > 0 && !c.Record.SharedPID && !runs && err == nil
}

// Running is a container's process, as the state directory of a runtime has it.
type Running struct {
	Pid    int
	Bundle string
	Config string // the file with its annotations
	From   string // who says so
	start  uint64 // of the process, in clock ticks since boot; 0: not known
	// labels are the annotations as runc keeps them, each with its value after `=`.
	labels []string
}

// Host is what containers are looked for in.
type Host struct {
	Config config.Config
	// Dir is the runtime directory; nil: there is none, and so no record.
	Dir *state.Dir
	// RuntimeRoots are further directories in which containers are kept: by an OCI
	// runtime, as its --root names them, or by a containerd.
	RuntimeRoots []string
	// UserDir is XDG_RUNTIME_DIR; empty: there is none.
	UserDir string
}

// OpenHost opens the runtime directory, if there is one, and makes none. Close it when
// it is not needed any more.
func OpenHost(c config.Config) (*Host, error) {
	h := &Host{Config: c}
	if _, err := os.Lstat(c.RuntimeDir); errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	var err error
	h.Dir, err = state.Open(c)
	return h, err
}

// Close releases what was opened.
func (h *Host) Close() {
	if h.Dir != nil {
		h.Dir.Close()
	}
}

// Containers lists the containers that have a record, and those that run and ask for a
// closure without one, by their IDs. troubles says what could not be looked at.
func (h *Host) Containers(ctx context.Context) (all []Container, troubles []error, _ error) {
	running, troubles := h.running()
	engines := askEngines(ctx, h.UserDir)
	for _, r := range engines.running {
		if !slices.ContainsFunc(running, func(o found) bool { return o.id == r.id }) {
			running = append(running, r)
		}
	}
	troubles = append(troubles, engines.troubles...)
	var ids []string
	if h.Dir != nil {
		var err error
		if ids, err = h.Dir.IDs(); err != nil {
			return nil, troubles, err
		}
	}
	taken := make([]bool, len(running))
	for _, id := range ids {
		c, ok := h.recorded(id, running, taken)
		if ok {
			all = append(all, c)
		}
	}
	for i, r := range running {
		if taken[i] {
			continue
		}
		if r.ended() {
			continue // and its record was removed, before it was looked for
		}
		asks, err := h.asks(r)
		if err != nil {
			troubles = append(troubles, fmt.Errorf("container %s, which %s knows: %w", r.id, r.From, err))
		}
		if asks {
			all = append(all, Container{ID: r.id, Running: &r.Running})
		}
	}
	ofProcess := map[int]int{}
	for i, c := range all {
		if c.Record == nil || c.Record.Pid <= 0 {
			continue
		}
		if first, ok := ofProcess[c.Record.Pid]; ok {
			all[i].Twin, all[first].Twin = all[first].ID, c.ID
		}
		ofProcess[c.Record.Pid] = i
	}
	for i := range all {
		all[i].Name = oneLine(cmp.Or(engines.names[all[i].ID], nameOf(all[i])))
	}
	slices.SortFunc(all, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	return all, troubles, nil
}

// recorded is a container with a record. What a runtime says of it is marked as taken.
func (h *Host) recorded(id string, running []found, taken []bool) (Container, bool) {
	c := Container{ID: id}
	r, ok, err := h.Dir.Record(id)
	if err == nil && (!ok || r.Kind == state.KindView) {
		return c, false // it has ended meanwhile, or is a view on a directory of the host
	}
	c.Record, c.Damaged = &r, err
	if err != nil {
		c.Record = nil
	}
	best := -1
	for i, o := range running {
		switch {
		case o.id != id || taken[i]:
		case err == nil && o.Pid == r.Pid:
			best = i
		case best < 0 && (err != nil || o.Bundle == r.Bundle):
			best = i
		}
	}
	alive := false
	if err == nil && r.Pid > 0 {
		// That nobody can tell is for whoever looks at it.
		runs, err := r.ProcessRuns()
		alive = runs || err != nil
	}
	if best < 0 && !alive {
		// Of another bundle, and the record's process is no more: it is edited, or
		// another's.
		best = slices.IndexFunc(running, func(o found) bool { return o.id == id })
		if best >= 0 && taken[best] {
			best = -1
		}
	}
	if best >= 0 {
		taken[best] = true
		c.Running = &running[best].Running
	}
	c.Ended = err == nil && r.Pid > 0 && !alive && c.Running == nil
	return c, true
}

// asks tells whether a container that runs asks for a closure. What cannot be understood
// asks for something.
func (h *Host) asks(r found) (bool, error) {
	annotations, err := annotationsIn(r.Config)
	if errors.Is(err, fs.ErrNotExist) && r.labels != nil {
		return spec.Annotated(r.annotations()), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w; what it asks for cannot be told", err)
	}
	if err != nil {
		return false, err
	}
	if !spec.Annotated(annotations) {
		called, err := calledWith(r.Config)
		return len(called) > 0, err
	}
	engine := engineOf(r.Bundle, r.id, annotations)
	request, err := spec.ParseAnnotations(h.Config.Store(), engine, r.id, annotations)
	if err != nil {
		return true, nil //nolint:nilerr // it asks for something
	}
	return request != nil && !request.Sandbox, nil
}

// annotations are what labels say. Where a key has `=` in it, what is before that is its key
// here, and whether it is one of this program's is the same.
func (r Running) annotations() map[string]string {
	all := map[string]string{}
	for _, label := range r.labels {
		key, value, _ := strings.Cut(label, "=")
		all[key] = value
	}
	return all
}

// engineOf tells by a bundle's place which engine made a container.
func engineOf(bundle, id string, annotations map[string]string) spec.Engine {
	if engine := spec.EngineOfBundle(bundle, id); engine != spec.UnknownEngine {
		return engine
	}
	const moby = "/moby/"
	switch {
	case strings.Contains(bundle, moby):
		return spec.Docker
	case !strings.HasSuffix(bundle, "/overlay-containers/"+id+"/userdata"):
		return spec.UnknownEngine
	case annotations["io.kubernetes.cri-o.Name"] != "":
		return spec.CRIO
	}
	return spec.Podman
}

// Select returns those of the containers that are named, each by its ID, by the beginning
// of it that no other has, or by its name. None named: all.
func Select(all []Container, names []string) ([]Container, error) {
	if len(names) == 0 {
		return all, nil
	}
	var selected []Container
	for _, name := range names {
		matching := called(all, name)
		if len(matching) == 0 {
			return nil, fmt.Errorf("container %q: no container that asks for a closure has this ID or name", name)
		}
		// One ID may be two containers', of two runtimes.
		if slices.ContainsFunc(matching, func(c Container) bool { return c.ID != matching[0].ID }) {
			return nil, fmt.Errorf("container %q: %d containers have this name, or an ID that begins with it; "+
				"give more of the ID", name, len(matching))
		}
		for _, c := range matching {
			same := func(o Container) bool { return o.ID == c.ID && o.Running == c.Running }
			if !slices.ContainsFunc(selected, same) {
				selected = append(selected, c)
			}
		}
	}
	return selected, nil
}

// called returns the containers with an ID, or else those with a name, or else those whose
// ID begins so.
func called(all []Container, name string) []Container {
	if name == "" {
		return nil
	}
	for _, is := range []func(Container) bool{
		func(c Container) bool { return c.ID == name },
		func(c Container) bool { return c.Name == name },
		func(c Container) bool { return strings.HasPrefix(c.ID, name) },
	} {
		isNot := func(c Container) bool { return !is(c) }
		if matching := slices.DeleteFunc(slices.Clone(all), isNot); len(matching) > 0 {
			return matching
		}
	}
	return nil
}
