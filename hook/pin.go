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

// pinned is a container whose closure is valid and stays valid.
type pinned struct {
	*claimed
	pinner     pinner
	resolution closure.Resolution
}

// pin resolves the closure and protects it from Nix's garbage collector.
func pin(ctx context.Context, c *claimed) (*pinned, error) {
	p := newPinner(c)
	if c.reserved != nil {
		return &pinned{c, p, *c.reserved}, nil
	}
	resolution, err := p.pin(ctx)
	if err != nil {
		return nil, err
	}
	return &pinned{c, p, resolution}, nil
}

// pinner resolves the closure of one container and protects it from Nix's garbage
// collector.
type pinner struct {
	*claimed
	cache closure.Cache
	roots closure.GCRoots
	query closure.Query
}

func newPinner(c *claimed) pinner {
	return pinner{
		claimed: c,
		cache:   closure.Cache{Dir: c.dir.Closures, Store: c.store},
		roots:   c.dir.GCRoots(),
		query:   closure.Query{Roots: c.roots(), Info: c.request.ClosureInfo},
	}
}

// remembered returns a closure that the cache has and that may be pinned, and holds Nix's
// garbage collector off until held is closed. Its GC roots must be made before that. For
// everything else, ok is false, and pin does the work or says what is wrong.
func (p pinner) remembered() (_ closure.Resolution, held *os.File, ok bool) {
	lock, err := closure.HoldCollector(p.store)
	if err != nil {
		return closure.Resolution{}, nil, false
	}
	res, ok := p.cache.Remembered(p.query)
	if ok && res.Paths <= p.config.MaxPaths && p.allowed(res.Pins) == nil {
		return res, lock, true
	}
	lock.Close()
	return closure.Resolution{}, nil, false
}

// pin resolves the closure and adds GC roots for it. If it returns without an error,
// every path of the closure is valid and stays valid until the container's GC roots are
// removed.
//
// It fetches invalid paths first, if the configuration allows fetching.
func (p pinner) pin(ctx context.Context) (closure.Resolution, error) {
	res, err := p.pinValid(ctx)
	if !p.config.Substitute || !errors.Is(err, closure.ErrNotValid) {
		return res, err
	}
	fetching, cancel := context.WithTimeout(ctx, time.Duration(p.config.SubstituteTimeout))
	defer cancel()
	for range fetches {
		if err := p.fetch(fetching); err != nil {
			return res, err
		}
		if res, err = p.pinValid(ctx); !errors.Is(err, closure.ErrNotValid) {
			break
		}
	}
	return res, err
}

// fetches bounds the attempts to fetch a closure. A garbage collection can delete what
// was just fetched: if it reads the roots before the closure is valid, and looks for
// processes that fetch after the fetch has ended.
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

// resolveAllowed resolves the closure and refuses one that must not be pinned. This check
// comes after resolving, because a closure-info may list paths that it does not
// reference. With a device's closure-info that is its author's choice, and what mounts ask
// for is checked before.
func (p pinner) resolveAllowed(ctx context.Context) (closure.Resolution, error) {
	res, err := p.resolve(ctx)
	if err != nil || p.device != nil && p.device.ClosureInfo != "" {
		return res, err
	}
	doing := p.doing()
	if err := p.allowed(res.Pins); err != nil {
		return res, err
	}
	p.at(doing)
	return res, nil
}

// pinByNix pins a closure with the help of Nix, for two cases in which the hook cannot
// hold the garbage collector off. In the first, the collector runs, has read its roots
// and ignores new ones: Nix itself tells it what to keep, and the GC roots protect
// against the next collection. In the second, root owns Nix's state directory and this
// user is not root: only Nix can make the GC roots. In both cases Nix confirms that the
// paths are still valid.
func (p pinner) pinByNix(ctx context.Context) (res closure.Resolution, err error) {
	for range changes {
		res, err = p.tryByNix(ctx)
		if !errors.Is(err, errChanged) {
			break
		}
	}
	return res, err
}

// changes bounds the attempts to resolve a closure that is collected and rebuilt
// meanwhile.
const changes = 5

var errChanged = errors.New("the store changed meanwhile; start the container again")

func (p pinner) tryByNix(ctx context.Context) (closure.Resolution, error) {
	before, err := p.resolveAllowed(ctx)
	if err != nil {
		return before, err
	}
	if i := slices.IndexFunc(before.Pins, isDerivation); i >= 0 {
		// Realising a derivation would build it, so Nix cannot tell the collector to keep
		// it.
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
	if err := p.realise(ctx, before.Pins); err != nil {
		// If a path was collected after the first resolve, Nix says that it will not
		// build it. The path may be valid again by now.
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

// realise has Nix protect the pins. For an ordinary user Nix's daemon does so at once; if
// it does not, or for root, who need not have a daemon, nix-store does.
func (p pinner) realise(ctx context.Context, pins []closure.BaseName) error {
	if p.roots.Indirect {
		if p.daemon == nil {
			p.daemon = closure.Daemon{Store: p.config.Store()}.Call()
			defer p.daemon.Close()
		}
		err := p.daemon.Root(ctx, pins, p.indirect())
		if err == nil || errors.Is(err, closure.ErrNotValid) {
			return err
		}
		p.log.WithField("error", err.Error()).Warn("nix-store makes the GC roots instead of Nix's daemon")
	}
	return p.nix().Realise(ctx, pins, p.indirect())
}

// fetch fetches what the container asks for. It reserves the GC roots first, so that the
// paths are protected from the moment they exist.
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

// isTerminal reports whether f is a terminal, so that a person may read it.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (p pinner) nix() closure.NixStore {
	return closure.NixStore{Program: p.config.NixStore, Store: p.config.Store(), Cache: p.dir.CacheDir()}
}

// indirect is the directory in which Nix puts links that are GC roots; empty: no links.
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
			// The lock is held from here on, so HoldCollector in pinValid succeeds.
			defer lock.Close()
			return p.pinValid(ctx)
		}
		return closure.Resolution{}, err
	}
}

// resolve answers from the cache, or runs the program that reads the database.
func (p pinner) resolve(ctx context.Context) (closure.Resolution, error) {
	if res, ok := p.cache.Remembered(p.query); ok {
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

// load returns the store paths of the closure. If the cache is damaged or a sweep removed
// it, load makes it anew. A sweep that begins after the record has the digest keeps the
// cache, so only sweeps that began earlier can make a retry necessary.
func (p pinner) load(ctx context.Context, res closure.Resolution) (closure.Closure, error) {
	for attempt := 1; ; attempt++ {
		c, err := p.cache.Load(res.Digest)
		if err == nil || attempt == loadAttempts {
			return c, err
		}
		p.log.WithField("error", err.Error()).Warn("the cache is missing or damaged; resolving the closure again")
		if err := p.cache.Forget(p.query, res.Digest); err != nil {
			return closure.Closure{}, err
		}
		again, err := p.resolve(ctx)
		if err != nil {
			return closure.Closure{}, err
		}
		if again.Digest != res.Digest {
			return closure.Closure{}, errors.New("the closure differs from the cache; start the container again")
		}
	}
}

const loadAttempts = 5
