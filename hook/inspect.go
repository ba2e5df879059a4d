// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"io/fs"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Container is a container that is not made yet, as its config.json or its engine
// has it.
type Container struct {
	ID          string // empty: not known yet
	Engine      spec.Engine
	Bundle      string // where relative sources of mounts begin
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
	request, err = spec.ParseAnnotations(c.Store(), container.Engine, container.ID, container.Annotations)
	if err != nil {
		return nil, nil, &failure{"", "reading the annotations", err}
	}
	if request == nil {
		return nil, nil, nil
	}
	request.Mode = modeOf(request, c)
	host, err := lookAtHost(c)
	if err != nil {
		return nil, nil, &failure{"", "looking at the host's store", err}
	}
	replaced, err = classify(host, container.Bundle, container.Mounts)
	if err != nil {
		return nil, nil, &failure{"", "looking at the container's mounts", err}
	}
	return request, replaced, nil
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
