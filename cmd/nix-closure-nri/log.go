// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
)

// nriLog has what NRI's part of this program says in the same log, but for what it
// says of each step.
type nriLog struct{ log *slog.Logger }

func (l nriLog) Debugf(context.Context, string, ...any) {}

func (l nriLog) Infof(context.Context, string, ...any) {}

func (l nriLog) Warnf(_ context.Context, format string, args ...any) {
	l.log.Warn(fmt.Sprintf(format, args...))
}

func (l nriLog) Errorf(_ context.Context, format string, args ...any) {
	l.log.Error(fmt.Sprintf(format, args...))
}

// notify tells the service manager, where there is one (sd_notify(3)).
func notify(ctx context.Context, state string) error {
	socket := os.Getenv("NOTIFY_SOCKET") //nolint:forbidigo // systemd's, and no image's
	if socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
