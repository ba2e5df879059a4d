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
	// NoRecord says that there is none, and so nothing else.
	NoRecord Outcome = iota
	// Forgotten says that the record is removed, and what was kept with it.
	Forgotten
	// KeptOther says that the record is of another container with this ID, and stays.
	KeptOther
	// KeptRunning says that the container runs, and its record stays.
	KeptRunning
)

// End forgets a container that is gone, unless the record is another's: of a
// container with the same ID, of another engine or namespace, or of this one, which
// was started again. What cannot be told is kept, and is an error. The record that
// is kept or was removed is returned too.
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
		return NoRecord, r, nil // there is a record as long as there is anything else
	}
	if r.Kind != "" || r.Bundle != "" && !samefile.Paths(r.Bundle, bundle) && (r.Stated == "" || r.Stated != bundle) {
		return KeptOther, r, nil
	}
	// Where the runtime calls this, it has ended the other processes too, also of a
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

// keptRecord says that nobody can tell whether a record is of a container that runs.
func keptRecord(err error, file string) error {
	return fmt.Errorf("record kept: %w; remove %s when no container with this ID runs", err, file)
}

// waitForEnd gives a container's process, which was killed, a moment to end: not
// every runtime does.
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
