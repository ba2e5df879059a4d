// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"
	"strings"
)

// Engine is who had the hook called. It decides which annotations are believed:
// those that the engine sets itself on every container, over whatever an image, a
// user or a pod's author wrote there.
type Engine string

// The engines by the names that --engine takes. UnknownEngine is believed in
// nothing.
const (
	UnknownEngine Engine = ""
	Podman        Engine = "podman"
	Docker        Engine = "docker"
	// Containerd is containerd's CRI, as Kubernetes uses it. Other clients of
	// containerd set no annotations of their own.
	Containerd Engine = "containerd"
	CRIO       Engine = "cri-o"
)

// Engines are the engines that have a name.
var Engines = []Engine{Podman, Docker, Containerd, CRIO}

// ParseEngine returns the engine with a name.
func ParseEngine(name string) (Engine, error) {
	if !slices.Contains(Engines, Engine(name)) {
		return "", fmt.Errorf("engine %q: not one of podman, docker, containerd, cri-o", name)
	}
	return Engine(name), nil
}

// EngineOfBundle tells by where a bundle is whether containerd's CRI made the
// container. containerd puts a container's bundle below the client's namespace,
// and k8s.io is the CRI's: neither an image, a pod's author nor a user of Docker
// has a say in that path. A client of containerd that names k8s.io itself is root.
func EngineOfBundle(bundle, id string) Engine {
	if id != "" && strings.HasSuffix(bundle, "/io.containerd.runtime.v2.task/k8s.io/"+id) {
		return Containerd
	}
	return UnknownEngine
}

// podKeys are the annotations with which a CRI engine says which container of a
// pod this is.
type podKeys struct {
	engine                           Engine
	kind, name, namespace, sandboxID string
}

const sandboxKind = "sandbox"

var allPodKeys = []podKeys{
	{
		engine: Containerd, kind: "io.kubernetes.cri.container-type", name: "io.kubernetes.cri.container-name",
		namespace: "io.kubernetes.cri.sandbox-namespace", sandboxID: "io.kubernetes.cri.sandbox-id",
	},
	{
		engine: CRIO, kind: "io.kubernetes.cri-o.ContainerType", name: "io.kubernetes.container.name",
		namespace: "io.kubernetes.pod.namespace", sandboxID: "io.kubernetes.cri-o.SandboxID",
	},
}

// keysOf returns the annotations that an engine sets itself; not ok: none.
func keysOf(engine Engine) (_ podKeys, ok bool) {
	i := slices.IndexFunc(allPodKeys, func(k podKeys) bool { return k.engine == engine })
	if i < 0 {
		return podKeys{}, false
	}
	return allPodKeys[i], true
}

// pod is what is believed of a container's place in a pod.
type pod struct {
	sandbox         bool
	name, namespace string
	// Annotations that claim a name or a namespace and are not believed; empty:
	// none does.
	ignoredName, ignoredNamespace string
}

// podOf reads which container of a pod this is. id is the container's; empty: not
// known yet.
//
// podman before 4.5.1 copies an image's annotations onto the container, so on an
// engine that does not set a key itself, the key may be the image's. A container
// is believed to be a pod's sandbox (the pause container) only by the sandbox's
// ID, which is the sandbox's own: engines choose it at random when the container is
// made, so that no image, user or pod's author can have written it.
func podOf(engine Engine, id string, annotations map[string]string) (pod, error) {
	var p pod
	for _, keys := range allPodKeys {
		own := keys.engine == engine
		if annotations[keys.kind] == sandboxKind {
			sandbox := annotations[keys.sandboxID]
			if sandbox == "" || id != "" && sandbox != id {
				return pod{}, fmt.Errorf("annotation %s: says that this container is a pod's sandbox, and %s is %q, "+
					"not its ID; "+
					"an image or a user may have set it: take it out, or name the closure's container another "+
					"way", keys.kind, keys.sandboxID, sandbox)
			}
			p.sandbox = true
		}
		switch name := annotations[keys.name]; {
		case name == "":
		case own:
			p.name = name
		case engine != UnknownEngine:
			return pod{}, fmt.Errorf("annotation %s: says which container of a pod this is, and %s never sets it; "+
				"an image or a user may have: take it out", keys.name, engine)
		default:
			p.ignoredName = keys.name
		}
		switch namespace := annotations[keys.namespace]; {
		case namespace == "":
		case own:
			p.namespace = namespace
		default:
			p.ignoredNamespace = keys.namespace
		}
	}
	// Where the engine itself says that this is none, another key is not its word.
	if keys, ok := keysOf(engine); ok && p.sandbox {
		if kind := annotations[keys.kind]; kind != "" && kind != sandboxKind {
			return pod{}, fmt.Errorf("annotation %s is %q, and another says that this container is a pod's sandbox; "+
				"take that one out", keys.kind, kind)
		}
	}
	return p, nil
}

// SetContainer sets the annotations by which an engine says which container of a
// pod this is, in place of what stands there. It is for a caller who has it from the
// engine itself, about a container that is no sandbox.
func SetContainer(annotations map[string]string, engine Engine, name, namespace string) {
	keys, ok := keysOf(engine)
	if !ok {
		return
	}
	if annotations[keys.kind] == sandboxKind {
		annotations[keys.kind] = "container"
	}
	for _, a := range []struct{ key, value string }{{keys.name, name}, {keys.namespace, namespace}} {
		delete(annotations, a.key)
		if a.value != "" {
			annotations[a.key] = a.value
		}
	}
}

// Matters tells whether an annotation has a say in what a container gets: it is of
// this program, or says which container this is.
func Matters(annotation string) bool {
	if _, _, ok := splitKey(annotation); ok {
		return true
	}
	return slices.ContainsFunc(allPodKeys, func(k podKeys) bool {
		return slices.Contains([]string{k.kind, k.name, k.namespace}, annotation)
	})
}
