// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// poststop forgets a container that is gone. It can be called any number of
// times. It never fails, so that it never keeps a container from being removed:
// what it could not do is in the log, and for the next sweep.
func poststop(ctx context.Context, c config.Config, state spec.State, log *slog.Logger) {
	fail := func(doing string, err error) { logError(log, &failure{state.ID, doing, err}) }
	dir, err := OpenRuntimeDir(c)
	if err != nil {
		fail("opening the runtime directory", err)
		return
	}
	defer dir.Close()
	dir.waitForEnd(ctx, state.ID)
	defer dir.sweepSome(ctx, false, c.Store(), log)
	forgotten, err := dir.end(ctx, c.Store(), state, log)
	if err != nil {
		fail("cleaning up", err)
	} else if forgotten {
		log.Info("container record removed")
	}
}

// end forgets a container that is gone, unless the record is another's: of a
// container with the same ID, of another engine or namespace, or of this one, which
// was started again. What cannot be told is kept.
func (d *RuntimeDir) end(
	ctx context.Context, store closure.Store, state spec.State, log *slog.Logger,
) (forgotten bool, _ error) {
	lock, err := d.lockID(ctx, state.ID)
	if err != nil {
		return false, err
	}
	defer lock.release()
	r, ok, err := d.readRecord(state.ID)
	if err != nil {
		return false, keptRecord(err, d.recordFile(state.ID))
	}
	if !ok {
		return false, nil // there is a record as long as there is anything else
	}
	if r.Bundle != "" && !sameFile(r.Bundle, state.Bundle) && (r.Stated == "" || r.Stated != state.Bundle) {
		log.Warn("record kept: it is of another container with this ID", "bundle", r.Bundle, "stated", state.Bundle)
		return false, nil
	}
	// Where the runtime calls this, it has ended the other processes too, also of a
	// container without a PID namespace.
	runs, err := r.processRuns()
	if err != nil {
		return false, keptRecord(err, d.recordFile(state.ID))
	}
	if runs {
		log.Warn("record kept: the container runs", "pid", r.Pid)
		return false, nil
	}
	return true, d.forget(store, r)
}

// keptRecord says that nobody can tell whether a record is of a container that runs.
func keptRecord(err error, file string) error {
	return fmt.Errorf("record kept: %w; remove %s when no container with this ID runs", err, file)
}

// waitForEnd gives a container's process, which was killed, a moment to end: not
// every runtime does.
func (d *RuntimeDir) waitForEnd(ctx context.Context, id string) {
	for range 300 {
		if r, ok, err := d.readRecord(id); !ok || err != nil || r.Pid <= 0 || ctx.Err() != nil {
			return
		} else if runs, err := r.processRuns(); !runs || err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// sameFile tells whether two paths are of one file, or are the same where there
// is none any more.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	other, err2 := os.Stat(b)
	if err != nil || err2 != nil {
		return a == b
	}
	return os.SameFile(one, other)
}
