// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// checked is a container that may have what it asks for.
type checked struct {
	*start
	store    closure.Store
	request  *spec.Request
	bundle   spec.Config
	host     *spec.Host
	replaced []int // positions in bundle.Mounts
	// sharedPID: the container has no PID namespace of its own, see Record.
	sharedPID bool
}

// check reads what a container asks for, and refuses what it may not have. It
// returns nil for a container that asks for nothing.
func check(s *start) (*checked, error) {
	store := s.config.Store()
	s.at("reading the annotations")
	request, err := spec.ParseAnnotations(store, s.state.Annotations)
	if err != nil || request == nil {
		return nil, err
	}
	c := &checked{start: s, store: store, request: request}
	if err := c.allowed(request.Asked()); err != nil {
		return nil, err
	}
	s.at("reading the container's config.json")
	if c.bundle, err = spec.ReadConfig(s.state.Bundle); err != nil {
		return nil, err
	}
	// The one place that knows: spec.Config is going to say it.
	c.sharedPID = false
	s.at("looking at the host's store")
	if c.host, err = lookAtHost(s.config); err != nil {
		return nil, err
	}
	s.at("looking at the container's mounts")
	if c.replaced, err = classify(c.host, s.state.Bundle, c.bundle.Mounts); err != nil {
		return nil, err
	}
	return c, nil
}

// allowed refuses store paths that the configuration does not allow to a container.
func (c *checked) allowed(paths []closure.BaseName) error {
	c.at("checking what is allowed here")
	return c.config.CheckAllowed(c.request.Namespace, paths)
}

func modeOf(r *spec.Request, c config.Config) spec.Mode {
	if r.Mode != "" {
		return r.Mode
	}
	return spec.Mode(c.Mode)
}

// lookAtHost finds out what the host's mount namespace has, once for all mounts.
func lookAtHost(c config.Config) (*spec.Host, error) {
	mountinfo, err := readMountinfo("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return spec.LookAtHost(c.Store(), c.RuntimeDir, mountinfo)
}
