// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Fetch realises these names, which are not valid, and everything that they reference, from
// the substituters in Nix's configuration. It builds nothing. It calls report with each
// line of Nix's progress.
//
// When Fetch returns, the names are GC roots: either the caller made them so before, or
// Fetch makes indirect roots in rootsDir, as Realise does.
//
// If ctx ends, the error says how far the fetch came. After an error, what was fetched
// completely stays valid, but nothing keeps it from the garbage collector. What was not
// fetched completely is removed.
func (n NixStore) Fetch(ctx context.Context, names []BaseName, rootsDir string, report func(line string)) error {
	p := progress{store: n.Store}
	args := []string{
		"--option", "max-jobs", "0", "--option", "builders", "",
		// A substituter may have now what it did not have an hour ago.
		"--option", "narinfo-cache-negative-ttl", "0",
		"--realise",
	}
	if rootsDir != "" {
		args = append(args, "--indirect", "--add-root", rootsDir+"/fetched")
	}
	err := n.watch(ctx, io.Discard, func(line string) {
		p.note(line)
		report(line)
	}, append(args, n.paths(names)...)...)
	if err == nil {
		return nil
	}
	// The time for fetching may be over. Cleaning up takes little.
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = errors.Join(err, n.discard(cleaning, p.begun))
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("the time for it is over: %s; fetch it by hand with `nix-store --realise %s`, "+
			"or raise substitute-timeout in the configuration", p, strings.Join(n.paths(names), " "))
	}
	if why := p.why(); why != "" {
		return fmt.Errorf("%w: %s", err, why)
	}
	return err
}

// discard removes the paths that are in the store but not valid. Nix leaves them there if
// an archive is damaged, or if Nix is stopped. discard keeps a path that another process is
// fetching: that process has a lock on it.
func (n NixStore) discard(ctx context.Context, begun []BaseName) error {
	var errs []error
	for _, name := range begun {
		if _, err := os.Lstat(n.Store.Path(name)); err != nil {
			removeLock(n.Store.Path(name) + ".lock")
			continue
		}
		if _, err := n.Versions(ctx, []BaseName{name}); !errors.Is(err, ErrNotValid) {
			continue
		}
		_, err := n.run(ctx, "--delete", n.Store.Path(name))
		if errs = append(errs, err); err == nil {
			removeLock(n.Store.Path(name) + ".lock")
		}
	}
	return errors.Join(errs...)
}

// removeLock removes the lock file of a path as Nix does. A process that waits for the lock
// sees, by what is written into the file, that the file is no longer the one. If this
// process may not remove it, or another process has the lock, the file stays, which does no
// harm.
func removeLock(path string) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = os.Remove(path)
		_, _ = f.WriteString("d")
	}
}

// progress is how far a realisation came, by what nix-store prints.
type progress struct {
	store     Store
	announced string // what Nix is going to do
	begun     []BaseName
	warned    string // the last warning
	lacking   bool   // a list of the paths that no substituter has follows
	lacks     string // the first path of that list
}

func (p *progress) note(line string) {
	if strings.HasPrefix(line, "these ") || strings.HasPrefix(line, "this ") {
		p.announced = strings.TrimSuffix(line, ":")
	}
	if rest, ok := strings.CutPrefix(line, "copying path '"); ok {
		path, _, _ := strings.Cut(rest, "'")
		if name, err := p.store.ParseExact(path); err == nil && !slices.Contains(p.begun, name) {
			p.begun = append(p.begun, name)
		}
	}
	if said, ok := strings.CutPrefix(line, "warning: "); ok && !strings.Contains(said, "--add-root") {
		p.warned = strings.TrimPrefix(said, "error: ")
	}
	if name, err := p.store.ParseExact(line); err == nil && p.lacking && p.lacks == "" {
		p.lacks = p.store.Path(name)
	}
	p.lacking = p.lacking || strings.HasPrefix(line, "don't know how to build these paths")
}

// why returns the reason for a failure if Nix's own error is only that nothing was built.
func (p progress) why() string {
	why := p.warned
	if p.lacks != "" {
		if why != "" {
			why = " (" + why + ")"
		}
		why = "no substituter has " + p.lacks + why + "; " +
			"build it here, copy it to one of them, or correct `substituters` in nix.conf"
	}
	return why
}

func (p progress) String() string {
	switch {
	case len(p.begun) > 0 && p.announced != "":
		last := p.store.Path(p.begun[len(p.begun)-1])
		return fmt.Sprintf("%s; %d begun, the last %s", p.announced, len(p.begun), last)
	case len(p.begun) > 0:
		return fmt.Sprintf("%d store paths begun, the last %s", len(p.begun), p.store.Path(p.begun[len(p.begun)-1]))
	case p.announced != "":
		return p.announced + "; none begun"
	}
	return "no substituter has answered"
}
