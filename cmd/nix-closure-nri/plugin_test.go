// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"
)

// newPlugin returns a plugin on a host in a directory, with a store of one path.
func newPlugin(t *testing.T) (_ *plugin, dir, root string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root = dir + "/nix/store/" + strings.Repeat("0", 32) + "-hello"
	config := fmt.Sprintf("store-dir = %q\nstate-dir = %q\nruntime-dir = %q\nlog-file = %q\n", dir+"/nix/store",
		dir+"/nix/var/nix", dir+"/run", dir+"/log")
	if err := errors.Join(os.MkdirAll(root, 0o755), os.MkdirAll(dir+"/nix/var/nix", 0o755),
		os.WriteFile(dir+"/config.toml", []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	return &plugin{
		config: dir + "/config.toml", hook: "/opt/hook", gvisor: []string{"runsc"},
		log:     &logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Level: logrus.InfoLevel},
		metrics: newMetrics(),
	}, dir, root
}

func TestAdjust(t *testing.T) {
	p, dir, root := newPlugin(t)
	storeDir := dir + "/nix/store"
	bind := func(source, destination string) *api.Mount {
		return &api.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind", "ro"}}
	}
	hook := func(stage string) []*api.Hook {
		return []*api.Hook{{Path: "/opt/hook",
			Args: []string{"nix-closure-hook", "--config", p.config, "--engine", "containerd", stage},
			Env:  []string{"GOMAXPROCS=1"}}}
	}
	const noOverlay = "nix-closure: container app: nix-closure-nri: gVisor calls hooks in a user namespace, where " +
		"the kernel makes no overlay that shows the closure; ask for mode bind or auto, and not for a writable store"
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
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "the container's", pod: map[string]string{"app.nix-closure/roots": root},
			passedOn: map[string]string{"app.nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "another container's", pod: map[string]string{"db.nix-closure/roots": root}, nothing: true},
		{name: "the pod's author says who it is", pod: map[string]string{"nix-closure/roots": root},
			own: map[string]string{"io.kubernetes.cri.container-name": "db",
				"io.kubernetes.cri.sandbox-namespace": "other"},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "the pod's author says who it is in the other engine's words",
			pod: map[string]string{"nix-closure/roots": root},
			own: map[string]string{"io.kubernetes.container.name": "db"},
			fails: "nix-closure: container app: reading the annotations: annotation io.kubernetes.container.name: " +
				"says which container of a pod this is, and containerd never sets it; an image or a user may have: " +
				"take it out"},
		// An engine reports annotations that are not in config.json.
		{name: "on the container itself", own: map[string]string{"nix-closure/roots": root, "a": "b"},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "on both", pod: map[string]string{"nix-closure/roots": "/elsewhere"},
			own: map[string]string{"nix-closure/roots": root},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "no sandbox, whatever it says", pod: map[string]string{"nix-closure/roots": root},
			own: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team", "io.kubernetes.cri.container-type": "container"}},
		{name: "what the view replaces", pod: map[string]string{"nix-closure/roots": root},
			mounts: []*api.Mount{bind(storeDir, storeDir), bind(root, "/conf"), bind(dir+"/nix", dir+"/nix")},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"},
			removed: []string{"-" + storeDir, "-" + dir + "/nix"}},
		{name: "gVisor", pod: map[string]string{"nix-closure/roots": root}, handler: "runsc", createContainerOnly: true,
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team"}},
		{name: "an overlay under gVisor",
			pod: map[string]string{"nix-closure/roots": root, "nix-closure/mode": "overlay"}, handler: "runsc",
			fails: noOverlay},
		{name: "writing under gVisor", pod: map[string]string{"nix-closure/roots": root,
			"nix-closure/writable": "true"}, handler: "runsc", fails: noOverlay},
		{name: "a leak", pod: map[string]string{"nix-closure/roots": root}, mounts: []*api.Mount{bind(storeDir, "/x")},
			fails: "nix-closure: container app: looking at the container's mounts: mount of " + storeDir +
				" on /x: shows " + storeDir + " of the host, and with it more than the closure; take the mount out"},
		{name: "a typing mistake", pod: map[string]string{"nix-closure/root": root},
			fails: "nix-closure: container app: reading the annotations: annotation nix-closure/root: unknown; the " +
				"keys are roots, closure-info, mode, registration, listing, writable"},
		{name: "another namespace than the engine's", pod: map[string]string{"nix-closure/roots": root},
			own: map[string]string{"io.kubernetes.cri.sandbox-namespace": "other",
				"io.kubernetes.pod.namespace": "other"},
			passedOn: map[string]string{"nix-closure/roots": root, "io.kubernetes.cri.container-name": "app",
				"io.kubernetes.cri.sandbox-namespace": "team",
				"io.kubernetes.pod.namespace":         "other"}},
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
	// CRI-O uses its own annotations for it.
	if _, err := p.Configure(t.Context(), "", "cri-o", "1.34"); err != nil {
		t.Fatal(err)
	}
	got := annotationsOf(p.engine(), &api.PodSandbox{Namespace: "team",
		Annotations: map[string]string{"nix-closure/roots": root}},
		&api.Container{Name: "app", Annotations: map[string]string{"io.kubernetes.pod.namespace": "other"}})
	want := map[string]string{"nix-closure/roots": root, "io.kubernetes.container.name": "app",
		"io.kubernetes.pod.namespace": "team"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("of CRI-O (-want +got)\n%s", diff)
	}
	// All of them were counted.
	for _, want := range []string{"containers_seen_total 16", "containers_adjusted_total 9",
		"containers_refused_total 5", "create_container_seconds_count 16"} {
		if got := metricsOf(p); !strings.Contains(got, "nix_closure_"+want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, got)
		}
	}
}

// An answer that does not come in time is a refusal, before the engine goes on without
// the plugin. The number of waiting answers is limited.
func TestInTime(t *testing.T) {
	p, _, _ := newPlugin(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	blocked := make(chan struct{})
	wait := func() (*api.ContainerAdjustment, error) { <-blocked; return nil, nil }
	at := func() (*api.ContainerAdjustment, error) { return &api.ContainerAdjustment{}, nil }
	pod := &api.PodSandbox{Id: "web"}
	for range podLimit {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		a, err := p.inTime(short, pod, wait)
		if a != nil || err == nil || !strings.Contains(err.Error(), "does not answer") || short.Err() != nil {
			t.Errorf("%v %v; the engine: %v", a, err, short.Err())
		}
		cancel()
	}
	if a, err := p.inTime(ctx, pod, at); a != nil || err == nil {
		t.Errorf("with too many that wait: %v %v", a, err)
	}
	close(blocked)
	awaitNone(t, p)
	if a, err := p.inTime(ctx, pod, at); a == nil || err != nil {
		t.Errorf("after they have ended: %v %v", a, err)
	}
}

// engine is the part of an engine that lets a plugin register.
type engine struct{ registered chan struct{} }

func (e engine) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	close(e.registered)
	return &api.Empty{}, nil
}

func (e engine) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return &api.UpdateContainersResponse{}, nil
}

// If an engine ends or is silent after the plugin has registered, the plugin can still
// reconnect and stop.
func TestConnectEnds(t *testing.T) {
	p, dir, _ := newPlugin(t)
	o := options{name: "nix-closure", index: "90", socket: dir + "/nri.sock"}
	for _, silent := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		l, err := net.Listen("unix", o.socket)
		if err != nil {
			t.Fatal(err)
		}
		e := engine{make(chan struct{})}
		var conn net.Conn
		go func() {
			if conn, err = l.Accept(); err != nil {
				return
			}
			mux := multiplex.Multiplex(conn)
			service, err := mux.Listen(multiplex.RuntimeServiceConn)
			if err != nil {
				return
			}
			server, err := ttrpc.NewServer()
			if err != nil {
				return
			}
			api.RegisterRuntimeService(server, e)
			_ = server.Serve(ctx, service)
		}()
		ended := make(chan error)
		go func() { ended <- p.connect(ctx, o) }()
		<-e.registered
		want := context.Canceled
		if silent {
			cancel()
		} else {
			want = errClosed
			_ = conn.Close()
		}
		if err := <-ended; !errors.Is(err, want) {
			t.Errorf("silent %v: %v, want %v", silent, err, want)
		}
		cancel()
		// The server closes the connection too when its context ends.
		if err := conn.Close(); silent && err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// When the plugin connects, it logs which containers were started while it was away.
func TestSynchronize(t *testing.T) {
	p, dir, root := newPlugin(t)
	var log strings.Builder
	p.log.Out = &log
	if err := errors.Join(os.MkdirAll(dir+"/run/containers", 0o700), os.Chmod(dir+"/run", 0o700),
		os.WriteFile(dir+"/run/containers/attached.json", []byte(`{"attached":true}`), 0o600),
		os.WriteFile(dir+"/run/containers/half.json", []byte(`{}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	pods := []*api.PodSandbox{
		{Id: "asks", Name: "asks", Annotations: map[string]string{"nix-closure/roots": root}},
		{Id: "other", Name: "other", Annotations: map[string]string{"a": "b"}},
		{Id: "db", Name: "db", Annotations: map[string]string{"db.nix-closure/roots": root}},
	}
	container := func(id, pod string, state api.ContainerState) *api.Container {
		return &api.Container{Id: id, PodSandboxId: pod, Name: "app", State: state}
	}
	running := api.ContainerState_CONTAINER_RUNNING
	_, err := p.Synchronize(t.Context(), pods, []*api.Container{
		container("attached", "asks", running), container("half", "asks", running), container("open", "asks", running),
		container("ended", "asks", api.ContainerState_CONTAINER_STOPPED), container("other", "other", running),
		container("not-db", "db", running),
	})
	if err != nil || !p.connected.Load() {
		t.Fatalf("%v, connected: %v", err, p.connected.Load())
	}
	for _, id := range []string{"attached", "half", "open", "ended", "other", "not-db"} {
		if got, want := strings.Contains(log.String(), " id="+id+" "), id == "half" || id == "open"; got != want {
			t.Errorf("%s is named: %v\n%s", id, got, log.String())
		}
	}
	if got := metricsOf(p); !strings.Contains(got, "nix_closure_containers_without_closure 2\n") {
		t.Errorf("metrics: %s", got)
	}
}

func metricsOf(p *plugin) string {
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(answer,
		httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return answer.Body.String()
}

// The plugin notifies the service manager.
func TestNotify(t *testing.T) {
	socket := t.TempDir() + "/notify"
	conn, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv("NOTIFY_SOCKET", socket)
	p, _, _ := newPlugin(t)
	if _, err := p.Synchronize(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 100)
	if n, _, err := conn.ReadFrom(text); err != nil || string(text[:n]) != "READY=1" {
		t.Errorf("%q %v", text[:n], err)
	}
}

// Metrics about containers are not for other hosts.
func TestServeRefuses(t *testing.T) {
	p, _, _ := newPlugin(t)
	for _, address := range []string{"0.0.0.0:0", ":0", "localhost:0", "10.0.0.1:80", "127.0.0.1", "[::]:0"} {
		if s, err := p.serve(t.Context(), address); err == nil {
			_ = s.Close()
			t.Errorf("%s: served", address)
		}
	}
}
