// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/spec"
)

// claimed is a container whose ID is this start's: the record says so.
type claimed struct {
	*checked
	dir     *RuntimeDir
	record  Record
	options view.Options
}

// claim makes the first record of a container. It returns nil for one that has its
// closure already.
func claim(ctx context.Context, c *checked) (*claimed, error) {
	c.at("opening the runtime directory")
	dir, err := OpenRuntimeDir(c.config)
	if err != nil {
		return nil, err
	}
	claimed, err := claimIn(ctx, c, dir)
	if claimed == nil {
		dir.Close()
	}
	return claimed, err
}

func claimIn(ctx context.Context, c *checked, dir *RuntimeDir) (_ *claimed, err error) {
	dir.sweepSome(ctx, true, c.store, c.log)
	record := Record{
		ID: c.state.ID, Bundle: c.state.Bundle, Stated: c.stated, Pid: c.state.Pid, PidStart: c.pidStart,
		SharedPID: c.sharedPID,
		Roots:     c.roots(), ClosureInfo: c.request.ClosureInfo,
		Mode: modeOf(c.request, c.config), Writable: c.request.Writable, Request: c.requestText(),
		GCRoots: dir.gcRoots(c.store).Of(c.state.ID), Created: c.began.UTC(),
	}
	if record.Mode == spec.ModeAuto {
		record.Mode = spec.ModeOverlay // what it mostly is; written again if not
	}
	c.at("claiming the container ID")
	attached, err := dir.claim(ctx, c.store, record)
	if err != nil {
		return nil, err
	}
	if attached {
		c.log.Info("attached already: the hook is called twice, by two engines' or two stages' entries")
		return nil, nil
	}
	c.owned.Store(&ownRecord{dir, c.store, record})
	options := view.Options{
		Label: c.bundle.MountLabel, Listed: c.request.Listing,
		// Who may write to the store makes it; it is not in the closure.
		Links: c.request.Registration && !c.request.Writable,
	}
	return &claimed{c, dir, record, options}, nil
}

var errSecondClosure = errors.New("the container has a closure already")

// requestText is what the container asks for, in one form for what means the same.
func (c *checked) requestText() string {
	roots := slices.Sorted(slices.Values(c.roots()))
	return fmt.Sprintf("roots %s, closure-info %q, mode %q, registration %v, listing %v, writable %v",
		roots, c.request.ClosureInfo, c.request.Mode, c.request.Registration, c.request.Listing, c.request.Writable)
}

// claim makes the first record of a container, in one step with the look at an
// older one: of two containers with one ID that start at the same time, of two
// engines, one fails. What a container that has ended left is removed. attached says
// that this container has its closure already.
func (d *RuntimeDir) claim(ctx context.Context, store closure.Store, r Record) (attached bool, _ error) {
	lock, err := d.lockID(ctx, r.ID)
	if err != nil {
		return false, err
	}
	defer lock.release()
	old, ok, err := d.readRecord(r.ID)
	if err != nil {
		return false, fmt.Errorf("%w; nobody can tell whose it is: remove %s when no container with this ID runs",
			err, d.recordFile(r.ID))
	}
	if ok {
		attached, err := d.judge(old, r)
		if errors.Is(err, errSecondClosure) {
			// The container does not start, and not every runtime calls poststop then.
			err = errors.Join(err, d.forget(store, old))
		}
		if attached || err != nil {
			return attached, err
		}
		if err := d.forget(store, old); err != nil {
			return false, fmt.Errorf("removing what an earlier container with this ID left: %w", err)
		}
	}
	return false, d.writeRecord(r)
}

