// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Resolution is the answer to a Query.
type Resolution struct {
	// Digest is the closure's; Memo.Load has its paths.
	Digest string `json:"digest"`
	// Paths is how many store paths the closure has.
	Paths int `json:"paths"`
	// Pins are the store paths that keep the whole closure from Nix's garbage
	// collector when they are GC roots.
	Pins []BaseName `json:"pins"`
	// Since is when these registrations were first seen, in nanoseconds since
	// 1970. What was made from a closure of the same digest before may show
	// files that have since been collected and come back.
	Since int64 `json:"since"`
}

// NotValidError says that Nix does not know a store path.
type NotValidError struct{ Path string }

// Is says that it is ErrNotValid.
func (e *NotValidError) Is(target error) bool { return target == ErrNotValid }

// ErrNotValid is what every error is that says that a store path is not valid;
// ExitNotValid is how a Resolver's program says it.
var ErrNotValid = errors.New("not valid")

// ExitNotValid is an exit status.
const ExitNotValid = 3

func (e *NotValidError) Error() string {
	return fmt.Sprintf("%s is not valid: Nix has no such path registered; fetch or build it first, for example with `nix-store --realise %s`", e.Path, e.Path)
}

// TooLargeError says that a closure has more than Max paths.
type TooLargeError struct{ Max int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the closure has more than %d store paths; ask for less, or raise max-paths in the configuration", e.Max)
}

// Registry is who knows which store paths are valid and what they reference:
// Nix's database, or Nix's own program.
type Registry interface {
	// Registrations returns one for each name. It fails with NotValidError.
	// From a registry that cannot tell one registration from the next, they
	// are zero.
	Registrations(ctx context.Context, names []BaseName) ([]Registration, error)
	// Closure returns the names and everything that they reference, in any
	// order, or fails with NotValidError or, past max, TooLargeError.
	Closure(ctx context.Context, names []BaseName, max int) ([]BaseName, error)
	// Stamp was taken before anything that the other methods answered.
	Stamp() Stamp
}

// Remembered answers from the memo alone: one small file to read and two to look
// at, whatever the closure's size. Not ok: ask Resolve.
//
// The answer is about now only as long as the caller holds Nix's collector off,
// see HoldCollector.
func (m Memo) Remembered(q Query) (_ Resolution, ok bool) {
	e, ok := m.lookup(q)
	if !ok || !e.Stamp.Holds(m.Store) {
		return Resolution{}, false
	}
	return e.resolution(), true
}

// Resolve finds the closure that q asks for, and remembers it.
//
// Roots: the roots with everything that they reference. Closure-info: the paths
// that it lists, no more; they must be closed under references, and those that
// the closure-info does not reference itself become pins of their own. Both: what
// either has.
func (m Memo) Resolve(ctx context.Context, r Registry, q Query, max int) (Resolution, error) {
	if e, ok := m.lookup(q); ok && e.Paths <= max {
		now, err := r.Registrations(ctx, e.Pins)
		if err == nil && slices.Equal(now, e.Registrations) && !slices.Contains(now, Registration{}) {
			e.Stamp = r.Stamp()
			if _, err := m.Dir.Lstat(e.Digest); err == nil {
				return e.resolution(), m.save(q, e)
			}
		}
	}
	names, pins, err := m.resolve(ctx, r, q, max)
	if err != nil {
		return Resolution{}, err
	}
	registrations, err := r.Registrations(ctx, pins)
	if err != nil {
		return Resolution{}, err
	}
	c := New(m.Store, names)
	if err := m.store(c); err != nil {
		return Resolution{}, err
	}
	e := entry{c.Digest(), len(c.Names), pins, registrations, time.Now().UnixNano(), r.Stamp()}
	return e.resolution(), m.save(q, e)
}

func (e entry) resolution() Resolution {
	return Resolution{Digest: e.Digest, Paths: e.Paths, Pins: e.Pins, Since: e.Since}
}

