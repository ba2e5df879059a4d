// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"fmt"
	"time"

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
	d.waitForEnd(ctx, id)
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
	if r.Kind != "" || r.Bundle != "" && !samefile.Paths(r.Bundle, bundle) && (r.Stated == "" || r.Stated != bundle) {
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

// waitForEnd waits briefly for a container's process that was killed to end, because not
// every runtime waits for it.
func (d *Dir) waitForEnd(ctx context.Context, id string) {
	for range 300 {
		if r, ok, err := d.Record(id); !ok || err != nil || r.Pid <= 0 || ctx.Err() != nil {
			return
		} else if runs, err := r.ProcessRuns(); !runs || err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
