// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
)

// pinner finds the closure of one container and keeps it from Nix's garbage
// collector.
type pinner struct {
	config     config.Config
	configPath string
	memo       closure.Memo
	query      closure.Query
	log        *slog.Logger
}

// pin resolves the closure, and makes it one that the garbage collector leaves
// alone. record is called before anything is made for the container. When pin
// returns without an error, every path of the closure is valid and stays so
// until the container's GC roots are removed.
func (p pinner) pin(ctx context.Context, id string, record func(digest string) error) (closure.Resolution, error) {
	lock, err := closure.HoldCollector(p.config.Store())
	if errors.Is(err, closure.ErrCollecting) {
		return p.pinWhileCollecting(ctx, id, record)
	}
	if err != nil {
		return closure.Resolution{}, fmt.Errorf("holding the garbage collector off: %w", err)
	}
	defer lock.Close()
	res, err := p.resolve(ctx)
	if err != nil {
		return res, err
	}
	if err := record(res.Digest); err != nil {
		return res, err
	}
	return res, closure.AddGCRoots(p.config.Store(), id, res.Pins)
}

// pinWhileCollecting pins a closure while the garbage collector runs. The
// collector has read its roots and does not see a new one, so Nix itself tells
// it of them, and says whether they are still valid. The GC roots are for the
// next collection.
func (p pinner) pinWhileCollecting(ctx context.Context, id string, record func(digest string) error) (closure.Resolution, error) {
	before, err := p.resolve(ctx)
	if err != nil {
		return before, err
	}
	if i := slices.IndexFunc(before.Pins, isDerivation); i >= 0 {
		// Realising a derivation would build it, so there is nothing to tell
		// the collector with.
		p.log.Info("waiting for the garbage collector", "root", p.config.Store().Path(before.Pins[i]))
		return p.pinAfterCollecting(ctx, id, record)
	}
	if err := record(before.Digest); err != nil {
		return before, err
	}
	if err := closure.AddGCRoots(p.config.Store(), id, before.Pins); err != nil {
		return before, err
	}
	p.log.Info("the garbage collector is running; Nix tells it what to keep", "roots", len(before.Pins))
	nix := closure.NixStore{Program: p.config.NixStore, Store: p.config.Store()}
	if err := nix.Realise(ctx, before.Pins); err != nil {
		return before, err
	}
	after, err := p.resolve(ctx)
	if err == nil && (after.Digest != before.Digest || !slices.Equal(after.Pins, before.Pins)) {
		err = errors.New("the store changed while the garbage collector ran; start the container again")
	}
	return after, err
}

func isDerivation(b closure.BaseName) bool { return strings.HasSuffix(string(b), ".drv") }

func (p pinner) pinAfterCollecting(ctx context.Context, id string, record func(digest string) error) (closure.Resolution, error) {
	const pause = 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return closure.Resolution{}, fmt.Errorf("%w, and a derivation as a root has to wait for it: %w", closure.ErrCollecting, ctx.Err())
		case <-time.After(pause):
		}
		lock, err := closure.HoldCollector(p.config.Store())
		if errors.Is(err, closure.ErrCollecting) {
			continue
		}
		if err == nil {
			// Held from here on, so that pin's own look succeeds.
			defer lock.Close()
			return p.pin(ctx, id, record)
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
	// Installed beside the hook, wherever that is.
	self, err := os.Executable()
	if err != nil {
		return closure.Resolution{}, err
	}
	program := closure.Resolver{
		Program: filepath.Join(filepath.Dir(self), "nix-closure"),
		Args:    []string{"--config", p.configPath},
	}
	return program.Resolve(ctx, p.config.Store(), p.query)
}

// load returns the store paths of the closure. A memo that was damaged is made
// anew.
func (p pinner) load(ctx context.Context, res closure.Resolution) (closure.Closure, error) {
	c, err := p.memo.Load(res.Digest)
	if err == nil {
		return c, nil
	}
	p.log.Warn("the memo is damaged and made anew", "error", err.Error())
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
	return p.memo.Load(res.Digest)
}
