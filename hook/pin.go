// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// pinned is a container whose closure is valid and stays so.
type pinned struct {
	*claimed
	pinner     pinner
	resolution closure.Resolution
}

// pin finds the closure, and keeps it from Nix's garbage collector.
func pin(ctx context.Context, c *claimed) (*pinned, error) {
	p := pinner{
		claimed: c,
		memo:    closure.Memo{Dir: c.dir.Closures, Store: c.store},
		roots:   c.dir.GCRoots(),
		query:   closure.Query{Roots: c.roots(), Info: c.request.ClosureInfo},
	}
	resolution, err := p.pin(ctx)
	if err != nil {
		return nil, err
	}
	return &pinned{c, p, resolution}, nil
}

// pinner finds the closure of one container and keeps it from Nix's garbage
// collector.
type pinner struct {
	*claimed
	memo  closure.Memo
	roots closure.GCRoots
	query closure.Query
}

// pin resolves the closure, and makes it one that the garbage collector leaves
// alone. When it returns without an error, every path of the closure is valid and
// stays so until the container's GC roots are removed.
//
// What is not valid is fetched first, where the configuration says so.
func (p pinner) pin(ctx context.Context) (closure.Resolution, error) {
	res, err := p.pinValid(ctx)
	fetching, cancel := context.WithTimeout(ctx, time.Duration(p.config.SubstituteTimeout))
	defer cancel()
	for range fetches {
		if !p.config.Substitute || !errors.Is(err, closure.ErrNotValid) {
			break
		}
		if err := p.fetch(fetching); err != nil {
			return res, err
		}
		res, err = p.pinValid(ctx)
	}
	return res, err
}

// fetches is how often a container's closure is fetched: a garbage collection that
// looks for roots before the closure is valid, and for who fetches after that has
// ended, takes it away at once.
const fetches = 3

func (p pinner) pinValid(ctx context.Context) (closure.Resolution, error) {
	p.at("resolving " + asked(p.store, p.request))
	lock, err := closure.HoldCollector(p.config.Store())
	if errors.Is(err, closure.ErrCollecting) {
		p.log.Info("the garbage collector is running; Nix tells it what to keep")
		return p.pinByNix(ctx)
	}
	if errors.Is(err, closure.ErrNotOurs) && p.roots.Indirect {
		return p.pinByNix(ctx)
	}
	if err != nil {
		return closure.Resolution{}, fmt.Errorf("holding the garbage collector off: %w", err)
	}
	defer lock.Close()
	res, err := p.resolveAllowed(ctx)
	if err != nil {
		return res, err
	}
	return res, p.reserve(ctx, res.Digest, res.Pins)
}

// resolveAllowed resolves the closure, and refuses one that may not be pinned: a
// closure-info may list what it does not reference.
func (p pinner) resolveAllowed(ctx context.Context) (closure.Resolution, error) {
	res, err := p.resolve(ctx)
	if err != nil {
		return res, err
	}
	doing := p.doing()
	if err := p.allowed(res.Pins); err != nil {
		return res, err
	}
	p.at(doing)
	return res, nil
}

// pinByNix pins a closure where the garbage collector cannot be held off. Either
// it runs, has read its roots and does not see a new one: then Nix itself tells
// it, and the GC roots are for the next collection. Or Nix's state directory is
// root's and this user is another: then only Nix can make the GC roots. In both
// cases Nix says whether the paths are still valid.
func (p pinner) pinByNix(ctx context.Context) (res closure.Resolution, err error) {
	for range changes {
		res, err = p.tryByNix(ctx)
		if !errors.Is(err, errChanged) {
			break
		}
	}
	return res, err
}

// changes is how often the closure is looked for anew where it is collected and
// made again meanwhile.
const changes = 5

var errChanged = errors.New("the store changed meanwhile; start the container again")

func (p pinner) tryByNix(ctx context.Context) (closure.Resolution, error) {
	before, err := p.resolveAllowed(ctx)
	if err != nil {
		return before, err
	}
	if i := slices.IndexFunc(before.Pins, isDerivation); i >= 0 {
		// Realising a derivation would build it, so there is nothing to tell
		// the collector with.
		root := p.config.Store().Path(before.Pins[i])
		if p.roots.Indirect {
			return before, fmt.Errorf("%s: Nix does not let an ordinary user make a derivation itself a GC root; "+
				"ask for its output", root)
		}
		p.log.WithField("root", root).Info("waiting for the garbage collector")
		return p.pinAfterCollecting(ctx)
	}
	if err := p.reserve(ctx, before.Digest, before.Pins); err != nil {
		return before, err
	}
	if err := p.nix().Realise(ctx, before.Pins, p.indirect()); err != nil {
		// Collected since that look, Nix says that it will not build it. By now it
		// may have come back.
		if _, now := p.resolve(ctx); errors.Is(now, closure.ErrNotValid) {
			err = now
		} else if now == nil && ctx.Err() == nil {
			err = fmt.Errorf("%w (%w)", errChanged, err)
		}
		return before, err
	}
	after, err := p.resolve(ctx)
	if err == nil && (after.Digest != before.Digest || !slices.Equal(after.Pins, before.Pins)) {
		err = errChanged
	}
	return after, err
}

