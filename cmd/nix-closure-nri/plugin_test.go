// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newPlugin is a plugin on a host below a directory, which has a store with one
// path.
func newPlugin(t *testing.T) (_ *plugin, dir, root string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root = dir + "/nix/store/" + strings.Repeat("0", 32) + "-hello"
	config := fmt.Sprintf("store-dir = %q\nstate-dir = %q\nruntime-dir = %q\nlog-file = %q\n", dir+"/nix/store", dir+"/nix/var/nix", dir+"/run", dir+"/log")
	if err := errors.Join(os.MkdirAll(root, 0o755), os.MkdirAll(dir+"/nix/var/nix", 0o755), os.WriteFile(dir+"/config.toml", []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	return &plugin{
		config: dir + "/config.toml", hook: "/opt/hook", gvisor: []string{"runsc"},
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), metrics: newMetrics(),
	}, dir, root
}

func TestAdjust(t *testing.T) {
	p, dir, root := newPlugin(t)
	storeDir := dir + "/nix/store"
	bind := func(source, destination string) *api.Mount {
		return &api.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind", "ro"}}
	}
	hook := func(stage string) []*api.Hook {
		return []*api.Hook{{Path: "/opt/hook", Args: []string{"nix-closure-hook", "--config", p.config, stage}, Env: []string{"LC_ALL=C"}}}
	}
	const noOverlay = "nix-closure: container app: nix-closure-nri: gVisor calls hooks in a user namespace, where the kernel makes no overlay that shows the closure; ask for mode bind or auto, and not for a writable store"
	for _, c := range []struct {
		name                string
		pod, own            map[string]string // annotations
		handler             string
		mounts              []*api.Mount
		nothing             bool
		passedOn            map[string]string
		removed             []string
		createContainerOnly bool
		fails               string
	}{
		{name: "no annotation", pod: map[string]string{"a": "b"}, nothing: true},
		{name: "the pod's", pod: map[string]string{"nix-closure/roots": root, "a": "b"},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "the container's", pod: map[string]string{"app.nix-closure/roots": root},
			passedOn: map[string]string{"app.nix-closure/roots": root, "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "another container's", pod: map[string]string{"db.nix-closure/roots": root}, nothing: true},
		{name: "the engine says who it is", pod: map[string]string{"nix-closure/roots": root},
			own:      map[string]string{"io.kubernetes.container.name": "app", "io.kubernetes.pod.namespace": "team"},
			passedOn: map[string]string{"nix-closure/roots": root}},
		{name: "what the view replaces", pod: map[string]string{"nix-closure/roots": root},
			mounts:   []*api.Mount{bind(storeDir, storeDir), bind(root, "/conf"), bind(dir+"/nix", dir+"/nix")},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-namespace": "team"},
			removed:  []string{"-" + storeDir, "-" + dir + "/nix"}},
		{name: "gVisor", pod: map[string]string{"nix-closure/roots": root}, handler: "runsc", createContainerOnly: true,
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "an overlay under gVisor", pod: map[string]string{"nix-closure/roots": root, "nix-closure/mode": "overlay"}, handler: "runsc", fails: noOverlay},
		{name: "writing under gVisor", pod: map[string]string{"nix-closure/roots": root, "nix-closure/writable": "true"}, handler: "runsc", fails: noOverlay},
		{name: "a leak", pod: map[string]string{"nix-closure/roots": root}, mounts: []*api.Mount{bind(storeDir, "/x")},
			fails: "nix-closure: container app: looking at the container's mounts: mount of " + storeDir + " on /x: shows " + storeDir + " of the host, and with it more than the closure; take the mount out"},
		{name: "a typing mistake", pod: map[string]string{"nix-closure/root": root},
			fails: "nix-closure: container app: reading the annotations: annotation nix-closure/root: unknown; the keys are roots, closure-info, mode, registration, listing, writable"},
		{name: "another namespace than the engine's", pod: map[string]string{"nix-closure/roots": root},
			own:   map[string]string{"io.kubernetes.cri.sandbox-namespace": "team", "io.kubernetes.pod.namespace": "other"},
			fails: `nix-closure: container app: reading the annotations: annotations io.kubernetes.cri.sandbox-namespace and io.kubernetes.pod.namespace disagree on the container's namespace: "team", "other"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &api.PodSandbox{Name: "web", Namespace: "team", Annotations: c.pod, RuntimeHandler: c.handler}
			container := &api.Container{Name: "app", Annotations: c.own, Mounts: c.mounts}
			got, _, err := p.CreateContainer(t.Context(), pod, container)
			if c.fails != "" {
				if err == nil || err.Error() != c.fails {
					t.Errorf("%v\nwant %s", err, c.fails)
				}
				return
			}
			if err != nil || (got == nil) != c.nothing {
				t.Fatalf("%v, %v", got, err)
			}
			if c.nothing {
				return
			}
			var removed []string
			for _, m := range got.GetMounts() {
				removed = append(removed, m.Destination)
			}
			if diff := cmp.Diff(c.passedOn, got.GetAnnotations()); diff != "" {
				t.Errorf("annotations (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(c.removed, removed); diff != "" {
				t.Errorf("mounts (-want +got)\n%s", diff)
			}
			want := &api.Hooks{CreateRuntime: hook("createRuntime"), Poststop: hook("poststop")}
			if c.createContainerOnly {
				want = &api.Hooks{CreateContainer: hook("createContainer"), Poststop: hook("poststop")}
			}
			if got.GetHooks().String() != want.String() {
				t.Errorf("hooks %v\nwant %v", got.GetHooks(), want)
			}
		})
	}
	// All of them were counted.
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"containers_seen_total 12", "containers_adjusted_total 5", "containers_refused_total 5", "create_container_seconds_count 12"} {
		if !strings.Contains(answer.Body.String(), "nix_closure_"+want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, answer.Body)
		}
	}
}

// What is said of containers is for nobody outside of the host.
func TestServeRefuses(t *testing.T) {
	p, _, _ := newPlugin(t)
	for _, address := range []string{"0.0.0.0:0", ":0", "localhost:0", "10.0.0.1:80", "127.0.0.1", "[::]:0"} {
		if s, err := p.serve(t.Context(), address); err == nil {
			_ = s.Close()
			t.Errorf("%s: served", address)
		}
	}
}
