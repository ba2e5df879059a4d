// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/spec"
)

// State is what is known of a container.
type State string

// The states. Unknown is not OK: what could not be looked at may be wrong.
const (
	OK      State = "ok"
	Wrong   State = "wrong"
	Unknown State = "unknown"
)

// Finding is something that is wrong.
type Finding struct {
	What string `json:"what"`
	Do   string `json:"do"` // about it
	// inside: it was seen in the container's mount namespace.
	inside bool
}

// Result is what was found out of one container.
type Result struct {
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	State State  `json:"state"`
	// Mode, Digest and Paths are those of the record and of the closure of its roots.
	Mode   spec.Mode `json:"mode,omitempty"`
	Digest string    `json:"digest,omitempty"`
	Paths  int       `json:"paths,omitempty"`
	// Contents: whether the content of every file was compared.
	Contents bool      `json:"contents"`
	Wrong    []Finding `json:"wrong,omitempty"`
	Unknown  []string  `json:"unknown,omitempty"` // why
	Notes    []string  `json:"notes,omitempty"`   // what was not compared, and need not be
	// Ended: no process of the container is left, so that nothing can be found out.
	Ended bool `json:"-"`
}

// Nix answers what Nix knows of the host's store.
type Nix interface {
	// Closure is what a query asks for, from nothing that is remembered.
	Closure(ctx context.Context, q closure.Query) (closure.Closure, error)
	// Infos are of all paths of a closure, in their order.
	Infos(ctx context.Context, c closure.Closure) ([]closure.PathInfo, error)
}

// Verifier verifies containers.
type Verifier struct {
	Host *Host
	Nix  Nix
	// Contents: whether to compare the content of every file.
	Contents bool
	// Progress is called while contents are compared; nil: it is not.
	Progress func(container string, done, all int)
}

// timeout bounds the look at one container, but for the contents of its files. Its file
// systems may have servers that do not answer.
const timeout = 30 * time.Second

