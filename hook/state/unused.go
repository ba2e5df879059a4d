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
)

// users returns the names in a directory that a container uses, and the others,
// which may not. What a container without a record is said to use, it does not.
func (s *sweeper) users(dir *os.Root) (used map[string]bool, others []string, _ error) {
	all, err := names(dir)
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

// unusedLong tells whether a view or a registration that nobody uses was not used
// for some time. Of one whose use ends now it says so in a dry run too.
func (s *sweeper) unusedLong(dir *os.Root, name string) bool {
	return (s.unused <= 0 || !slices.Contains(s.ended, name)) && old(dir, name, s.unused)
}

// old tells whether a file was neither made nor used for some time. What cannot be
// looked at is not old.
func old(dir *os.Root, name string, unused time.Duration) bool {
	last, err := lastUse(dir, name)
	return err == nil && time.Since(last) >= unused
}

// lastUse is when a file was last made or used, as far as the file system notes it.
func lastUse(dir *os.Root, name string) (time.Time, error) {
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

// layerOf is the name of the layer that something in views is, was or becomes.
func layerOf(name string) string {
	layer, _, _ := strings.Cut(name, ".")
	return layer
}

// isLayer tells whether a start would find something in views.
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
			break // to remove one takes long: the next one the next time
		}
		removed, err := s.view(name)
		if errs = append(errs, err); removed {
			s.swept.Views = append(s.swept.Views, name)
		}
	}
	return errors.Join(errs...)
}

// view removes a view that nobody was seen to use: a layer, one that is stale, or a
// half made one that nobody finishes.
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
		// What is half removed must not be found under its name, and what is
		// half made not be finished by another.
		moved = layerOf(name) + ".stale." + crand.Text()
		if err := dir.Rename(name, moved); err != nil {
			return false, ignoreMissing(err)
		}
	}
	s.moved++
	if !view.IsHalf(name) {
		// The second look, see sweeper. What was stale before the first look
		// cannot have been found since, but another view of its name can.
		used, _, err := s.users(dir)
		if err != nil || used[layerOf(name)] {
			return false, errors.Join(err, s.giveBack(moved, name))
		}
	}
	return true, s.remove(dir, moved)
}

// giveBack gives a view that was taken out of the way its name back. If there is
// another by now, it stays stale, and a later sweep removes it.
func (s *sweeper) giveBack(moved, name string) error {
	if moved == name {
		return nil
	}
	dir := s.dir.Views.Name() + "/"
	err := unix.Renameat2(unix.AT_FDCWD, dir+moved, unix.AT_FDCWD, dir+name, unix.RENAME_NOREPLACE)
	// EINVAL: the file system cannot (Linux 3.15; some file systems later).
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

// registration removes a registration that nobody was seen to use, or a part of one
// that nobody finishes.
func (s *sweeper) registration(name string) (removed bool, _ error) {
	removed, err := s.file(s.dir.Registrations, name)
	if removed {
		s.swept.Registrations = append(s.swept.Registrations, name)
	}
	return removed, err
}

// closures removes what is remembered of closures. Nothing that runs needs it:
// it makes the next start faster. One that is being prepared does.
func (s *sweeper) closures(context.Context) error {
	dir := s.dir.Closures
	all, err := names(dir)
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

// closure removes what is remembered of a closure, unless a container is being
// prepared that needs it, or it is being written.
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

// preparing are the names in closures that containers need that are being prepared.
// It is not looked at again: a start whose record is younger has it made anew.
func (d *Dir) preparing() (map[string]bool, error) {
	ids, err := d.IDs()
	if err != nil {
		return nil, err
	}
	memo := closure.Memo{Dir: d.Closures, Store: d.store}
	needed := map[string]bool{}
	for _, id := range ids {
		// What cannot be read prepares nothing: no start has such a record.
		r, ok, err := d.Record(id)
		if err != nil || !ok || r.Attached {
			continue
		}
		if live, err := r.live(); live || err != nil {
			needed[r.Digest] = true
			needed[memo.EntryName(closure.Query{Roots: r.Roots, Info: r.ClosureInfo})] = true
		}
	}
	return needed, nil
}
