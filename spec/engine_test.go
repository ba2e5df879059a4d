// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"
	"testing"
)

// What an image, a user or a pod's author can write into annotations weakens nothing:
// it is an error, or it is not looked at.
func TestWhoIsBelieved(t *testing.T) {
	const (
		cri, crio = "io.kubernetes.cri.", "io.kubernetes.cri-o."
		criType   = cri + "container-type"
		criName   = cri + "container-name"
		criSpace  = cri + "sandbox-namespace"
		crioType  = crio + "ContainerType"
		crioName  = "io.kubernetes.container.name"
		crioSpace = "io.kubernetes.pod.namespace"
	)
	everywhere := []Engine{UnknownEngine, Podman, Docker, Containerd, CRIO}
	for _, c := range []struct {
		name    string
		engines []Engine
		in      []string
		want    string // in the error; empty: the container's own roots
	}{
		{name: "a sandbox", engines: everywhere, in: []string{criType, "sandbox"},
			want: "annotation " + criType + ": says that this container is a pod's sandbox"},
		{name: "a sandbox of CRI-O", engines: everywhere, in: []string{crioType, "sandbox"},
			want: "annotation " + crioType + ": says that this container is a pod's sandbox"},
		{name: "the sandbox of another container", engines: everywhere,
			in:   []string{criType, "sandbox", cri + "sandbox-id", "fedcba"},
			want: "says that this container is a pod's sandbox"},
		{name: "the sandbox's ID in the other's words", engines: everywhere,
			in:   []string{criType, "sandbox", crio + "SandboxID", containerID},
			want: "says that this container is a pod's sandbox"},
		{name: "a container", engines: everywhere, in: []string{criType, "container", crioType, "container"}},
		{name: "contradicting containerd", engines: []Engine{Containerd},
			in:   []string{criType, "container", crioType, "sandbox", crio + "SandboxID", containerID},
			want: "another says that this container is a pod's sandbox"},
		{name: "contradicting CRI-O", engines: []Engine{CRIO},
			in:   []string{crioType, "container", criType, "sandbox", cri + "sandbox-id", containerID},
			want: "another says that this container is a pod's sandbox"},
		{name: "a name", engines: []Engine{Podman, Docker, CRIO}, in: []string{criName, "web"},
			want: "annotation " + criName + ": says which container of a pod this is, and "},
		{name: "a name of CRI-O", engines: []Engine{Podman, Docker, Containerd}, in: []string{crioName, "web"},
			want: "annotation " + crioName + ": says which container of a pod this is, and "},
		{name: "a name, and nobody knows whose", engines: []Engine{UnknownEngine},
			in: []string{criName, "web", crioName, "web"}},
		{name: "a name and roots of its own, and nobody knows whose", engines: []Engine{UnknownEngine},
			in: []string{criName, "web", "web.nix-closure/roots", storePath("foreign")},
			want: "annotation web.nix-closure/roots: is for one container of a pod, and the one that says which " +
				"this is, " +
				criName + ", may be an image's"},
		{name: "the name of the engine's own", engines: []Engine{Containerd}, in: []string{criName, "web"}},
		{name: "the name of CRI-O's own", engines: []Engine{CRIO}, in: []string{crioName, "web"}},
		{name: "a namespace", engines: []Engine{UnknownEngine, Podman, Docker, CRIO}, in: []string{criSpace, "team-b"}},
		{name: "a namespace of CRI-O", engines: []Engine{UnknownEngine, Podman, Docker, Containerd},
			in: []string{crioSpace, "team-b"}},
	} {
		for _, engine := range c.engines {
			in := annotations(append(c.in, "nix-closure/roots", storePath("a"))...)
			got, err := ParseAnnotations(nixStore, engine, containerID, in)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s, %q: %+v, %v; want %q", c.name, engine, got, err, c.want)
				}
				continue
			}
			if err != nil || got == nil || got.Sandbox || len(got.Roots) != 1 || got.Roots[0] != named("a") {
				t.Errorf("%s, %q: %+v, %v", c.name, engine, got, err)
				continue
			}
			claimed := in[criSpace] != "" || in[crioSpace] != ""
			if got.Namespace != "" || (got.IgnoredNamespace != "") != claimed {
				t.Errorf("%s, %q: namespace %q, ignored %q", c.name, engine, got.Namespace, got.IgnoredNamespace)
			}
		}
	}
}

// A sandbox is known by its own ID, on every engine.
func TestSandboxByID(t *testing.T) {
	in := annotations("nix-closure/roots", storePath("a"),
		"io.kubernetes.cri-o.ContainerType", "sandbox", "io.kubernetes.cri-o.SandboxID", containerID)
	for _, engine := range append([]Engine{UnknownEngine}, Engines...) {
		if got, err := ParseAnnotations(nixStore, engine, containerID, in); err != nil || !got.Sandbox {
			t.Errorf("%q: %+v, %v", engine, got, err)
		}
		if got, err := ParseAnnotations(nixStore, engine, containerID+"0", in); err == nil {
			t.Errorf("%q: another container is taken for the sandbox: %+v", engine, got)
		}
	}
}

func TestEngineOfBundle(t *testing.T) {
	const task = "/run/containerd/io.containerd.runtime.v2.task"
	for bundle, want := range map[string]Engine{
		task + "/k8s.io/" + containerID:       Containerd,
		task + "/k8s.io/other":                UnknownEngine,
		task + "/moby/" + containerID:         UnknownEngine,
		task + "/default/" + containerID:      UnknownEngine,
		task + "/xk8s.io/" + containerID:      UnknownEngine,
		"/k8s.io/" + containerID:              UnknownEngine,
		task + "/k8s.io/x" + containerID:      UnknownEngine,
		task + "/k8s.io/" + containerID + "/": UnknownEngine,
		"":                                    UnknownEngine,
	} {
		if got := EngineOfBundle(bundle, containerID); got != want {
			t.Errorf("%s: %q", bundle, got)
		}
	}
	if got := EngineOfBundle(task+"/k8s.io/", ""); got != UnknownEngine {
		t.Errorf("without an id: %q", got)
	}
}

// What the plugin has from the engine takes the place of what a pod's author wrote.
func TestSetContainer(t *testing.T) {
	in := annotations("nix-closure/roots", storePath("a"), "web.nix-closure/roots", storePath("b"),
		"io.kubernetes.cri.container-name", "web", "io.kubernetes.cri.sandbox-namespace", "team-b",
		"io.kubernetes.cri.container-type", "sandbox")
	SetContainer(in, Containerd, "db", "team-a")
	got, err := ParseAnnotations(nixStore, Containerd, containerID, in)
	if err != nil || got.Sandbox || got.Namespace != "team-a" || got.Roots[0] != named("a") {
		t.Errorf("%+v, %v", got, err)
	}
}
