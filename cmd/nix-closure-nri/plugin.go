// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/coreos/go-systemd/v22/daemon"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/spec"
)

// plugin answers the engine.
type plugin struct {
	config, hook string
	gvisor       []string // runtime handlers
	log          *logrus.Logger
	metrics      *metrics
	connected    atomic.Bool
	pending      pending
	isCRIO       atomic.Bool // whether the engine is CRI-O, and not containerd
}

// Configure is told which engine this is. It asks for every event that there is a
// method for.
//
//nolint:unparam // NRI's interface
func (p *plugin) Configure(_ context.Context, _, runtime, _ string) (api.EventMask, error) {
	p.isCRIO.Store(runtime == string(spec.CRIO))
	return 0, nil
}

// engine is the one that the plugin is connected to.
func (p *plugin) engine() spec.Engine {
	if p.isCRIO.Load() {
		return spec.CRIO
	}
	return spec.Containerd
}

// After the request's time, two seconds if nobody says otherwise, an engine makes the
// container without the plugin. An answer takes some milliseconds, but for a mount
// whose source is on a file system that does not answer: then the plugin refuses,
// before the engine goes on.
const answerTime = time.Second

// watched is a connection that says when it has ended.
type watched struct {
	net.Conn
	end func() // may be called more than once
}

func (c watched) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.end()
	}
	return n, err
}

// connect registers the plugin with the engine, and returns when the connection
// ends.
func (p *plugin) connect(ctx context.Context, o options) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	connection, end := context.WithCancel(ctx)
	defer end()
	s, err := stub.New(p,
		stub.WithPluginName(o.name), stub.WithPluginIdx(o.index),
		stub.WithConnection(watched{conn, end}), stub.WithLogger(nriLog{p.log}))
	if err != nil {
		return err
	}
	defer p.connected.Store(false)
	// stub.Start blocks until Configure, even if the engine has gone, and cannot be
	// cancelled.
	started := make(chan error, 1)
	go func() { started <- s.Start(ctx) }()
	select {
	case err := <-started:
		if err != nil {
			return err
		}
		defer s.Stop()
		<-connection.Done()
	case <-connection.Done():
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errClosed
}

var errClosed = errors.New("the engine closed the connection")

// Synchronize is told of all that is there when the plugin connects, before it is
// asked about any container. What was started while it was away may run without the
// closure that it asks for.
//
//nolint:unparam // NRI's interface
func (p *plugin) Synchronize(
	ctx context.Context, pods []*api.PodSandbox, containers []*api.Container,
) ([]*api.ContainerUpdate, error) {
	byID := map[string]*api.PodSandbox{}
	for _, pod := range pods {
		byID[pod.GetId()] = pod
	}
	var without float64
	for _, c := range containers {
		pod := byID[c.GetPodSandboxId()]
		annotations := annotationsOf(p.engine(), pod, c)
		if c.GetState() != api.ContainerState_CONTAINER_RUNNING || !spec.Annotated(annotations) {
			continue
		}
		missing, err := hook.MissingView(p.config, p.engine(), c.GetId(), annotations)
		if err != nil {
			p.log.WithField("error", err.Error()).Error("looking for what has no closure")
		}
		if missing {
			without++
			p.log.WithFields(logrus.Fields{
				"pod": pod.GetName(), "namespace": pod.GetNamespace(), "container": c.GetName(), "id": c.GetId(),
			}).Warn("runs without the closure that it asks for: it was started while there was no plugin; remove it")
		}
	}
	p.metrics.without.Set(without)
	p.connected.Store(true)
	p.log.WithField("containers", len(containers)).Info("connected")
	// The service manager, where there is one, is told (sd_notify(3)).
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		p.log.WithField("error", err.Error()).Warn("telling the service manager")
	}
	return nil, nil
}

