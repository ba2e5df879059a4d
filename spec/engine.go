// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"
	"strings"
)

// Engine is the engine that had the hook called. It decides which annotations are believed:
// those that this engine sets on every container, and so overwrites whatever an image, a
// user or a pod's author wrote.
type Engine string

// The engines, by the names that --engine takes. No annotation about pods is believed from
// UnknownEngine.
const (
	UnknownEngine Engine = ""
	Podman        Engine = "podman"
	Docker        Engine = "docker"
	// Containerd is containerd's CRI, as Kubernetes uses it. Other clients of containerd
	// set no annotations of their own.
	Containerd Engine = "containerd"
	CRIO       Engine = "cri-o"
)

// Engines are all engines but UnknownEngine.
var Engines = []Engine{Podman, Docker, Containerd, CRIO}

// ParseEngine returns the engine with this name, as --engine takes it.
func ParseEngine(name string) (Engine, error) {
	if !slices.Contains(Engines, Engine(name)) {
		return "", fmt.Errorf("engine %q: not one of podman, docker, containerd, cri-o", name)
	}
	return Engine(name), nil
}

// EngineOfBundle returns Containerd if the path of a bundle shows that containerd's CRI
// made the container. containerd puts a bundle below the namespace of its client, and
// k8s.io is the CRI's. No image, pod's author or user of Docker can choose that path.
// Another client that uses the namespace k8s.io is root.
func EngineOfBundle(bundle, id string) Engine {
	if id != "" && strings.HasSuffix(bundle, "/io.containerd.runtime.v2.task/k8s.io/"+id) {
		return Containerd
	}
	return UnknownEngine
}
