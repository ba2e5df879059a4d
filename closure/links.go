// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Links is a directory of GC roots that belong to no container: one link for each store
// path, with the store path's name. They stay until Keep removes them, also after a reboot.
type Links struct {
	Nix NixStore
	Dir string // absolute path
	// Indirect: see GCRoots.
	Indirect bool
}

// collecting is the pause between two attempts to hold off a running collector.
const collecting = 100 * time.Millisecond

// Add adds links. valid must fail if what the links are to keep is not valid; Add calls it
// while the garbage collector can take nothing of that. After an error, some links may be
// there.
func (l Links) Add(ctx context.Context, names []BaseName, valid func(context.Context) error) error {
	if len(names) == 0 {
		return valid(ctx)
	}
	mode := fs.FileMode(0o755) // Nix's own mode for such directories
	if l.Indirect {
		mode = 0o700
	}
	if err := os.MkdirAll(l.Dir, mode); err != nil {
		return err
	}
	i := slices.IndexFunc(names, func(n BaseName) bool { return strings.HasSuffix(string(n), ".drv") })
	if l.Indirect {
		if i >= 0 {
			return fmt.Errorf("%s: Nix does not let an ordinary user make a derivation itself a GC root; "+
				"name its output", l.Nix.Store.Path(names[i]))
		}
		if err := valid(ctx); err != nil {
			return err // it says more than Nix would
		}
		for _, name := range names {
			if err := l.Nix.addRoot(ctx, name, l.Dir+"/"+string(name)); err != nil {
				return err
			}
		}
		return valid(ctx)
	}
	lock, err := HoldCollector(l.Nix.Store)
	for errors.Is(err, ErrCollecting) && i >= 0 {
		// Nix would build a derivation, and so cannot tell the collector to keep it.
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, and a derivation has to wait for it: %w", err, ctx.Err())
		case <-time.After(collecting):
		}
		lock, err = HoldCollector(l.Nix.Store)
	}
	if errors.Is(err, ErrCollecting) {
		// The links are for the next collection. Of the store paths that this one may take,
		// Nix tells it itself.
		if err := l.link(names); err != nil {
			return err
		}
		if err := valid(ctx); err != nil {
			return err
		}
		err := l.Nix.Realise(ctx, names, "")
		// If the collector was faster, Nix says that it will not build the path.
		if now := valid(ctx); now != nil {
			return now
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("holding the garbage collector off: %w", err)
	}
	defer lock.Close()
	if err := valid(ctx); err != nil {
		return err
	}
	return l.link(names)
}

// link makes the links, and has them on the disk before it returns.
func (l Links) link(names []BaseName) error {
	for _, name := range names {
		err := os.Symlink(l.Nix.Store.Path(name), l.Dir+"/"+string(name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	dir, err := os.Open(l.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Keep removes all links but these, and the directory if no link is left.
func (l Links) Keep(names []BaseName) error {
	others, err := l.Others(names)
	if err != nil {
		return err
	}
	for _, name := range others {
		if err := os.Remove(l.Dir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_ = os.Remove(l.Dir)               // unless it has links
	_ = os.Remove(filepath.Dir(l.Dir)) // unless it has other directories
	return nil
}

// Others returns the names in the directory that are not these.
func (l Links) Others(names []BaseName) (others []string, _ error) {
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if !slices.Contains(names, BaseName(e.Name())) {
			others = append(others, e.Name())
		}
	}
	return others, err
}

// Missing returns the names for which there is no link.
func (l Links) Missing(names []BaseName) []BaseName {
	return slices.DeleteFunc(slices.Clone(names), func(name BaseName) bool {
		target, err := os.Readlink(l.Dir + "/" + string(name))
		return err == nil && target == l.Nix.Store.Path(name)
	})
}

// addRoot makes a store path that is valid an indirect GC root, by a link.
func (n NixStore) addRoot(ctx context.Context, name BaseName, link string) error {
	_, err := n.run(ctx, append(slices.Clone(offline), "--realise", "--indirect", "--add-root", link,
		n.Store.Path(name))...)
	return err
}
