// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Resolution is the answer to a Query.
type Resolution struct {
	// Digest is the digest of the closure. Cache.Load returns its paths.
	Digest string `json:"digest"`
	// Paths is the number of store paths in the closure.
	Paths int `json:"paths"`
	// Pins are store paths. If they are GC roots, they keep the whole closure from Nix's
	// garbage collector.
	Pins []BaseName `json:"pins"`
	// Since is the time at which these rows were first seen, in nanoseconds since 1970.
	// What was made before from a closure of the same digest may show files that were
	// collected and came back.
	Since int64 `json:"since"`
}

// NotValidError says that Nix does not know a store path.
type NotValidError struct{ Path string }

// Is reports whether target is ErrNotValid.
func (e *NotValidError) Is(target error) bool { return target == ErrNotValid }

// ErrNotValid is matched by every error that says that a store path is not valid. The
// program of a Resolver says it by ExitNotValid.
var ErrNotValid = errors.New("not valid")

// ExitNotValid is the exit status of nix-closure for a store path that is not valid.
const ExitNotValid = 3

func (e *NotValidError) Error() string {
	return fmt.Sprintf("%s is not valid: Nix has no such path registered; "+
		"fetch or build it first, for example with `nix-store --realise %s`", e.Path, e.Path)
}

// TooLargeError says that a closure has more than Max paths.
type TooLargeError struct{ Max int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the closure has more than %d store paths; "+
		"ask for less, or raise max-paths in the configuration", e.Max)
}

// Registry knows which store paths are valid and what they reference. It is Nix's database
// or Nix's own program.
type Registry interface {
	// Versions returns one version for each name. It fails with NotValidError. If the
	// registry cannot identify rows, the versions are zero.
	Versions(ctx context.Context, names []BaseName) ([]RowVersion, error)
	// Closure returns the names and everything that they reference, in any order. It fails
	// with NotValidError, and with TooLargeError above max paths.
	Closure(ctx context.Context, names []BaseName, max int) ([]BaseName, error)
	// Stamp returns a stamp that was taken before any answer of the other methods.
	Stamp() Stamp
}

// Remembered answers from the cache alone. It reads one small file and looks at two, for
// closures of every size. If ok is false, call Resolve.
//
// The answer counts only while the caller holds Nix's collector off: see HoldCollector.
func (cache Cache) Remembered(q Query) (_ Resolution, ok bool) {
	e, ok := cache.lookup(q)
	if !ok || !e.Stamp.Holds(cache.Store) {
		return Resolution{}, false
	}
	return e.resolution(), true
}

// Resolve finds the closure that q asks for, and remembers it. It fails with NotValidError,
// and with TooLargeError above max paths.
//
// For roots, the closure has the roots and everything that they reference. For a
// closure-info, it has the paths in the list and no other. These must be closed under
// references. Those that the closure-info does not reference become pins too. For both, the
// closure has the paths of both.
func (cache Cache) Resolve(ctx context.Context, r Registry, q Query, max int) (Resolution, error) {
	if e, ok := cache.lookup(q); ok && e.Paths <= max {
		now, err := r.Versions(ctx, e.Pins)
		if err == nil && slices.Equal(now, e.Versions) && !slices.Contains(now, RowVersion{}) {
			e.Stamp = r.Stamp()
			if _, err := cache.Dir.Lstat(e.Digest); err == nil {
				return e.resolution(), cache.save(q, e)
			}
		}
	}
	names, pins, err := cache.resolve(ctx, r, q, max)
	if err != nil {
		return Resolution{}, err
	}
	versions, err := r.Versions(ctx, pins)
	if err != nil {
		return Resolution{}, err
	}
	c := New(cache.Store, names)
	if err := cache.store(c); err != nil {
		return Resolution{}, err
	}
	e := entry{
		Digest: c.Digest(), Paths: len(c.Names), Pins: pins, Versions: versions,
		Since: time.Now().UnixNano(), Stamp: r.Stamp(),
	}
	return e.resolution(), cache.save(q, e)
}

// Ask finds the closure that q asks for, from nothing that is remembered.
func Ask(ctx context.Context, store Store, r Registry, q Query, max int) (Closure, error) {
	names, _, err := Cache{Store: store}.resolve(ctx, r, q, max)
	return New(store, names), err
}

func (e entry) resolution() Resolution {
	return Resolution{Digest: e.Digest, Paths: e.Paths, Pins: e.Pins, Since: e.Since}
}

func (cache Cache) resolve(ctx context.Context, r Registry, q Query, max int) (names, pins []BaseName, err error) {
	if len(q.Roots) > 0 {
		if names, err = r.Closure(ctx, q.Roots, max); err != nil {
			return nil, nil, err
		}
		pins = slices.Clone(q.Roots)
	}
	if q.Info == "" {
		return names, pins, nil
	}
	listed, more, err := cache.resolveInfo(ctx, r, q, max)
	if err != nil {
		return nil, nil, err
	}
	names = append(names, listed...)
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > max {
		return nil, nil, &TooLargeError{max}
	}
	more = slices.DeleteFunc(more, func(b BaseName) bool { return slices.Contains(q.Roots, b) })
	return names, append(pins, more...), nil
}

func (cache Cache) resolveInfo(ctx context.Context, r Registry, q Query, max int) (listed, pins []BaseName, _ error) {
	listed, err := ReadInfo(cache.Store, q.Info, max)
	if tooLarge := (*TooLargeError)(nil); errors.As(err, &tooLarge) {
		return nil, nil, tooLarge
	}
	if err != nil {
		// "Not valid" says more, and a path that is not valid can be fetched.
		if _, asked := r.Versions(ctx, []BaseName{q.Info}); errors.Is(asked, ErrNotValid) {
			err = asked
		}
		return nil, nil, err
	}
	// The closure-info keeps what it references alive. Its own closure also has the
	// closure-info itself.
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
	slices.Sort(whole) // so that the same mistake always gives the same message
	for _, n := range whole {
		if !inList[n] {
			return nil, nil, fmt.Errorf("%s/store-paths is no closure: %s is referenced, but not listed; "+
				"make the closure-info with nixpkgs' closureInfo",
				cache.Store.Path(q.Info), cache.Store.Path(n))
		}
	}
	return listed, pins, nil
}
