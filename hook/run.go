// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Stages are the stages of a container's life at which this program can be
// called, in the order of their lives: names of the runtime specification, and
// precreate, which is podman's and CRI-O's.
var Stages = []string{"precreate", "prestart", "createRuntime", "createContainer", "poststop"}

const (
	// poststopTimeout bounds the end of a container, which may wait for others.
	poststopTimeout = 10 * time.Second
	// fetchMargin is for what comes before and after fetching.
	fetchMargin = 15 * time.Second
)

// Call is how the hook is called.
type Call struct {
	Stage  string
	Config string // path of the configuration
	// Engine is who has it called.
	Engine spec.Engine
	// Annotations are added to what the container carries. They are of who wrote
	// the call, such as a CDI specification's author.
	Annotations map[string]string
}

// add returns the container's annotations with those of the call. One that has
// another value in each is an error: neither can be meant without the other.
func (c Call) add(annotations map[string]string) (map[string]string, error) {
	if len(c.Annotations) == 0 {
		return annotations, nil
	}
	all := maps.Clone(annotations)
	if all == nil {
		all = map[string]string{}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Annotations)) {
		if own, ok := all[key]; ok && own != c.Annotations[key] {
			return annotations, fmt.Errorf("annotation %s: the container has %q, and the hook was called with %q, "+
				"as for a device; ask for one of them", key, own, c.Annotations[key])
		}
		all[key] = c.Annotations[key]
	}
	return all, nil
}

// Run does what there is to do for a container at a stage: in has the OCI state,
// or for precreate the config.json, and out takes what precreate rewrote.
//
// A container without an annotation is left alone. For one with an annotation,
// an error means that it must not start. An error has one line, which names the
// container, and is in the log too.
func Run(call Call, in io.Reader, out io.Writer) error {
	if call.Stage == "precreate" {
		return precreate(call, in, out)
	}
	container, asks, err := call.readState(in)
	if err != nil || !asks {
		return err
	}
	c, err := config.Read(call.Config)
	if err != nil {
		return call.fail(container.ID, "reading the configuration", err)
	}
	log := logOf(c, call.Stage, container.ID)
	switch {
	case call.Stage == "createContainer" && c.Rootless:
		// A user of that namespace may be an ordinary user of the host.
		err := &failure{container.ID, "looking at who runs the hook", errors.New("createContainer hooks run in the " +
			"container's user namespace, where file owners cannot be trusted; register the hook as createRuntime")}
		// Root's log is out of reach there. This one only helps to see why a container does
		// not start: the hook never reads it.
		logError(log, err)
		return err
	case call.Stage == "poststop":
		ctx, cancel := context.WithTimeout(context.Background(), poststopTimeout)
		defer cancel()
		poststop(ctx, c, container, log)
		return nil
	}
	s := &start{progress: &progress{}, config: c, call: call, state: container, log: log, began: time.Now()}
	if engine := s.engine(); engine != spec.UnknownEngine {
		log = log.WithField("engine", string(engine))
		s.log = log
	}
	if err := createInTime(s); err != nil {
		logError(log, err)
		return err
	}
	return nil
}

// readState reads the OCI state, and adds the annotations of the call. asks is false for
// a container that asks for nothing.
func (c Call) readState(in io.Reader) (_ spec.State, asks bool, _ error) {
	text, err := spec.ReadLimited(in, spec.MaxConfig)
	if err != nil {
		return spec.State{}, false, c.fail("", "reading the OCI state from standard input", err)
	}
	read, err := spec.ParseState(text)
	if !errors.Is(err, spec.ErrNoState) && !spec.Annotated(read.Annotations) && len(c.Annotations) == 0 {
		return read, false, nil
	}
	if err != nil {
		return read, false, c.fail(read.ID, "reading the OCI state", err)
	}
	if read.Annotations, err = c.add(read.Annotations); err != nil && c.Stage != "poststop" {
		return read, false, c.fail(read.ID, "reading the annotations", err)
	}
	return read, true, nil
}

// fail writes to the log what went wrong before the configuration was read, and returns
// it in the form of every error.
func (c Call) fail(container, doing string, err error) error {
	err = &failure{container, doing, err}
	logError(logFor(c.Config, c.Stage, container), err)
	return err
}

// createInTime is createWatched with the deadline of a start.
func createInTime(s *start) error {
	// What is made in the image must be open to the container's users, whatever
	// the runtime's own mask is.
	syscall.Umask(0o022)
	limit := startDeadline()
	if s.config.Substitute {
		// A kubelet waits for two minutes, of which fetching has 100 seconds if
		// nobody says otherwise.
		limit = max(limit, time.Duration(s.config.SubstituteTimeout)+fetchMargin)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return createWatched(ctx, s)
}

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
