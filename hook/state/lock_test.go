// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// lockID waits for a held lock, but not for ever, and the message names the holder.
func TestLockID(t *testing.T) {
	d := newDir(t, newHost(t))
	lock, err := d.lockID(t.Context(), "web")
	must(t, err)
	if _, err := d.tryLockID("web"); !errors.Is(err, errLocked) {
		t.Errorf("locked twice: %v", err)
	}
	other, err := d.tryLockID("db")
	must(t, err)
	other.release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.lockID(ctx, "web"); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "waiting for the lock of the container ID in "+d.path+"/locks") {
		t.Errorf("error %v", err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	must(t, err, os.WriteFile("/proc/self/comm", []byte("nix-closure-hook"), 0))
	if got, want := d.holder("web"), fmt.Sprintf("; process %d (nix-closure-hoo) has it", os.Getpid()); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	must(t, os.WriteFile("/proc/self/comm", comm, 0))
	time.AfterFunc(50*time.Millisecond, lock.release)
	again, err := d.lockID(t.Context(), "web")
	must(t, err)
	again.release()
}
