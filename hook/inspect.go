// SPDX-License-Identifier: Apache-2.0

package hook

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Inspect looks at a container before it is made: by its annotations, what it
// asks for, nil if nothing, and then which of its mounts, by position, the view takes
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
