// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"

	"github.com/sirupsen/logrus"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// poststop forgets a container that is gone. It can be called any number of
// times. It never fails, so that it never keeps a container from being removed:
// what it could not do is in the log, and for the next sweep.
func poststop(ctx context.Context, c config.Config, container spec.State, log *logrus.Entry) {
	dir, err := state.Open(c)
	if err != nil {
		logError(log, &failure{container.ID, "opening the runtime directory", err})
		return
	}
	defer dir.Close()
	outcome, r, err := dir.End(ctx, container.ID, container.Bundle)
	switch {
	case err != nil:
		logError(log, &failure{container.ID, "cleaning up", err})
	case outcome == state.Forgotten:
		log.Info("container record removed")
	case outcome == state.KeptOther:
		log.WithFields(logrus.Fields{
			"bundle": r.Bundle, "stated": container.Bundle,
		}).Warn("record kept: it is of another container with this ID")
	case outcome == state.KeptRunning:
		log.WithField("pid", r.Pid).Warn("record kept: the container runs")
	}
	swept, err := dir.SweepAfterEnd(ctx)
	logSweep(log, swept, err)
}
