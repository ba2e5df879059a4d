// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"fmt"
	"time"

	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// Outcome is what End did with a container's record.
type Outcome int

const (
	// NoRecord means that there is no record, and so nothing else of the container.
	NoRecord Outcome = iota
	// Forgotten means that the record was removed, with everything that belongs to it.
	Forgotten
	// KeptOther means that the record stays, because it belongs to another container with
	// this ID.
	KeptOther
	// KeptRunning means that the record stays, because the container runs.
	KeptRunning
)

// End removes the record of a container that is gone. It keeps the record if that belongs
// to another container with the same ID, of another engine or namespace, or if this
// container was started again. If it cannot tell, it keeps the record and returns an
// error. It also returns the record that it kept or removed.
func (d *Dir) End(ctx context.Context, id, bundle string) (Outcome, Record, error) {
	outcome, r, err := d.tryEnd(ctx, id, bundle)
	if outcome == KeptRunning && err == nil && r.Pid > 0 && ctx.Err() == nil {
		// Not every runtime waits for a process that it kills.
		proc.AwaitEnd(r.Pid, endTimeout)
		outcome, r, err = d.tryEnd(ctx, id, bundle)
	}
	return outcome, r, err
}

// endTimeout is how long End waits for a process.
const endTimeout = 300 * time.Millisecond

// tryEnd is End for a container whose processes have ended.
func (d *Dir) tryEnd(ctx context.Context, id, bundle string) (Outcome, Record, error) {
	lock, err := d.lockID(ctx, id)
	if err != nil {
		return NoRecord, Record{}, err
	}
	defer lock.release()
	r, ok, err := d.Record(id)
	if err != nil {
		return KeptOther, r, keptRecord(err, d.recordFile(id))
	}
	if !ok {
		return NoRecord, r, nil // the record is removed last, so nothing else is left
	}
	if r.Kind != "" || !r.inBundle(bundle) {
		return KeptOther, r, nil
	}
	// When the runtime calls poststop, it has ended the other processes too, even in a
	// container without a PID namespace.
	runs, err := r.ProcessRuns()
	if err != nil {
		return KeptRunning, r, keptRecord(err, d.recordFile(id))
	}
	if runs {
		return KeptRunning, r, nil
	}
	return Forgotten, r, d.forget(r)
}

// keptRecord wraps an error that makes it impossible to tell whether the record's
// container runs.
func keptRecord(err error, file string) error {
	return fmt.Errorf("record kept: %w; remove %s when no container with this ID runs", err, file)
}

// inBundle reports whether the record is of the container that the runtime has in a bundle.
func (r Record) inBundle(bundle string) bool {
	return r.Bundle == "" || r.Bundle == bundle || samefile.Paths(r.Bundle, bundle) ||
		r.Stated != "" && r.Stated == bundle
}
