// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/nix-closure/nix-closure/closure"
)

// Claim is the ownership of a container ID by this start, on record.
type Claim struct {
	dir *Dir
	// first is the record as first written. It never changes, so that another goroutine
	// may call Undo.
	first  Record
	record Record
}

var errSecondClosure = errors.New("the container has a closure already")

// Claim writes the first record of a container, and reserves what that says, as Reserve
// does. pins are the GC roots; empty: none are needed yet. It checks for an older record in
// the same step, so that of two containers with one ID that start at the same time, in two
// engines, one fails. It removes what an ended container with this ID left. attached
// means that this container already has its closure; the claim is nil then.
func (d *Dir) Claim(ctx context.Context, r Record, pins []closure.BaseName) (_ *Claim, attached bool, _ error) {
	lock, err := d.lockID(ctx, r.ID)
	if err != nil {
		return nil, false, err
	}
	defer lock.release()
	old, ok, err := d.Record(r.ID)
	if err != nil {
		return nil, false, fmt.Errorf("%w; nobody can tell whose it is: remove %s when no container with this ID runs",
			err, d.recordFile(r.ID))
	}
	if ok {
		attached, err := d.judge(old, r)
		if errors.Is(err, errSecondClosure) {
			// This container does not start, and not every runtime calls poststop in that
			// case.
			err = errors.Join(err, d.forget(old))
		}
		if attached || err != nil {
			return nil, attached, err
		}
		if err := d.forget(old); err != nil {
			return nil, false, fmt.Errorf("removing what an earlier container with this ID left: %w", err)
		}
	}
	if err := d.writeRecord(r); err != nil {
		return nil, false, err
	}
	if err := d.reserve(r, pins); err != nil {
		return nil, false, errors.Join(err, d.forget(r))
	}
	return &Claim{dir: d, first: r, record: r}, false, nil
}

// judge reports whether the container of an older record with the same ID already has its
// closure. An error means that the record belongs to another container that runs, or may
// run.
func (d *Dir) judge(old, r Record) (attached bool, _ error) {
	cannotTell := func(err error) error {
		return fmt.Errorf("cannot tell whether the container with this ID that has process %d (bundle %s) still runs: "+
			"%w; remove %s when it does not",
			old.Pid, old.Bundle, err, d.recordFile(r.ID))
	}
	if old.Kind != r.Kind || old.Kind == KindView {
		return false, old.checkGone(d.recordFile(r.ID))
	}
	runs, err := old.ProcessRuns()
	if err != nil {
		return false, cannotTell(err)
	}
	if old.sameContainer(r) {
		attached := runs && old.Attached // false: a hook was killed
		if attached && old.Request != r.Request {
			return false, fmt.Errorf("%w: another call of the hook asked for %s, and this one asks for %s; "+
				"give one container one closure, by one annotation or one device",
				errSecondClosure, old.Request, r.Request)
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

// errNotOwn says that the record of a start is gone or belongs to another container.
var errNotOwn = errors.New("the container's record was removed or replaced meanwhile: " +
	"its process has ended; start it again")

// Record returns the record as last written.
func (c *Claim) Record() Record { return c.record }

// lock takes the lock of the ID, and verifies that the record is still this start's. A
// sweep removes the record when the container's process has ended; after that another
// container may have the ID.
func (c *Claim) lock(ctx context.Context) (idLock, error) {
	lock, err := c.dir.lockID(ctx, c.record.ID)
	if err != nil {
		return noLock, err
	}
	now, ok, err := c.dir.Record(c.record.ID)
	if err == nil && (!ok || !now.sameContainer(c.record)) {
		err = errNotOwn
	}
	if err != nil {
		lock.release()
		return noLock, err
	}
	return lock, nil
}

// Reserve records what the container is going to use, and then protects it from sweeps
// and from Nix's garbage collector. Call it before any of it is looked up. pins become
// the container's GC roots.
func (c *Claim) Reserve(ctx context.Context, r Record, pins []closure.BaseName) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := c.rewrite(r); err != nil {
		return err
	}
	return c.dir.reserve(r, pins)
}

// reserve makes the marks and GC roots of a record that has just been written. Hold the
// lock of its ID.
func (d *Dir) reserve(r Record, pins []closure.BaseName) error {
	if r.View != "" {
		if err := d.addRef(d.Views, r.View, r.ID); err != nil {
			return err
		}
	}
	if r.Registration != "" {
		if err := d.addRef(d.Registrations, r.Registration, r.ID); err != nil {
			return err
		}
	}
	if len(pins) == 0 {
		return nil
	}
	return d.GCRoots().Add(d.store, r.ID, pins)
}

// Update replaces the record, and drops the marks of what only the old record uses.
func (c *Claim) Update(ctx context.Context, r Record) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	return c.rewrite(r)
}

// rewrite is Update for a caller that holds the lock of the ID.
func (c *Claim) rewrite(r Record) error {
	old := c.record
	if err := c.dir.writeRecord(r); err != nil {
		return err
	}
	c.record = r
	var errs []error
	if old.View != r.View {
		errs = append(errs, c.dir.dropRef(c.dir.Views, old.View, r.ID))
	}
	if old.Registration != r.Registration {
		errs = append(errs, c.dir.dropRef(c.dir.Registrations, old.Registration, r.ID))
	}
	return errors.Join(errs...)
}

// Undo removes what a start made on the host. If another container has the ID by now,
// that container keeps its state. Undo works even if ctx is over.
func (c *Claim) Undo(ctx context.Context) error {
	lock, err := c.dir.lockID(context.WithoutCancel(ctx), c.first.ID)
	if err != nil {
		return err
	}
	defer lock.release()
	now, ok, err := c.dir.Record(c.first.ID)
	if err != nil {
		return err
	}
	if !ok {
		now = c.first // a sweep removed the record; what was made since belongs to this start
	}
	if !now.sameContainer(c.first) {
		return nil
	}
	return c.dir.forget(now)
}
