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

// Inspect looks at a container before it is made: by its annotations and, where they
// name no mode, the configuration, what it asks for, nil if nothing, and then which of its mounts, by position, the view takes
// the place of. One that leaks the store is an error, as are annotations that are
// not understood. bundle is where relative sources begin. It resolves no closure,
// and reads nothing but the configuration, the mounts of the host and the sources.
func Inspect(configPath, bundle string, annotations map[string]string, mounts []specs.Mount) (request *spec.Request, replaced []int, _ error) {
	c, err := config.Read(configPath)
	if err != nil {
		return nil, nil, &failure{"", "reading the configuration", err}
	}
	request, err = spec.ParseAnnotations(c.Store(), annotations)
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
	replaced, err = classify(host, bundle, mounts)
	if err != nil {
		return nil, nil, &failure{"", "looking at the container's mounts", err}
	}
	return request, replaced, nil
}

// Lacks tells whether a container that runs asks for a closure by its annotations, and
// has none as far as this host remembers.
func Lacks(configPath, id string, annotations map[string]string) (bool, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return false, err
	}
	// What is not understood asks for something.
	if request, err := spec.ParseAnnotations(c.Store(), annotations); err == nil && request == nil {
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
