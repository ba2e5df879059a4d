// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"errors"
	"fmt"
	"os"
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

// byEachWay runs a test with each way to the hook: by a RuntimeClass that is the
// wrapper, and by the plugin, with an unmodified configuration of the runtimes, which
// passes no annotation on.
func byEachWay(t *testing.T, test func(t *testing.T, n *node, handler string)) {
	t.Run("wrapper", func(t *testing.T) { test(t, wrapper(t), "nix-closure") })
	t.Run("plugin", func(t *testing.T) {
		n := newNode(t, nodeOptions{})
		n.startPlugin(t)
		test(t, n, "")
	})
}

// wholeStore is the host's, as pods had it before there was a closure.
var wholeStore = &cri.Mount{ContainerPath: storeDir, HostPath: storeDir, Readonly: true}

// Each container of a pod sees its own closure, which wins over the pod's, and the
// sandbox sees none.
func TestPod(t *testing.T) {
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		for _, annotations := range []map[string]string{
			{"a.nix-closure/roots": store["env"], "b.nix-closure/roots": store["tools"]},
			{"nix-closure/roots": store["env"], "b.nix-closure/roots": store["tools"]},
		} {
			for _, mode := range []string{"overlay", "bind"} {
				annotations["nix-closure/mode"] = mode
				p := n.run(t, handler, podConfig(t, annotations))
				nothingLeft(t)
				if sees, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/nix", p.pid(t))); !errors.Is(err,
					os.ErrNotExist) {
					t.Errorf("the sandbox has %v %v", sees, err)
				}
				for name, attribute := range map[string]string{"a": "env", "b": "tools"} {
					if got, want := n.sees(t, p.start(t, name, wholeStore)),
						closureOf(t, store[attribute]); !slices.Equal(got, want) {
						t.Errorf("%s, %s: %q\nwant %q", mode, name, got, want)
					}
				}
				p.remove(t)
				nothingLeft(t)
			}
		}
	})
}

// The wrapper adds no hook to a sandbox that has only what containerd made for it. With the
// host's memory there, which other programs of the host mount into, the hook looks at it.
func TestPodSandboxHook(t *testing.T) {
	n := wrapper(t)
	for mode, hooks := range map[cri.NamespaceMode]int{cri.NamespaceMode_POD: 0, cri.NamespaceMode_NODE: 2} {
		config := podConfig(t, roots("env"))
		config.Linux.SecurityContext.NamespaceOptions.Ipc = mode
		p := n.run(t, "nix-closure", config)
		text, err := os.ReadFile(n.dir + "/state/io.containerd.runtime.v2.task/k8s.io/" + p.id + "/config.json")
		if got := strings.Count(string(text), `"nix-closure-hook"`); err != nil || got != hooks {
			t.Errorf("IPC of %v: the sandbox has %d hooks, want %d: %v %s", mode, got, hooks, err, text)
		}
		if got, want := n.sees(t, p.start(t, "web")), closureOf(t, store["env"]); !slices.Equal(got, want) {
			t.Errorf("IPC of %v: the container sees %q\nwant %q", mode, got, want)
		}
		p.remove(t)
	}
	nothingLeft(t)
}

// Without an annotation, a container is as before.
func TestPodWithoutAnnotation(t *testing.T) {
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		p := n.run(t, handler, podConfig(t, nil))
		if got := n.sees(t, p.start(t, "c", wholeStore)); !slices.Contains(got, filepath.Base(store["foreign"])) {
			t.Errorf("it sees %q", got)
		}
		p.remove(t)
		nothingLeft(t)
	})
}

// A pod with a user namespace of its own (hostUsers: false).
func TestPodWithUserNamespace(t *testing.T) {
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		want := closureOf(t, store["env"])
		for _, mode := range []string{"overlay", "bind"} {
			annotations := roots("env")
			annotations["nix-closure/mode"] = mode
			config := podConfig(t, annotations)
			ids := []*cri.IDMapping{{HostId: 100000, ContainerId: 0, Length: 65536}}
			config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
				Pid:           cri.NamespaceMode_CONTAINER,
				UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
			}
			p := n.run(t, handler, config)
			id := p.start(t, "a")
			if got := n.sees(t, id); !slices.Equal(got, want) {
				t.Errorf("%s: %q\nwant %q", mode, got, want)
			}
			if got := strings.Fields(n.exec(t, id, "/bin/busybox", "cat", "/proc/self/uid_map")); !slices.Equal(got,
				[]string{"0", "100000", "65536"}) {
				t.Errorf("%s: the users are %q", mode, got)
			}
			p.remove(t)
			nothingLeft(t)
		}
	})
}

// What is wrong is said to who asks for the container.
func TestPodRefused(t *testing.T) {
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		const unknown = "/nix/store/00000000000000000000000000000000-unknown"
		p := n.run(t, handler, podConfig(t, map[string]string{"nix-closure/roots": unknown}))
		id, err := p.create(t.Context(), "a")
		if err == nil {
			_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
		}
		if err == nil || !strings.Contains(err.Error(), unknown+" is not valid: Nix has no such path registered") {
			t.Errorf("%v", err)
		}
		p.remove(t)
		nothingLeft(t)
	})
}