// Verify looks at one container. It joins the container's mount namespace in a thread of
// its own, which ends after that.
func (v *Verifier) Verify(ctx context.Context, c Container) Result {
	l := &look{
		Verifier: v, Container: c, record: c.Record, host: v.Host, store: v.Host.Config.Store(),
		result: Result{ID: c.ID, Name: c.Name},
	}
	if !v.Contents {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	done := make(chan Result, 1)
	go func() {
		_ = mntns.OnOwnThread(func() error {
			l.look(ctx)
			return nil
		})
		done <- l.result
	}()
	select {
	case r := <-done:
		if c.hasEnded() {
			r = ofEnded(r)
		}
		r.State = stateOf(r)
		return r
	case <-ctx.Done():
		return Result{ID: c.ID, Name: c.Name, State: Unknown, Unknown: []string{
			"no answer in time: a file system of the container may hang; look at what its volumes and its root are " +
				"mounted from (" + ctx.Err().Error() + ")",
		}}
	}
}

// ofEnded returns the result for a container that ended while it was looked at. The record
// and the GC roots go away before or after the process, so what they lack says nothing. What
// was seen inside holds.
func ofEnded(r Result) Result {
	r.Wrong = slices.DeleteFunc(r.Wrong, func(f Finding) bool { return !f.inside })
	if len(r.Wrong) > 0 {
		return r
	}
	return Result{ID: r.ID, Name: r.Name, Ended: true, Unknown: []string{
		"its process has ended; if the container is gone, `nix-closure gc` removes what is left of it",
	}}
}

func stateOf(r Result) State {
	switch {
	case len(r.Wrong) > 0:
		return Wrong
	case len(r.Unknown) > 0:
		return Unknown
	}
	return OK
}

// look is the look at one container.
type look struct {
	*Verifier
	Container
	record *state.Record
	host   *Host
	store  closure.Store
	// closure is that of the record's roots; nil: Nix does not say.
	closure *closure.Closure
	inside  bool // see Finding
	result  Result
}

func (l *look) wrong(do, format string, args ...any) {
	l.result.Wrong = append(l.result.Wrong, Finding{oneLine(fmt.Sprintf(format, args...)), do, l.inside})
}

func (l *look) unknown(format string, args ...any) {
	l.result.Unknown = append(l.result.Unknown, oneLine(fmt.Sprintf(format, args...)))
}

func (l *look) note(format string, args ...any) {
	l.result.Notes = append(l.result.Notes, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps what a container could have written from looking like a line of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

const (
	startAgain = "stop the container and start it again"
	stopNow    = "stop the container: it may see what it must not; then find out who mounted it"
)

func (l *look) look(ctx context.Context) {
	switch {
	case l.Damaged != nil:
		l.wrong("stop the container and remove the record", "%v", l.Damaged)
		return
	case l.record == nil:
		l.lookWithoutRecord(ctx)
		return
	case l.Ended:
		return
	}
	r := l.record
	l.result.Mode, l.result.Digest = r.Mode, r.Digest
	if l.Twin != "" {
		l.wrong(startAgain, "its record and that of %s are of one process, %d", l.Twin, r.Pid)
	}
	if l.Running != nil && r.Pid > 0 {
		// That nobody can tell is said when the process is opened.
		runs, err := r.ProcessRuns()
		if l.Running.Pid != r.Pid || !runs && err == nil {
			l.wrong(startAgain, "the record is of process %d, started at %d, and %s says that the container runs as "+
				"process %d, which is another", r.Pid, r.PidStart, l.Running.From, l.Running.Pid)
			return
		}
	}
	if !r.Attached {
		l.unknown("it is being started, or its start was killed: the record does not say that its view is attached")
	}
	l.checkClosure(ctx)
	l.checkPinned(ctx)
	l.checkAsked()
	if r.Pid <= 0 {
		l.unknown("the runtime names no process of the container that could be looked into; gVisor does not")
		return
	}
	l.lookInside(ctx, r.Pid, r.PidStart)
}

// lookWithoutRecord is for a container that asks for a closure and of which the host knows
// nothing.
func (l *look) lookWithoutRecord(ctx context.Context) {
	asks := ""
	if annotations, err := annotationsIn(l.Running.Config); err == nil {
		asks = annotations[spec.Prefix+spec.KeyRoots] + annotations[spec.Prefix+spec.KeyClosureInfo]
	}
	l.wrong("stop the container; `nix-closure doctor` says what starts containers without the hook",
		"it asks for a closure (%s), and runs without one: there is no record, so the hook was not called", asks)
	l.lookInside(ctx, l.Running.Pid, 0)
	l.result.Unknown = nil // it is wrong already
}

// names is a list of store paths, for a message.
func (l *look) names(names []closure.BaseName) string {
	const most = 5
	var paths []string
	for i, name := range names {
		if i == most {
			paths = append(paths, fmt.Sprintf("and %d more", len(names)-most))
			break
		}
		paths = append(paths, l.store.Path(name))
	}
	return strings.Join(paths, ", ")
}

// options are those of the view that the record is of.
func (l *look) options() view.Options {
	return view.Options{
		Listed: !l.record.Unlisted(),
		Links:  l.record.Registration != "" && !l.record.Writable,
	}
}

// checkClosure finds the closure of the record's roots, and compares the record with it.
func (l *look) checkClosure(ctx context.Context) {
	r := l.record
	c, err := l.Nix.Closure(ctx, closure.Query{Roots: r.Roots, Info: r.ClosureInfo})
	if errors.Is(err, closure.ErrNotValid) {
		l.wrong("stop the container; fetch or build the path, and start it again",
			"Nix has no longer what the container runs from: %v", err)
		return
	}
	if err != nil {
		l.unknown("resolving its closure: %v", err)
		return
	}
	l.closure, l.result.Paths = &c, len(c.Names)
	digest := c.Digest()
	if r.Digest != digest {
		l.wrong(startAgain, "the record has the digest %s, and the closure of its roots has %s", r.Digest, digest)
		return
	}
	if want := view.LayerName(digest, l.options()); r.Mode == spec.ModeOverlay && r.View != want {
		l.wrong(startAgain, "the record names the view %q, and its closure's is %q", r.View, want)
	}
	if r.Mode != spec.ModeOverlay && r.Mode != spec.ModeBind {
		l.wrong(startAgain, "the record has the mode %q, which no view has", r.Mode)
	}
	want := closure.RegistrationName(digest, r.ClosureInfo)
	if r.Registration != "" && r.Registration != want {
		l.wrong(startAgain, "the record names the registration %q, and its closure's is %q", r.Registration, want)
	}
}
