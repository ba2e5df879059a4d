// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/nix-closure/nix-closure/closure"
)

const pinAgain = "start the container again before Nix's garbage collector runs"

// checkPinned looks at the container's GC roots: that they are there, lead to store paths
// of the closure, and keep all of it.
func (l *look) checkPinned(ctx context.Context) {
	roots := l.host.Dir.GCRoots()
	dir := roots.Of(l.ID)
	if l.record.GCRoots != dir {
		l.wrong(pinAgain, "the record says that the GC roots are in %s, and this container's are in %s",
			l.record.GCRoots, dir)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		l.wrong(pinAgain, "its GC roots are gone: %s is not there", dir)
		return
	}
	if err != nil {
		l.unknown("looking at its GC roots: %v", err)
		return
	}
	var auto map[string]bool
	if roots.Indirect {
		if auto, err = autoRoots(l.store); err != nil {
			l.unknown("looking at what Nix knows of its GC roots: %v", err)
		}
	}
	var pins []closure.BaseName
	for _, e := range entries {
		if e.Name() == closure.BootLink {
			continue
		}
		link := dir + "/" + e.Name()
		target, err := os.Readlink(link)
		if err != nil {
			l.wrong(pinAgain, "the GC root %s is no link: %v", link, err)
			continue
		}
		base, err := l.store.ParseExact(target)
		if err != nil || !roots.Indirect && e.Name() != string(base) {
			l.wrong(pinAgain, "the GC root %s leads elsewhere than to that store path: to %s", link, target)
			continue
		}
		if auto != nil && !auto[link] {
			l.wrong(pinAgain, "Nix does not know the GC root %s: no link in %s leads to it", link, autoDir(l.store))
		}
		pins = append(pins, base)
	}
	l.checkPins(ctx, dir, pins)
}

// checkPins compares the store paths that are GC roots with the record and its closure.
func (l *look) checkPins(ctx context.Context, dir string, pins []closure.BaseName) {
	asked := asRoots(l.record)
	for _, root := range asked {
		if !slices.Contains(pins, root) {
			l.wrong(pinAgain, "no GC root in %s leads to %s, which the record has as a root", dir, l.store.Path(root))
		}
	}
	if l.closure == nil {
		return
	}
	for _, pin := range pins {
		if _, in := slices.BinarySearch(l.closure.Names, pin); !in && !slices.Contains(asked, pin) {
			l.wrong("remove it", "the GC root %s/%s is of a store path that is not in the closure", dir, pin)
		}
	}
	if len(pins) == 0 {
		return
	}
	kept, err := l.Nix.Closure(ctx, closure.Query{Roots: pins})
	if err != nil {
		l.unknown("resolving what its GC roots keep: %v", err)
		return
	}
	var lost []closure.BaseName
	for _, name := range l.closure.Names {
		if _, in := slices.BinarySearch(kept.Names, name); !in {
			lost = append(lost, name)
		}
	}
	if len(lost) > 0 {
		l.wrong(pinAgain, "its GC roots do not keep all of the closure: not %s", l.names(lost))
	}
}

// autoDir is where Nix has links to GC roots that are elsewhere.
func autoDir(store closure.Store) string { return store.StateDir + "/gcroots/auto" }

// autoRoots are the links that Nix knows as GC roots.
func autoRoots(store closure.Store) (map[string]bool, error) {
	dir := autoDir(store)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			known[target] = true
		}
	}
	return known, nil
}
