// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// start is one call of the hook that gives a container its closure.
type start struct {
	*progress
	config config.Config
	call   Call
	state  spec.State
	log    *logrus.Entry
	began  time.Time
	// daemon has been called already where only Nix can make the GC roots; nil: elsewhere.
	daemon *closure.DaemonCall
}

// engine is the engine that configured the hook: the one that the call names, or else the
// one whose bundles have this path.
func (s *start) engine() spec.Engine {
	return cmp.Or(s.call.Engine, spec.EngineOfBundle(s.state.Bundle, s.state.ID))
}

// create gives a container its closure, at the stages createRuntime, prestart and
// createContainer. On an error, it removes what it made on the host. The mounts that it
// attached end with the container.
func create(ctx context.Context, s *start) (Err error) {
	defer func() {
		if Err == nil {
			return
		}
		Err = &failure{s.state.ID, s.doing(), Err}
		if own := s.owned.Load(); own != nil {
			if err := own.Undo(ctx); err != nil {
				logError(s.log, &failure{s.state.ID, "cleaning up", err})
			}
		}
	}()
	checked, err := check(s)
	if s.daemon != nil {
		defer s.daemon.Close()
	}
	if err != nil || checked == nil {
		return err
	}
	defer checked.host.Close()
	if checked.request.Sandbox {
		return checked.isolateSandbox()
	}
	claimed, err := claim(ctx, checked)
	if err != nil || claimed == nil {
		return err
	}
	defer claimed.dir.Close()
	pinned, err := pin(ctx, claimed)
	if err != nil {
		return err
	}
	if err := pinned.checkNeighbours(); err != nil {
		return err
	}
	built, err := build(ctx, pinned)
	if err != nil {
		return err
	}
	defer built.close()
	if err := built.attach(); err != nil {
		return err
	}
	return built.commit(ctx)
}

// attach attaches the view inside the container's file systems. It holds no lock, because
// one of those file systems may never answer.
func (b *built) attach() error {
	b.at("attaching the view")
	a := b.attachment()
	a.view, a.stateDir = b.view, b.stateDir
	if b.request.Registration || b.request.Writable {
		a.owner = &b.owner
	}
	return a.attach(b.call.Stage)
}

// isolateSandbox removes mounts that would show the store to a pod's sandbox. The sandbox
// gets no view.
func (c *checked) isolateSandbox() error {
	c.at("looking at what is mounted in the pod's sandbox")
	// A pod may have the host's PID namespace. In that case the hook refuses its
	// containers, not its sandbox.
	c.host.ProcessesAllowed = true
	a := c.attachment()
	return a.attach(c.call.Stage)
}

// attachment returns an attachment without a view.
func (c *checked) attachment() attachment {
	return attachment{
		state: c.state, bundle: c.bundle, store: c.store, inspected: c.inspected, pidStart: c.pidStart,
		coverSize: writableSize(c.config, c.bundle), log: c.log,
	}
}

// commit records that the container has its closure.
func (b *built) commit(ctx context.Context) error {
	b.at("writing the record")
	r := b.claim.Record()
	r.Attached = true
	if err := b.claim.Update(ctx, r); err != nil {
		return err
	}
	b.log.WithFields(logrus.Fields{
		"mode": string(r.Mode), "why": b.why, "digest": r.Digest, "paths": b.resolution.Paths,
		"took": time.Since(b.began).String(),
	}).Info("attached")
	return nil
}

// asked describes the container's request, for a message.
func asked(store closure.Store, r *spec.Request) string {
	if r.ClosureInfo != "" {
		return "closure-info " + store.Path(r.ClosureInfo)
	}
	if more := len(r.Roots) - 1; more > 0 {
		return fmt.Sprintf("%s and %d more", store.Path(r.Roots[0]), more)
	}
	return store.Path(r.Roots[0])
}
