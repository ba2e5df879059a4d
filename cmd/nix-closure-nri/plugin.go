// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// plugin answers the engine. It resolves no closure, so that it never comes near
// the two seconds after which an engine goes on without a plugin.
type plugin struct {
	config, hook string
	gvisor       []string // runtime handlers
	log          *slog.Logger
	metrics      *metrics
	connected    atomic.Bool
}

// connect registers the plugin with the engine, and returns when the connection
// ends.
func (p *plugin) connect(ctx context.Context, o options) error {
	ended := make(chan struct{})
	s, err := stub.New(p,
		stub.WithPluginName(o.name), stub.WithPluginIdx(o.index), stub.WithSocketPath(o.socket),
		stub.WithOnClose(func() { close(ended) }))
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer s.Stop()
	p.connected.Store(true)
	defer p.connected.Store(false)
	p.log.Info("connected", "socket", o.socket)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
		return errors.New("the engine closed the connection")
	}
}

// CreateContainer says how a container is to be made. An error keeps the engine
// from making it.
//
//nolint:unparam // NRI's interface
func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	began := time.Now()
	a, err := p.adjust(pod, c)
	p.metrics.count(a != nil, err, time.Since(began))
	if err != nil {
		err = hook.Failure(c.GetName(), "nix-closure-nri", err)
		p.log.Error(err.Error(), "pod", pod.GetName(), "namespace", pod.GetNamespace(), "container", c.GetName())
		return nil, nil, err
	}
	return a, nil, nil
}

// adjust returns nil for a container that asks for nothing.
func (p *plugin) adjust(pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, error) {
	// What the engine passes on to the container, and it need not pass on what the
	// pod's author wrote.
	annotations := maps.Clone(c.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	for key, value := range pod.GetAnnotations() {
		if spec.Annotated(map[string]string{key: value}) {
			annotations[key] = value
		}
	}
	if !spec.Annotated(annotations) {
		return nil, nil
	}
	spec.SetContainer(annotations, c.GetName(), pod.GetNamespace())
	var mounts []specs.Mount
	for _, m := range c.GetMounts() {
		mounts = append(mounts, specs.Mount{Destination: m.GetDestination(), Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()})
	}
	request, replaced, err := hook.Inspect(p.config, "/", annotations, mounts)
	if err != nil || request == nil {
		return nil, err
	}
	isGVisor := slices.Contains(p.gvisor, pod.GetRuntimeHandler())
	if isGVisor && (request.Mode == spec.ModeOverlay || request.Writable) {
		// Of what the hook says, gVisor shows nothing.
		return nil, errors.New("gVisor calls hooks in a user namespace, where the kernel makes no overlay that shows the closure; ask for mode bind or auto, and not for a writable store")
	}
	a := &api.ContainerAdjustment{}
	for _, i := range replaced {
		a.RemoveMount(mounts[i].Destination)
	}
	// The hook is to see what was looked at here.
	for key, value := range annotations {
		if had, ok := c.GetAnnotations()[key]; !ok || had != value {
			a.AddAnnotation(key, value)
		}
	}
	entry := func(stage string) []*api.Hook {
		args := []string{"nix-closure-hook"}
		// As nix-closure-runtime writes it, which then leaves it at one hook.
		if p.config != config.Path {
			args = append(args, "--config", p.config)
		}
		return []*api.Hook{{Path: p.hook, Args: append(args, stage), Env: []string{"LC_ALL=C"}}}
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