// fetch fetches what the container asks for. It is made a GC root first: it is
// kept from the moment that it is there.
func (p pinner) fetch(ctx context.Context) error {
	names := slices.Clone(p.query.Roots)
	if p.query.Info != "" {
		names = append(names, p.query.Info)
	}
	if i := slices.IndexFunc(names, isDerivation); i >= 0 {
		return fmt.Errorf("%s: a derivation cannot be fetched, only what it builds; "+
			"instantiate it first", p.config.Store().Path(names[i]))
	}
	if err := p.reserve(ctx, "", names); err != nil {
		return err
	}
	release, err := p.dir.HoldCache()
	if err != nil {
		return fmt.Errorf("holding Nix's cache: %w", err)
	}
	defer release()
	terminal := isTerminal(os.Stderr)
	err = p.nix().Fetch(ctx, names, p.indirect(), func(line string) {
		p.log.WithField("nix-store", line).Info("fetching")
		if terminal {
			fmt.Fprintln(os.Stderr, oneLine(line))
		}
	})
	if err != nil {
		return fmt.Errorf("fetching: %w", err)
	}
	return nil
}

// isTerminal tells whether somebody looks.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (p pinner) nix() closure.NixStore {
	return closure.NixStore{Program: p.config.NixStore, Store: p.config.Store(), Cache: p.dir.CacheDir()}
}

// indirect is where Nix is to put links that are GC roots; empty: nowhere.
func (p pinner) indirect() string {
	if !p.roots.Indirect {
		return ""
	}
	return p.roots.Of(p.claim.Record().ID)
}

func isDerivation(b closure.BaseName) bool { return strings.HasSuffix(string(b), ".drv") }

func (p pinner) pinAfterCollecting(ctx context.Context) (closure.Resolution, error) {
	const pause = 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return closure.Resolution{}, fmt.Errorf("%w, and a derivation as a root has to wait for it: %w",
				closure.ErrCollecting, ctx.Err())
		case <-time.After(pause):
		}
		lock, err := closure.HoldCollector(p.config.Store())
		if errors.Is(err, closure.ErrCollecting) {
			continue
		}
		if err == nil {
			// Held from here on, so that pin's own look succeeds.
			defer lock.Close()
			return p.pinValid(ctx)
		}
		return closure.Resolution{}, err
	}
}

// resolve answers from the memo, or asks the program that reads the database.
func (p pinner) resolve(ctx context.Context) (closure.Resolution, error) {
	if res, ok := p.memo.Remembered(p.query); ok {
		if res.Paths > p.config.MaxPaths {
			return res, &closure.TooLargeError{Max: p.config.MaxPaths}
		}
		return res, nil
	}
	program, err := p.resolver()
	if err != nil {
		return closure.Resolution{}, err
	}
	return program.Resolve(ctx, p.config.Store(), p.query)
}

// resolver is the program that reads Nix's database, installed beside the hook.
func (p pinner) resolver() (closure.Resolver, error) {
	self, err := os.Executable()
	return closure.Resolver{
		Program: filepath.Join(filepath.Dir(self), "nix-closure"),
		Args:    []string{"--config", p.call.Config},
	}, err
}

// load returns the store paths of the closure. A memo that was damaged is made
// anew, and so is one that a sweep took: sweeps that begin when the record has the
// digest leave it alone, so that those that began before are all there is to try
// again for.
func (p pinner) load(ctx context.Context, res closure.Resolution) (closure.Closure, error) {
	for attempt := 1; ; attempt++ {
		c, err := p.memo.Load(res.Digest)
		if err == nil || attempt == loadAttempts {
			return c, err
		}
		p.log.WithField("error", err.Error()).Warn("the memo is missing or damaged, and made anew")
		if err := p.memo.Forget(p.query, res.Digest); err != nil {
			return closure.Closure{}, err
		}
		again, err := p.resolve(ctx)
		if err != nil {
			return closure.Closure{}, err
		}
		if again.Digest != res.Digest {
			return closure.Closure{}, errors.New("the closure is not what the memo said; start the container again")
		}
	}
}

const loadAttempts = 5