// CreateContainer says how a container is to be made. An error keeps the engine
// from making it.
//
//nolint:unparam // NRI's interface
func (p *plugin) CreateContainer(
	ctx context.Context, pod *api.PodSandbox, c *api.Container,
) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	began := time.Now()
	var a *api.ContainerAdjustment
	var err error
	if annotations := annotationsOf(p.engine(), pod, c); spec.Annotated(annotations) {
		a, err = p.inTime(ctx, pod, func() (*api.ContainerAdjustment, error) { return p.adjust(pod, c, annotations) })
	}
	p.metrics.count(a != nil, err, time.Since(began))
	if err != nil {
		err = hook.Failure(c.GetName(), "nix-closure-nri", err)
		p.log.WithFields(logrus.Fields{
			"pod": pod.GetName(), "namespace": pod.GetNamespace(), "container": c.GetName(),
		}).Error(err.Error())
		return nil, nil, err
	}
	return a, nil, nil
}

// inTime calls f for a container of the pod, and waits for it as long as there is time to
// answer.
func (p *plugin) inTime(
	ctx context.Context, pod *api.PodSandbox, f func() (*api.ContainerAdjustment, error),
) (*api.ContainerAdjustment, error) {
	limit := answerTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	end, err := p.pending.begin(pod)
	if err != nil {
		return nil, err
	}
	type answer struct {
		a   *api.ContainerAdjustment
		err error
	}
	done := make(chan answer, 1)
	go func() {
		a, err := f()
		end()
		done <- answer{a, err}
	}()
	select {
	case got := <-done:
		return got.a, got.err
	case <-time.After(limit):
		return nil, fmt.Errorf("no answer in %v, for the file system of a mount's source does not answer, "+
			"or this host is too busy", limit)
	}
}

// annotationsOf is what a container asks for. What the engine passes on to the
// container need not have what the pod's author wrote. Which container this is, the
// engine says outside of the annotations, and that counts.
func annotationsOf(engine spec.Engine, pod *api.PodSandbox, c *api.Container) map[string]string {
	annotations := maps.Clone(c.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	for key, value := range pod.GetAnnotations() {
		if _, own := annotations[key]; !own && spec.Annotated(map[string]string{key: value}) {
			annotations[key] = value
		}
	}
	if spec.Annotated(annotations) {
		spec.SetContainer(annotations, engine, c.GetName(), pod.GetNamespace())
	}
	return annotations
}

// adjust returns nil for a container that asks for nothing.
func (p *plugin) adjust(
	pod *api.PodSandbox, c *api.Container, annotations map[string]string,
) (*api.ContainerAdjustment, error) {
	var mounts []specs.Mount
	for _, m := range c.GetMounts() {
		mounts = append(mounts, specs.Mount{
			Destination: m.GetDestination(), Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions(),
		})
	}
	request, replaced, err := hook.CheckContainer(p.config, hook.Container{
		ID: c.GetId(), Engine: p.engine(), Bundle: "/", Annotations: annotations, Mounts: mounts,
	})
	if err != nil || request == nil {
		return nil, err
	}
	isGVisor := slices.Contains(p.gvisor, pod.GetRuntimeHandler())
	if isGVisor && (request.Mode == spec.ModeOverlay || request.Writable) {
		// Of what the hook says, gVisor shows nothing.
		return nil, errors.New("gVisor calls hooks in a user namespace, where the kernel makes no overlay that " +
			"shows the closure; ask for mode bind or auto, and not for a writable store")
	}
	a := &api.ContainerAdjustment{}
	for _, i := range replaced {
		a.RemoveMount(mounts[i].Destination)
	}
	// The hook is to see what was looked at here: not all that an engine tells a
	// plugin of is in config.json too.
	for key, value := range annotations {
		if spec.Matters(key) {
			a.AddAnnotation(key, value)
		}
	}
	entry := func(stage string) []*api.Hook {
		return []*api.Hook{{Path: p.hook, Args: hook.EntryArgs(p.config, p.engine(), stage), Env: []string{"LC_ALL=C"}}}
	}
	hooks := &api.Hooks{Poststop: entry("poststop")}
	if isGVisor {
		hooks.CreateContainer = entry("createContainer")
	} else {
		hooks.CreateRuntime = entry("createRuntime")
	}
	a.AddHooks(hooks)
	return a, nil
}
