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

// Stages are the stages of a container's life at which the hook can be called, in the
// order of that life. The names are the runtime specification's, except precreate, which
// podman and CRI-O add.
var Stages = []string{"precreate", "prestart", "createRuntime", "createContainer", "poststop"}

const (
	// poststopTimeout bounds poststop, which may wait for locks of other processes.
	poststopTimeout = 10 * time.Second
	// fetchMargin is the time for the work before and after fetching.
	fetchMargin = 15 * time.Second
)

// Call is how the hook is called.
type Call struct {
	Stage  string
	Config string // path of the configuration
	// Engine is the engine that configured the call.
	Engine spec.Engine
	// Annotations are added to the container's annotations. They come from the author of
	// the call, for example the author of a CDI specification.
	Annotations map[string]string
}

// add returns the container's annotations together with those of the call. A key with two
// different values is an error: neither value alone can be what was meant.
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
				"as a device does; ask for one of them", key, own, c.Annotations[key])
		}
		all[key] = c.Annotations[key]
	}
	return all, nil
}

// Run does the work of one stage for one container. in has the OCI state, or config.json
// for precreate. precreate writes the rewritten config.json to out.
//
// Run does nothing for a container without an annotation. For a container with an
// annotation, an error means that the container must not start. An error is one line that
// names the container; Run writes it to the log too.
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
		// Root of that namespace may be an ordinary user of the host.
		err := &failure{container.ID, "looking at who runs the hook", errors.New("createContainer hooks run in the " +
			"container's user namespace, where file owners cannot be trusted; register the hook as createRuntime")}
		// The container's user cannot write root's log. This line only helps to see why a
		// container does not start: the hook never reads it.
		logError(log, err)
		return err
	case call.Stage == "poststop":
		poststop(withDeadline(time.Now().Add(poststopTimeout)), c, container, log)
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

// readState reads the OCI state and adds the annotations of the call. asks is false for a
// container without annotations.
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

// fail logs an error that happens before the configuration is read, and returns it as a
// failure.
func (c Call) fail(container, doing string, err error) error {
	err = &failure{container, doing, err}
	logError(logFor(c.Config, c.Stage, container), err)
	return err
}

// createInTime is createWatched with the deadline of a start.
func createInTime(s *start) error {
	// The container's users must be able to enter the directories that the hook makes in
	// the image, whatever the runtime's umask is.
	syscall.Umask(0o022)
	limit := startDeadline()
	if s.config.Substitute {
		// A kubelet waits for two minutes. The default limit for fetching is 100 seconds
		// of them.
		limit = max(limit, time.Duration(s.config.SubstituteTimeout)+fetchMargin)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return createWatched(ctx, s)
}

// deadlineText is the deadline of a start that fetches nothing. It is longer than any
// closure takes. Tests set a shorter one with the linker (-X).
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
	// grace is the time after the deadline in which a start may still fail by itself,
	// because its own error says more.
	grace = time.Second
	// undoTimeout bounds the cleanup of a start that hangs.
	undoTimeout = state.LockTimeout + time.Second
)

// progress is the current step of a start, for error messages.
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

// createWatched is create with a watchdog. System calls on a container's file systems
// ignore the context's deadline. If one of them hangs (a FUSE or NFS server that does not
// answer), the watchdog removes what the start made on the host, says which step hangs,
// and ends this process with status 1.
//
// Ending the process interrupts a system call that waits for NFS, or for a FUSE server to
// read its request. After a FUSE server has read the request, the kernel lets nothing end
// the thread until the server is killed or its connection is aborted. By then the host is
// clean and the message is written, but the caller of this process keeps waiting.
func createWatched(ctx context.Context, s *start) error {
	stop := context.AfterFunc(ctx, func() { s.expire(ctx) })
	err := create(ctx, s)
	stop()
	if !s.over.CompareAndSwap(false, true) {
		select {} // the watchdog ends the process, with its message
	}
	return err
}

// expire ends the process, unless the start returns first.
func (s *start) expire(ctx context.Context) {
	time.Sleep(grace)
	if !s.over.CompareAndSwap(false, true) {
		return
	}
	err := &failure{s.state.ID, s.doing(), errors.New(
		"no answer before the deadline, " + time.Since(s.began).Round(time.Second).String() + " after the start; " +
			"a file system of the container may hang: check the sources of its volumes and of its root")}
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
