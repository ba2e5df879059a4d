// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/internal/config"
)

// nix answers what Nix knows, at one moment: from its database or, where that cannot be
// read, from its own program. It implements verify.Nix.
type nix struct {
	config config.Config

	mu       sync.Mutex
	snapshot *nixdb.Snapshot // nil: the database cannot be read
	closures map[string]closure.Closure
}

func openNix(ctx context.Context, c config.Config) *nix {
	n := &nix{config: c, closures: map[string]closure.Closure{}}
	if snapshot, err := nixdb.Open(ctx, c.Store()); err == nil {
		n.snapshot = snapshot
	}
	return n
}

func (n *nix) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.snapshot != nil {
		_ = n.snapshot.Close()
		n.snapshot = nil
	}
}

// Closure finds the closure that q asks for, from nothing that is remembered. Its size is
// not limited: the container was started with it.
func (n *nix) Closure(ctx context.Context, q closure.Query) (closure.Closure, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	roots := slices.Sorted(slices.Values(q.Roots))
	key := fmt.Sprint(roots, q.Info)
	if c, ok := n.closures[key]; ok {
		return c, nil
	}
	const most = math.MaxInt32 - 1
	c, err := closure.Ask(ctx, n.config.Store(), n.registry(), q, most)
	if err != nil && n.snapshot != nil && n.snapshot.Changed() {
		c, err = closure.Ask(ctx, n.config.Store(), n.program(), q, most)
	}
	if err == nil {
		n.closures[key] = c
	}
	return c, err
}

func (n *nix) registry() closure.Registry {
	if n.snapshot != nil {
		return n.snapshot
	}
	return n.program()
}

func (n *nix) program() closure.NixStore {
	return closure.NixStore{Program: n.config.NixStore, Store: n.config.Store()}
}

// Infos are of all paths of a closure, in their order.
func (n *nix) Infos(ctx context.Context, c closure.Closure) ([]closure.PathInfo, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.snapshot != nil {
		infos, err := n.snapshot.Infos(ctx, c.Names)
		if err == nil || !n.snapshot.Changed() {
			return infos, err
		}
	}
	infos, err := n.program().Infos(ctx, c)
	slices.SortFunc(infos, func(a, b closure.PathInfo) int { return cmp.Compare(a.Name, b.Name) })
	return infos, err
}
