// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestDeadline(t *testing.T) {
	at := time.Now().Add(50 * time.Millisecond)
	ctx := withDeadline(at)
	if d, ok := ctx.Deadline(); !ok || !d.Equal(at) || ctx.Err() != nil {
		t.Errorf("%v, %v, %v", d, ok, ctx.Err())
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("never over")
	}
	if err := ctx.Err(); time.Now().Before(at) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over too early, or with %v", err)
	}
	// Nobody waited for this one.
	if err := withDeadline(time.Now().Add(-time.Second)).Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// What is derived from it ends with it.
	derived, cancel := context.WithTimeout(withDeadline(time.Now().Add(20*time.Millisecond)), time.Hour)
	defer cancel()
	select {
	case <-derived.Done():
	case <-time.After(10 * time.Second):
		t.Error("a derived context is never over")
	}
}
