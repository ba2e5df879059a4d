// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"fmt"
	"slices"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/spec"
)

// claimed is a container whose ID this start owns, by its record.
type claimed struct {
	*checked
	dir     *state.Dir
	claim   *state.Claim
	options view.Options
	// reserved is the closure, if the record and the GC roots have it already.
	reserved *closure.Resolution
}

// claim writes the container's first record. It returns nil for a container that already
// has its closure.
func claim(ctx context.Context, c *checked) (*claimed, error) {
	c.at("opening the runtime directory")
	dir, err := state.Open(c.config)
	if err != nil {
		return nil, err
	}
	claimed, err := claimIn(ctx, c, dir)
	if claimed == nil {
		dir.Close()
	}
	return claimed, err
}

func claimIn(ctx context.Context, c *checked, dir *state.Dir) (*claimed, error) {
	swept, err := dir.SweepBeforeStart(ctx)
	logSweep(c.log, swept, err)
	record := state.Record{
		ID: c.state.ID, Bundle: c.state.Bundle, Stated: c.stated, Pid: c.state.Pid, PidStart: c.pidStart,
		SharedPID: c.sharedPID, Engine: c.engine(), Way: state.WayAnnotation,
		Roots: c.roots(), ClosureInfo: c.request.ClosureInfo,
		Mode: modeOf(c.request, c.config), Writable: c.request.Writable, Request: c.requestText(),
		GCRoots: dir.GCRoots().Of(c.state.ID), Created: c.began.UTC(),
	}
	if len(c.call.Annotations) > 0 {
		record.Way = state.WayDevice
	}
	if record.Mode == spec.ModeAuto {
		record.Mode = spec.ModeOverlay // the likely mode; setMode corrects it
	}
	claimed := &claimed{checked: c, dir: dir, options: view.Options{
		Label: c.bundle.MountLabel, Listed: c.request.Listing,
		// A writable store needs no empty .links, because Nix makes it there. .links is
		// not in the closure.
		Links: c.request.Registration && !c.request.Writable,
	}}
	// A closure that is remembered is on record at once.
	var pins []closure.BaseName
	known, held, ok := newPinner(claimed).remembered()
	if ok {
		defer held.Close()
		record, pins = claimed.using(record, known.Digest), known.Pins
		claimed.reserved = &known
	}
	c.at("claiming the container ID")
	own, attached, err := dir.Claim(ctx, record, pins)
	if err != nil {
		return nil, err
	}
	if attached {
		c.log.Info("attached already: the container has two hook entries, of two engines or two stages")
		return nil, nil
	}
	c.owned.Store(own)
	claimed.claim = own
	return claimed, nil
}

// requestText is the container's request in canonical form: requests with the same
// meaning have the same text.
func (c *checked) requestText() string {
	roots := slices.Sorted(slices.Values(c.roots()))
	return fmt.Sprintf("roots %s, closure-info %q, mode %q, registration %v, listing %v, writable %v",
		roots, c.request.ClosureInfo, c.request.Mode, c.request.Registration, c.request.Listing, c.request.Writable)
}

// reserve records what the container is going to use, before any of it is looked up.
// digest is the closure's; empty: not known yet.
func (c *claimed) reserve(ctx context.Context, digest string, pins []closure.BaseName) error {
	return c.claim.Reserve(ctx, c.using(c.claim.Record(), digest), pins)
}

// using returns a record with what the container uses of a closure.
func (c *claimed) using(r state.Record, digest string) state.Record {
	r.Digest, r.View, r.Registration = digest, "", ""
	if digest != "" && r.Mode == spec.ModeOverlay {
		r.View = view.LayerName(digest, c.options)
	}
	if digest != "" && c.request.Registration {
		r.Registration = closure.RegistrationName(digest, c.request.ClosureInfo)
	}
	return r
}
