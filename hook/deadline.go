// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"sync"
	"time"
)

// deadline is a context that is over at a time. It starts a timer only for a caller that
// waits: a timer takes a thread that waits too, and most ends of containers wait for
// nothing.
type deadline struct {
	at    time.Time
	timer func() context.Context
}

func withDeadline(at time.Time) context.Context {
	return &deadline{at, sync.OnceValue(func() context.Context {
		ctx, cancel := context.WithDeadline(context.Background(), at)
		context.AfterFunc(ctx, cancel) // the process ends soon after its end
		return ctx
	})}
}

func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

func (d *deadline) Value(any) any { return nil }

func (d *deadline) Done() <-chan struct{} { return d.timer().Done() }

func (d *deadline) Err() error {
	if time.Now().Before(d.at) {
		return nil
	}
	<-d.Done()
	return d.timer().Err()
}
