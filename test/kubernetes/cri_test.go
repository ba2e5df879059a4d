// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wrapper is a node whose RuntimeClass nix-closure has the wrapper for its runtime.
func wrapper(t *testing.T) *node {
	return newNode(t, nodeOptions{handlers: map[string]string{
		"nix-closure": filepath.Join(*bin, "nix-closure-runtime"),
		"runc":        filepath.Join(*bin, "stack/runc"),
	}})
}

// Each container of a pod sees its own closure.
func TestPodByWrapper(t *testing.T) {
	n := wrapper(t)
	for _, mode := range []string{"overlay", "bind"} {
		annotations := map[string]string{"nix-closure/mode": mode, "a.nix-closure/roots": store["tools"], "b.nix-closure/roots": store["env"]}
		p := n.run(t, "nix-closure", podConfig(t, annotations))
		for name, attribute := range map[string]string{"a": "tools", "b": "env"} {
			if got, want := n.sees(t, p.start(t, name)), closureOf(t, store[attribute]); !slices.Equal(got, want) {
				t.Errorf("%s, %s: %q\nwant %q", mode, name, got, want)
			}
		}
		p.remove(t)
		nothingLeft(t)
	}
}

// A pod-wide closure is every container's, and a container's own wins.
func TestPodWide(t *testing.T) {
	n := wrapper(t)
	annotations := roots("env")
	maps.Copy(annotations, map[string]string{"b.nix-closure/roots": store["tools"]})
	p := n.run(t, "nix-closure", podConfig(t, annotations))
	for name, attribute := range map[string]string{"a": "env", "b": "tools"} {
		if got, want := n.sees(t, p.start(t, name)), closureOf(t, store[attribute]); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", name, got, want)
		}
	}
}

// A pod with a user namespace of its own (hostUsers: false).
func TestPodWithUserNamespace(t *testing.T) {
	n := wrapper(t)
	want := closureOf(t, store["env"])
	for _, mode := range []string{"overlay", "bind"} {
		annotations := roots("env")
		annotations["nix-closure/mode"] = mode
		config := podConfig(t, annotations)
		ids := []*cri.IDMapping{{HostId: 100000, ContainerId: 0, Length: 65536}}
		config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
			UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
		}
		p := n.run(t, "nix-closure", config)
		id := p.start(t, "a")
		if got := n.sees(t, id); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", mode, got, want)
		}
		if got := strings.Fields(n.exec(t, id, "/bin/busybox", "cat", "/proc/self/uid_map")); !slices.Equal(got, []string{"0", "100000", "65536"}) {
			t.Errorf("%s: the users are %q", mode, got)
		}
		p.remove(t)
		nothingLeft(t)
	}
}

// What is wrong is said to who asks for the container.
func TestPodRefused(t *testing.T) {
	n := wrapper(t)
	const unknown = "/nix/store/00000000000000000000000000000000-unknown"
	p := n.run(t, "nix-closure", podConfig(t, map[string]string{"nix-closure/roots": unknown}))
	id, err := p.create(t.Context(), "a")
	if err == nil {
		_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
	}
	if err == nil || !strings.Contains(err.Error(), unknown+" is not valid: Nix has no such path registered") {
		t.Errorf("%v", err)
	}
	p.remove(t)
	nothingLeft(t)
}