func (m Memo) resolve(ctx context.Context, r Registry, q Query, max int) (names, pins []BaseName, err error) {
	if len(q.Roots) > 0 {
		if names, err = r.Closure(ctx, q.Roots, max); err != nil {
			return nil, nil, err
		}
		pins = slices.Clone(q.Roots)
	}
	if q.Info == "" {
		return names, pins, nil
	}
	listed, more, err := m.resolveInfo(ctx, r, q, max)
	if err != nil {
		return nil, nil, err
	}
	names = append(names, listed...)
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > max {
		return nil, nil, &TooLargeError{max}
	}
	return names, append(pins, slices.DeleteFunc(more, func(b BaseName) bool { return slices.Contains(q.Roots, b) })...), nil
}

func (m Memo) resolveInfo(ctx context.Context, r Registry, q Query, max int) (listed, pins []BaseName, _ error) {
	listed, err := ReadInfo(m.Store, q.Info, max)
	if tooLarge := (*TooLargeError)(nil); errors.As(err, &tooLarge) {
		return nil, nil, tooLarge
	}
	if err != nil {
		// That it is not valid says more, and such a one may be fetched.
		if _, asked := r.Registrations(ctx, []BaseName{q.Info}); errors.Is(asked, ErrNotValid) {
			err = asked
		}
		return nil, nil, err
	}
	// The closure-info's own closure keeps what it references alive, and has
	// itself in addition to what it lists.
	kept, err := r.Closure(ctx, []BaseName{q.Info}, max+1)
	if tooLarge := (*TooLargeError)(nil); errors.As(err, &tooLarge) {
		err = &TooLargeError{max}
	}
	if err != nil {
		return nil, nil, err
	}
	known := make(map[BaseName]bool, len(kept))
	for _, n := range kept {
		known[n] = true
	}
	pins = []BaseName{q.Info}
	for _, n := range listed {
		if !known[n] {
			pins = append(pins, n)
		}
	}
	whole, err := r.Closure(ctx, listed, max)
	if err != nil {
		return nil, nil, err
	}
	inList := make(map[BaseName]bool, len(listed))
	for _, n := range listed {
		inList[n] = true
	}
	slices.Sort(whole) // the same mistake gives the same message each time
	for _, n := range whole {
		if !inList[n] {
			return nil, nil, fmt.Errorf("%s/store-paths is no closure: %s is referenced, but not listed; make the closure-info with nixpkgs' closureInfo",
				m.Store.Path(q.Info), m.Store.Path(n))
		}
	}
	return listed, pins, nil
}

// Resolver asks the program that reads Nix's database. That is a program of its
// own so that the one that every container starts need not link a database.
type Resolver struct {
	Program string   // absolute path of nix-closure
	Args    []string // before the query: which configuration
}

// Resolve lets the program resolve q into the memo that its configuration names.
func (r Resolver) Resolve(ctx context.Context, store Store, q Query) (Resolution, error) {
	args := append([]string{"resolve", "--json"}, r.Args...)
	paths := q.Roots
	if q.Info != "" {
		args, paths = append(args, "--closure-info"), append([]BaseName{q.Info}, q.Roots...)
	}
	args = append(args, "--")
	for _, p := range paths {
		args = append(args, store.Path(p))
	}
	cmd := exec.CommandContext(ctx, r.Program, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = waitDelay
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if said := firstLine(errs.String()); errors.As(err, &exit) && said != "" {
			return Resolution{}, &saidError{strings.TrimPrefix(said, "nix-closure: "), exit.ExitCode()}
		}
		return Resolution{}, fmt.Errorf("running %s: %w", r.Program, err)
	}
	var res Resolution
	if err := json.Unmarshal(out.Bytes(), &res); err != nil || !IsDigest(res.Digest) || len(res.Pins) == 0 {
		return Resolution{}, fmt.Errorf("%s: not understood: %q; is it of the same version as the hook?", r.Program, firstLine(out.String()))
	}
	return res, nil
}

// saidError is an error that the program said.
type saidError struct {
	text   string
	status int
}

func (e *saidError) Error() string { return e.text }

func (e *saidError) Is(target error) bool {
	return target == ErrNotValid && e.status == ExitNotValid
}

// waitDelay is how long a program's children may hold its output open after it
// ended or its time was over.
const waitDelay = time.Second

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