// judge tells whether a container with an older record of its ID has its closure
// already. An error says that the record is another container's that runs, or may.
func (d *RuntimeDir) judge(old, r Record) (attached bool, _ error) {
	cannotTell := func(err error) error {
		return fmt.Errorf("cannot tell whether the container with this ID that has process %d (bundle %s) still runs: "+
			"%w; remove %s when it does not",
			old.Pid, old.Bundle, err, d.recordFile(r.ID))
	}
	runs, err := old.processRuns()
	if err != nil {
		return false, cannotTell(err)
	}
	if old.sameContainer(r) {
		attached := runs && old.Attached // if not, a hook was killed
		if attached && old.Request != r.Request {
			return false, fmt.Errorf("%w: another call of the hook asked for %s, and this one asks for %s; "+
				"give one container one closure, by one annotation or one device", errSecondClosure, old.Request, r.Request)
		}
		return attached, nil
	}
	if !runs && old.Bundle == r.Bundle {
		return false, nil // an earlier run of the same container
	}
	live, err := old.live()
	if err != nil {
		return false, cannotTell(err)
	}
	if live {
		return false, fmt.Errorf("process %d of another container with this ID is running (bundle %s); "+
			"give one of them another name", old.Pid, old.Bundle)
	}
	return false, nil
}

// errNotOwn says that the record of a start is gone, or another's.
var errNotOwn = errors.New("the container's record was removed or replaced meanwhile: " +
	"its process has ended; start it again")

// lock takes the lock of the ID, where the record is still this start's. A sweep
// removes it when the container's process has ended, and then the ID may be
// another's.
func (c *claimed) lock(ctx context.Context) (idLock, error) {
	lock, err := c.dir.lockID(ctx, c.record.ID)
	if err != nil {
		return noLock, err
	}
	now, ok, err := c.dir.readRecord(c.record.ID)
	if err == nil && (!ok || !now.sameContainer(c.record)) {
		err = errNotOwn
	}
	if err != nil {
		lock.release()
		return noLock, err
	}
	return lock, nil
}

// begin writes down what the container is going to use, and then makes it safe from
// sweeps and from Nix's garbage collector, before any of it is looked for. digest
// is the closure's; empty: not known yet.
func (c *claimed) begin(ctx context.Context, digest string, pins []closure.BaseName) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	r := c.record
	r.Digest, r.View, r.Database = digest, "", ""
	if digest != "" && r.Mode == spec.ModeOverlay {
		r.View = view.LayerName(digest, c.options)
	}
	if digest != "" && c.request.Registration {
		r.Database = closure.RegistrationName(digest, c.request.ClosureInfo)
	}
	if err := c.rewrite(r); err != nil {
		return err
	}
	if r.View != "" {
		if err := c.dir.use(c.dir.Views, r.View, r.ID); err != nil {
			return err
		}
	}
	if r.Database != "" {
		if err := c.dir.use(c.dir.Registrations, r.Database, r.ID); err != nil {
			return err
		}
	}
	return c.dir.gcRoots(c.store).Add(c.store, r.ID, pins)
}

// rewrite writes the record anew, and gives up what only the old one uses. Hold the
// lock of its ID.
func (c *claimed) rewrite(r Record) error {
	old := c.record
	if err := c.dir.writeRecord(r); err != nil {
		return err
	}
	c.record = r
	var errs []error
	if old.View != r.View {
		errs = append(errs, c.dir.release(c.dir.Views, old.View, r.ID))
	}
	if old.Database != r.Database {
		errs = append(errs, c.dir.release(c.dir.Registrations, old.Database, r.ID))
	}
	return errors.Join(errs...)
}

// ownRecord is a record that this process wrote first, and what to remove with it.
type ownRecord struct {
	dir    *RuntimeDir
	store  closure.Store
	record Record
}

// undo removes what a start made on the host. Where the ID is another container's
// by now, that one keeps what it has. The start's context may be over.
func (o *ownRecord) undo(ctx context.Context) error {
	lock, err := o.dir.lockID(context.WithoutCancel(ctx), o.record.ID)
	if err != nil {
		return err
	}
	defer lock.release()
	now, ok, err := o.dir.readRecord(o.record.ID)
	if err != nil {
		return err
	}
	if !ok {
		now = o.record // a sweep has it; what was made since is nobody else's
	}
	if !now.sameContainer(o.record) {
		return nil
	}
	return o.dir.forget(o.store, now)
}
