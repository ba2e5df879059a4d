// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"
)

// podKeys are the annotations by which a CRI engine says which container of a pod this is.
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

// keysOf returns the annotations that an engine sets itself; ok is false if it sets none.
func keysOf(engine Engine) (_ podKeys, ok bool) {
	i := slices.IndexFunc(allPodKeys, func(k podKeys) bool { return k.engine == engine })
	if i < 0 {
		return podKeys{}, false
	}
	return allPodKeys[i], true
}

// pod is what is believed about a container's place in a pod.
type pod struct {
	sandbox         bool
	name, namespace string
	// ignoredName and ignoredNamespace are annotations that claim a name or a namespace and
	// are not believed; empty: none.
	ignoredName, ignoredNamespace string
}

// podOf finds out which container of a pod this is. id is the container's ID; empty: not
// known yet.
//
// podman before 4.5.1 copies an image's annotations onto the container. So if the engine
// does not set a key itself, the value may be the image's.
//
// A container is believed to be a pod's sandbox (the pause container) only if the sandbox's
// ID is its own ID. Engines choose that ID at random when they make the container, so no
// image, user or pod's author can have written it.
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
	// If the engine itself says that this is no sandbox, another engine's key does not
	// count.
	if keys, ok := keysOf(engine); ok && p.sandbox {
		if kind := annotations[keys.kind]; kind != "" && kind != sandboxKind {
			return pod{}, fmt.Errorf("annotation %s is %q, and another says that this container is a pod's sandbox; "+
				"take that one out", keys.kind, kind)
		}
	}
	return p, nil
}

// SetContainer sets the annotations by which an engine says which container of a pod this
// is, and replaces those that are there. Call it only with a name and a namespace that come
// from the engine itself, and only for a container that is no sandbox.
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

// Matters reports whether an annotation can change what a container gets: its key is of
// this program, or it says which container this is.
func Matters(annotation string) bool {
	if _, _, ok := splitKey(annotation); ok {
		return true
	}
	return slices.ContainsFunc(allPodKeys, func(k podKeys) bool {
		return slices.Contains([]string{k.kind, k.name, k.namespace}, annotation)
	})
}
