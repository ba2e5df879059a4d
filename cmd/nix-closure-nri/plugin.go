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

// plugin answers the engine's requests.
type plugin struct {
	config, hook string
	gvisor       []string // runtime handlers
	log          *logrus.Logger
	metrics      *metrics
	connected    atomic.Bool
	pending      pending
	isCRIO       atomic.Bool // whether the engine is CRI-O, and not containerd
}

// Configure learns which engine this is. It subscribes to every event that has a method.
//
//nolint:unparam // NRI's interface
func (p *plugin) Configure(_ context.Context, _, runtime, _ string) (api.EventMask, error) {
	p.isCRIO.Store(runtime == string(spec.CRIO))
	return 0, nil
}

// engine is the engine that the plugin is connected to.
func (p *plugin) engine() spec.Engine {
	if p.isCRIO.Load() {
		return spec.CRIO
	}
	return spec.Containerd
}

// answerTime bounds an answer. After the request timeout, two seconds by default, the
// engine creates the container without the plugin. An answer takes some milliseconds,
// unless the file system of a mount's source does not respond. In that case the plugin
// refuses the container before the engine goes on.
const answerTime = time.Second

// watched is a connection that calls end when reading fails.
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

// Synchronize learns of all existing containers when the plugin connects, before any
// request about a container. Containers that started while the plugin was away may run
// without the closure that they ask for.
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
			p.log.WithField("error", err.Error()).Error("cannot check whether a running container has its closure")
		}
		if missing {
			without++
			p.log.WithFields(logrus.Fields{
				"pod": pod.GetName(), "namespace": pod.GetNamespace(), "container": c.GetName(), "id": c.GetId(),
			}).Warn("container runs without the closure that it asks for: it started while no plugin was connected; " +
				"remove it")
		}
	}
	p.metrics.without.Set(without)
	p.connected.Store(true)
	p.log.WithField("containers", len(containers)).Info("connected")
	// Notify the service manager, if there is one (sd_notify(3)).
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		p.log.WithField("error", err.Error()).Warn("cannot notify the service manager")
	}
	return nil, nil
}

// CreateContainer returns the adjustments for a new container. An error keeps the engine
// from creating it.
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

// inTime calls f for a container of the pod, and waits for the result while there is time
// to answer.
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
		return nil, fmt.Errorf("no answer in %v: the file system of a mount's source does not answer, "+
			"or this host is too busy; check the volumes", limit)
	}
}

// annotationsOf returns the annotations of a container. An engine may not pass the
// annotations of the pod's author on to the container, so annotationsOf adds those. The
// engine also reports the container's name and namespace outside the annotations, and
// those override annotations.
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
		// Refuse here, because gVisor does not show the hook's message.
		return nil, errors.New("gVisor calls hooks in a user namespace, where the kernel makes no overlay that " +
			"shows the closure; ask for mode bind or auto, and not for a writable store")
	}
	a := &api.ContainerAdjustment{}
	for _, i := range replaced {
		a.RemoveMount(mounts[i].Destination)
	}
	// The hook must see the annotations that were checked here, but config.json does not
	// have all of those that an engine passes to a plugin.
	for key, value := range annotations {
		if spec.Matters(key) {
			a.AddAnnotation(key, value)
		}
	}
	entry := func(stage string) []*api.Hook {
		return []*api.Hook{{Path: p.hook, Args: hook.EntryArgs(p.config, p.engine(), stage), Env: spec.HookEnv()}}
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
