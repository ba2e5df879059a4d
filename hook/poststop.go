// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"log/slog"
	"os"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// poststop forgets a container that is gone. It can be called any number of
// times. It never fails, so that it never keeps a container from being removed:
// what it could not do is in the log.
func poststop(c config.Config, state spec.State, log *slog.Logger) {
	dir, err := openRuntimeDir(c.RuntimeDir)
	if err != nil {
		logError(log, &failure{state.ID, "opening the runtime directory", err})
		return
	}
	r, ok, err := dir.readRecord(state.ID)
	if err != nil {
		logError(log, &failure{state.ID, "reading the record", err})
		return
	}
	// A container with the same id, of another engine or namespace, keeps what
	// it has.
	if ok && r.Bundle != "" && !sameFile(r.Bundle, state.Bundle) {
		log.Warn("left alone: the record is of another container with this id", "bundle", r.Bundle)
		return
	}
	if err := dir.forget(c.Store(), state.ID); err != nil {
		logError(log, &failure{state.ID, "cleaning up", err})
		return
	}
	if ok {
		log.Info("forgotten")
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
