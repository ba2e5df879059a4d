// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"log/slog"
	"os"
	"time"

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
	dir.waitForEnd(ctx, state.ID)
	// Alone: the same container may be starting again.
	lock, err := dir.lockAlone(ctx)
	if err != nil {
		fail("cleaning up", err)
		return
	}
	defer dir.sweepSome(lock, false, c.Store(), log)
	r, ok, err := dir.readRecord(state.ID)
	if err != nil {
		fail("reading the record", err)
		return
	}
	if !ok {
		return // there is a record as long as there is anything else
	}
	// A container with the same id, of another engine or namespace, keeps what
	// it has.
	if r.Bundle != "" && !sameFile(r.Bundle, state.Bundle) {
		log.Warn("left alone: the record is of another container with this id", "bundle", r.Bundle)
		return
	}
	if r.Pid > 0 && r.live() {
		log.Warn("left alone: the container runs", "pid", r.Pid)
		return
	}
	r.ID = state.ID // of a damaged record, too
	if err := dir.forget(c.Store(), r); err != nil {
		fail("cleaning up", err)
		return
	}
	log.Info("forgotten")
}

// waitForEnd gives a container's process, which was killed, a moment to end: not
// every runtime does.
func (d *RuntimeDir) waitForEnd(ctx context.Context, id string) {
	for range 300 {
		if r, ok, err := d.readRecord(id); !ok || err != nil || r.Pid <= 0 || !r.live() || ctx.Err() != nil {
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
