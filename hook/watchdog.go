// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/nix-closure/nix-closure/hook/state"
)

// deadlineText is how long a start may take, but for what is fetched for it. It is
// longer than any closure takes. The linker can set it (-X), for a test that does
// not wait for so long.
var deadlineText = "100s"

// startDeadline bounds a container's start.
func startDeadline() time.Duration {
	deadline, err := time.ParseDuration(deadlineText)
	if err != nil {
		panic(err)
	}
	return deadline
}

const (
	// grace is what a start has after the deadline to fail by itself, which gives
	// the better message.
	grace = time.Second
	// undoTimeout bounds the cleaning up of a start that hangs.
	undoTimeout = state.LockTimeout + time.Second
)

// progress is what a start is doing, for whoever has to say where it failed.
type progress struct {
	step  atomic.Pointer[string]
	owned atomic.Pointer[state.Claim] // nil: the ID is not claimed yet
	over  atomic.Bool                 // the start has returned, or the watchdog ends it
}

func (p *progress) at(doing string) { p.step.Store(&doing) }

func (p *progress) doing() string {
	if s := p.step.Load(); s != nil {
		return *s
	}
	return "starting"
}

// createWatched is create with an end. System calls on a container's file systems do
// not know of the context's deadline: where one of them hangs (a FUSE server or an
// NFS server that does not answer), this process cleans up what it made on the host,
// says what it was doing, and ends with status 1.
//
// That ends a system call that waits for a FUSE server to read its request, or for
// NFS. Where a FUSE server has read the request and does not answer, the kernel lets
// nothing end the thread before the server is killed or its connection is aborted:
// the host is clean and the message is out by then, but whoever waits for this
// process waits on.
func createWatched(ctx context.Context, s *start) error {
	stop := context.AfterFunc(ctx, func() { s.expire(ctx) })
	err := create(ctx, s)
	stop()
	if !s.over.CompareAndSwap(false, true) {
		select {} // the watchdog ends the process, with its message
	}
	return err
}

// expire ends the process, unless the start returns.
func (s *start) expire(ctx context.Context) {
	time.Sleep(grace)
	if !s.over.CompareAndSwap(false, true) {
		return
	}
	err := &failure{s.state.ID, s.doing(), errors.New(
		"no answer before the deadline, " + time.Since(s.began).Round(time.Second).String() + " after the start; " +
			"a file system of the container may hang: look at what its volumes and its root are mounted from")}
	undone := make(chan error, 1)
	if own := s.owned.Load(); own != nil {
		go func() { undone <- own.Undo(ctx) }()
	} else {
		undone <- nil
	}
	var undo error
	select {
	case undo = <-undone:
	case <-time.After(undoTimeout):
		undo = errors.New("no answer from the host's file systems")
	}
	if undo != nil {
		logError(s.log, &failure{s.state.ID, "cleaning up", undo})
	}
	logError(s.log, err)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
