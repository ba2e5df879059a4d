// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	crand "crypto/rand"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// users returns the names in a directory that containers use, and the other names, which
// may be unused. A use mark of a container without a record does not count.
func (s *sweeper) users(dir *owndir.Dir) (used map[string]bool, others []string, _ error) {
	all, err := dir.Names()
	if err != nil {
		return nil, nil, err
	}
	used = map[string]bool{}
	var errs []error
	for _, file := range all {
		name, id, ok := parseRef(file)
		if !ok {
			others = append(others, name)
			continue
		}
		known, err := s.known(id)
		if known || err != nil {
			used[name] = true
			errs = append(errs, err)
			continue
		}
		_, err = s.unknown(id, func(id string) (bool, error) {
			known, err := s.known(id)
			return !known, err
		}, dir, file)
		errs = append(errs, err)
	}
	return used, others, errors.Join(errs...)
}

// unusedLong reports whether an unmarked view or registration was unused for the time
// unused. One whose use ends in this sweep does not count: its access time is now, and a
// dry run must say the same.
func (s *sweeper) unusedLong(dir *owndir.Dir, name string) bool {
	return (s.unused <= 0 || !slices.Contains(s.ended, name)) && old(dir, name, s.unused)
}

// old reports whether a file was neither made nor used for the time unused. A file that
// cannot be inspected is not old.
func old(dir *owndir.Dir, name string, unused time.Duration) bool {
	last, err := lastUse(dir, name)
	return err == nil && time.Since(last) >= unused
}

// lastUse returns when a file was last made or used, as far as the file system records
// it.
func lastUse(dir *owndir.Dir, name string) (time.Time, error) {
	st, err := dir.Lstat(name)
	if err != nil {
		return time.Time{}, err
	}
	last := st.ModTime()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && last.Before(time.Unix(sys.Atim.Unix())) {
		last = time.Unix(sys.Atim.Unix())
	}
	return last, nil
}

// layerOf returns the name of the layer that an entry of views is, was or will be.
func layerOf(name string) string {
	layer, _, _ := strings.Cut(name, ".")
	return layer
}

// isLayer reports whether a start would find an entry of views.
func isLayer(name string) bool { return name == layerOf(name) }

func (s *sweeper) views(ctx context.Context) error {
	dir := s.dir.Views
	used, others, err := s.users(dir)
	errs := []error{err}
	if used == nil {
		return err
	}
	for _, name := range s.part(others) {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if !view.IsHalf(name) && (used[layerOf(name)] || !s.unusedLong(dir, name)) {
			continue
		}
		if s.most > 0 && s.moved > 0 {
			s.more = true
			break // removing one view takes long; the next sweep removes the next
		}
		removed, err := s.view(name)
		if errs = append(errs, err); removed {
			s.swept.Views = append(s.swept.Views, name)
		}
	}
	return errors.Join(errs...)
}

// view removes a view without a mark: a layer, a stale layer, or a half-made layer that
// nobody finishes.
func (s *sweeper) view(name string) (removed bool, _ error) {
	dir := s.dir.Views
	if view.IsHalf(name) {
		release, ok := view.LockAbandoned(dir, name)
		if !ok {
			return false, nil
		}
		defer release()
	}
	if s.dryRun {
		return true, nil
	}
	moved := name
	if isLayer(name) || view.IsHalf(name) {
		// A start must not find a half-removed view under its name, and another process
		// must not finish a half-made one.
		moved = layerOf(name) + ".stale." + crand.Text()
		if err := dir.Rename(name, moved); err != nil {
			return false, ignoreMissing(err)
		}
	}
	s.moved++
	if !view.IsHalf(name) {
		// This is the second check of the marks, see sweeper. No start can have found a
		// view that was stale before the first check, but a start can have found another
		// view with its name.
		used, _, err := s.users(dir)
		if err != nil || used[layerOf(name)] {
			return false, errors.Join(err, s.giveBack(moved, name))
		}
	}
	return true, s.remove(dir, moved)
}

// giveBack gives a renamed view its name back. If there is another view with this name by
// now, the renamed one stays stale, and a later sweep removes it.
func (s *sweeper) giveBack(moved, name string) error {
	if moved == name {
		return nil
	}
	dir := s.dir.Views.Name() + "/"
	err := unix.Renameat2(unix.AT_FDCWD, dir+moved, unix.AT_FDCWD, dir+name, unix.RENAME_NOREPLACE)
	// EINVAL: the file system does not support the flag (Linux 3.15; later for some file
	// systems).
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.NewSyscallError("renameat2 "+moved, err)
}

func (s *sweeper) registrations(context.Context) error {
	dir := s.dir.Registrations
	used, others, err := s.users(dir)
	errs := []error{err}
	if used == nil {
		return err
	}
	for _, name := range s.part(others) {
		if used[name] || !s.unusedLong(dir, name) {
			continue
		}
		_, err := s.registration(name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// registration removes a registration without a mark, or a part of one that nobody
// finishes.
func (s *sweeper) registration(name string) (removed bool, _ error) {
	removed, err := s.file(s.dir.Registrations, name)
	if removed {
		s.swept.Registrations = append(s.swept.Registrations, name)
	}
	return removed, err
}

// closures removes old caches of closures. No running container needs them; they only make
// the next start faster. A container that is being prepared needs its cache.
func (s *sweeper) closures(context.Context) error {
	dir := s.dir.Closures
	all, err := dir.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range s.part(all) {
		if old(dir, name, remembered(s.unused)) {
			_, err := s.closure(name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// closure removes the cache of a closure, unless a container that is being prepared needs
// it, or a process is writing it.
func (s *sweeper) closure(name string) (removed bool, _ error) {
	if s.preparing == nil {
		var err error
		if s.preparing, err = s.dir.preparing(); err != nil {
			return false, err
		}
	}
	if s.preparing[name] {
		return false, nil
	}
	removed, err := s.file(s.dir.Closures, name)
	if removed {
		s.swept.Closures = append(s.swept.Closures, name)
	}
	return removed, err
}

// preparing returns the names in closures that containers in preparation need. It is read
// once per sweep: a start whose record is newer makes its cache again.
func (d *Dir) preparing() (map[string]bool, error) {
	ids, err := d.IDs()
	if err != nil {
		return nil, err
	}
	cache := closure.Cache{Dir: d.Closures, Store: d.store}
	needed := map[string]bool{}
	for _, id := range ids {
		// A damaged record prepares nothing, because no start has one.
		r, ok, err := d.Record(id)
		if err != nil || !ok || r.Attached {
			continue
		}
		if live, err := r.live(); live || err != nil {
			needed[r.Digest] = true
			needed[cache.EntryName(closure.Query{Roots: r.Roots, Info: r.ClosureInfo})] = true
		}
	}
	return needed, nil
}
