// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/nix-closure/nix-closure/closure"
)

// Claim is a container ID that this process's container has: its record says so.
type Claim struct {
	dir *Dir
	// first is the record as it was written first. It never changes, so that Undo may be
	// called from another goroutine.
	first  Record
	record Record
}

var errSecondClosure = errors.New("the container has a closure already")

// Claim makes the first record of a container, in one step with the look at an
// older one: of two containers with one ID that start at the same time, of two
// engines, one fails. What a container that has ended left is removed. attached says
// that this container has its closure already; there is no claim then.
func (d *Dir) Claim(ctx context.Context, r Record) (_ *Claim, attached bool, _ error) {
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
			// The container does not start, and not every runtime calls poststop then.
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
	return &Claim{dir: d, first: r, record: r}, false, nil
}

// judge tells whether a container with an older record of its ID has its closure
// already. An error says that the record is another container's that runs, or may.
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
		attached := runs && old.Attached // if not, a hook was killed
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

// errNotOwn says that the record of a start is gone, or another's.
var errNotOwn = errors.New("the container's record was removed or replaced meanwhile: " +
	"its process has ended; start it again")

// Record is the record as it was written last.
func (c *Claim) Record() Record { return c.record }

// lock takes the lock of the ID, where the record is still this start's. A sweep
// removes it when the container's process has ended, and then the ID may be
// another's.
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

// Reserve writes the record with what the container is going to use, and then makes it safe
// from sweeps and from Nix's garbage collector, before any of it is looked for. pins
// become the container's GC roots.
func (c *Claim) Reserve(ctx context.Context, r Record, pins []closure.BaseName) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := c.rewrite(r); err != nil {
		return err
	}
	if r.View != "" {
		if err := c.dir.addRef(c.dir.Views, r.View, r.ID); err != nil {
			return err
		}
	}
	if r.Registration != "" {
		if err := c.dir.addRef(c.dir.Registrations, r.Registration, r.ID); err != nil {
			return err
		}
	}
	return c.dir.GCRoots().Add(c.dir.store, r.ID, pins)
}

// Update writes the record anew, and gives up what only the old one uses.
func (c *Claim) Update(ctx context.Context, r Record) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	return c.rewrite(r)
}

// rewrite is Update for who holds the lock of the ID.
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

// Undo removes what a start made on the host. Where the ID is another container's
// by now, that one keeps what it has. The start's context may be over.
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
		now = c.first // a sweep has it; what was made since is nobody else's
	}
	if !now.sameContainer(c.first) {
		return nil
	}
	return c.dir.forget(now)
}
