// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
)

// Swept is what a sweep removed, or would remove.
type Swept struct {
	// Records are the ids of containers whose process is gone. Their GC roots go
	// with the record.
	Records []string `json:"records"`
	// GCRoots are ids that have GC roots from before this boot and no record.
	GCRoots []string `json:"gcRoots"`
	// Views, Registrations and Closures are names in these directories: no
	// container uses what has them.
	Views         []string `json:"views"`
	Registrations []string `json:"registrations"`
	Closures      []string `json:"closures"`
	// Cache are names in the directory for what Nix notes of substituters.
	Cache []string `json:"cache"`
}

// nothingSwept has no list that is nil: in JSON, what is empty is a list too.
func nothingSwept() Swept {
	return Swept{
		Records: []string{}, GCRoots: []string{}, Views: []string{}, Registrations: []string{}, Closures: []string{},
		Cache: []string{},
	}
}

// Limits of a sweep that a container's start or end does in passing.
const (
	// some is how many entries of a directory it looks at, and few how many records
	// it does before a start, which somebody waits for. A start leaves one record at
	// most, so that a few are enough for what is left not to grow.
	some, few = 64, 8
	// UnusedFor is how long a view or a registration stays when no container
	// uses it.
	UnusedFor = time.Hour
)

// rememberedFor is how many times as long what is remembered of a closure stays:
// it is small, and looked up at each start. The kernel may note once a day only
// that a file was read (relatime).
const rememberedFor = 48

// remembered is how long what is remembered of a closure stays.
func remembered(unused time.Duration) time.Duration {
	return min(unused, math.MaxInt64/rememberedFor) * rememberedFor
}

// Sweep removes what no container needs: records whose process is gone, with
// their GC roots; GC roots of an earlier boot; and what was unused for some time.
// Of a container that is being prepared or runs, it removes nothing, and it waits
// for none: what another process is busy with is left for the next sweep. What it
// cannot judge it keeps, and says so in the error.
func Sweep(ctx context.Context, configPath string, unused time.Duration, dryRun bool) (Swept, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return Swept{}, fmt.Errorf("reading the configuration: %w", err)
	}
	dir, err := OpenRuntimeDir(c)
	if err != nil {
		return Swept{}, fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer dir.Close()
	s := sweeper{dir: dir, store: c.Store(), unused: unused, dryRun: dryRun}
	s.swept = nothingSwept()
	err = s.sweep(ctx)
	return s.swept, err
}

// sweepSome is Sweep in bounded time, for a container's start or end: it looks at
// some of what there is, others the next time. What goes wrong is in the log, and
// keeps no container from starting. Before a start it looks at records alone; their
// GC roots go with them.
func (d *RuntimeDir) sweepSome(ctx context.Context, starting bool, store closure.Store, log *slog.Logger) {
	s := sweeper{dir: d, store: store, unused: UnusedFor, most: some}
	var err error
	if starting {
		s.most = few
		err = s.records(ctx)
	} else {
		err = s.sweep(ctx)
	}
	s.swept.log(log, "swept")
	if err != nil {
		logError(log, &failure{"", "sweeping", err})
	}
}

// log says what was removed, if anything was.
func (s Swept) log(log *slog.Logger, message string) {
	if len(s.Records)+len(s.GCRoots)+len(s.Views)+len(s.Registrations)+len(s.Closures)+len(s.Cache) > 0 {
		log.Info(message, "records", s.Records, "gcRoots", s.GCRoots, "views", s.Views,
			"registrations", s.Registrations, "closures", s.Closures, "cache", s.Cache)
	}
}

// sweeper removes what no container needs, while others start and end.
//
// What is kept per container (its record, its GC roots, its use marks) is removed
// with the lock of the container's ID, taken without waiting, after a second look.
//
// What containers share is protected by the order of steps, as in Dekker's
// algorithm. A start writes its record, then its use mark, and only then looks for
// the view. A sweep renames a view that nobody marks, so that nobody finds it any
// more, and only then looks at the marks once more; it removes the view if there is
// still none. Each writes before it reads, and the kernel orders what is done in one
// directory. So at least one sees the other: either the start does not find the
// view, and makes one, or the sweep sees the mark, and gives the view its name back,
// or leaves it under its other name until nobody marks it. A start that loses the
// view between looking at it and mounting it looks for it again.
//
// A registration is unlinked if nobody marks it. It needs no such care: a start that
// has it open keeps it, and one that does not find it has it made.
type sweeper struct {
	dir       *RuntimeDir
	store     closure.Store
	unused    time.Duration
	dryRun    bool
	most      int // entries of a directory that are looked at; 0: all
	swept     Swept
	ended     []string // views and registrations whose use ends with a record
	moved     int      // views that were taken out of the way
	preparing map[string]bool
}

// sweep goes on after an error: what is in the way of one thing is not in the
// way of the next.
func (s *sweeper) sweep(ctx context.Context) error {
	var errs []error
	parts := []func(context.Context) error{s.records, s.gcRoots, s.views, s.registrations, s.closures, s.cache}
	for _, part := range parts {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, part(ctx))
	}
	return errors.Join(errs...)
}

// part returns all of a list, or as many as are to be looked at, from another
// place each time.
func (s *sweeper) part(names []string) []string {
	if s.most == 0 || len(names) <= s.most {
		return names
	}
	start := rand.IntN(len(names))
	return slices.Concat(names[start:], names[:start])[:s.most]
}

func names(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (s *sweeper) records(ctx context.Context) error {
	all, err := names(s.dir.Containers)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range s.part(all) {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		id, ok := strings.CutSuffix(name, ".json")
		if !ok || strings.HasPrefix(name, ".") {
			errs = append(errs, s.temporaryRecord(name))
			continue
		}
		if _, gone, err := s.gone(id); err != nil || !gone {
			errs = append(errs, err)
			continue
		}
		r, removed, err := s.record(id)
		if errs = append(errs, err); removed {
			s.swept.Records = append(s.swept.Records, id)
			s.ended = append(s.ended, r.View, r.Database)
		}
	}
	return errors.Join(errs...)
}

// gone tells whether there is a record of a container that is gone. An error says
// that nobody can tell, and what to do.
func (s *sweeper) gone(id string) (r Record, gone bool, _ error) {
	r, ok, err := s.dir.readRecord(id)
	if err == nil && ok {
		var live bool
		live, err = r.live()
		gone = err == nil && !live
	}
	if err != nil {
		err = keptRecord(err, s.dir.recordFile(id))
	}
	return r, gone, err
}

// record removes a record, and what is kept with it, if the container is still gone
// when nobody else can change that.
func (s *sweeper) record(id string) (_ Record, removed bool, _ error) {
	lock, err := s.lock(id)
	if errors.Is(err, errLocked) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	defer lock.release()
	r, gone, err := s.gone(id)
	if err != nil || !gone {
		return r, false, err
	}
	if !s.dryRun {
		err = s.dir.forget(s.store, r)
	}
	return r, err == nil, err
}

// lock takes the lock of an ID, without waiting. A dry run needs none, and makes no
// file for it.
func (s *sweeper) lock(id string) (idLock, error) {
	if s.dryRun {
		return noLock, nil
	}
	return s.dir.tryLockID(id)
}

// temporaryRecord removes a record that writeRecord did not finish.
func (s *sweeper) temporaryRecord(name string) error {
	id := strings.TrimPrefix(strings.TrimSuffix(name, ".json"), ".")
	if name != temporaryRecord(id) {
		return s.temporary(s.dir.Containers, name)
	}
	lock, err := s.lock(id)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.release()
	return s.remove(s.dir.Containers, name)
}

// temporary removes a file that closure.WriteFile did not finish, or that another
// process did not finish that has a lock on it meanwhile.
func (s *sweeper) temporary(dir *os.Root, name string) error {
	if !strings.HasPrefix(name, ".") || !old(dir, name, s.unused) {
		return nil
	}
	_, err := s.file(dir, name)
	return err
}

// file removes a file, unless another process is writing it.
func (s *sweeper) file(dir *os.Root, name string) (removed bool, _ error) {
	if strings.HasPrefix(name, ".") {
		release, ok := closure.LockAbandoned(dir, name)
		if !ok {
			return false, nil
		}
		defer release()
	}
	err := s.remove(dir, name)
	return err == nil, err
}

func (s *sweeper) remove(dir *os.Root, name string) error {
	if s.dryRun {
		return nil
	}
	if err := dir.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// gcRoots removes the GC roots of containers of an earlier boot, whose records
// went with it. What was made since may be another runtime directory's, or its
// record was removed by hand.
func (s *sweeper) gcRoots(ctx context.Context) error {
	roots := s.dir.gcRoots(s.store)
	dir, err := os.OpenRoot(roots.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	all, err := names(dir)
	if err != nil {
		return err
	}
	ofNobody := func(id string) (bool, error) {
		known, err := s.known(id)
		return err == nil && !known && (roots.Indirect || roots.OfEarlierBoot(id)), err
	}
	var errs []error
	for _, id := range s.part(all) {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if slices.Contains(s.swept.Records, id) {
			continue
		}
		removed, err := s.unknown(id, ofNobody, dir, id)
		if errs = append(errs, err); removed {
			s.swept.GCRoots = append(s.swept.GCRoots, id)
		}
	}
	return errors.Join(errs...)
}

// unknown removes name in a directory, which is an ID's, if that is of nobody, and
// is when nobody else can change that.
func (s *sweeper) unknown(
	id string, ofNobody func(id string) (bool, error), dir *os.Root, name string,
) (removed bool, _ error) {
	if yes, err := ofNobody(id); err != nil || !yes {
		return false, err
	}
	lock, err := s.lock(id)
	if errors.Is(err, errLocked) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.release()
	if yes, err := ofNobody(id); err != nil || !yes {
		return false, err
	}
	err = s.remove(dir, name)
	return err == nil, err
}

// known tells whether a container has a record. In a dry run, what would be removed
// is none. An error says that nobody can tell.
func (s *sweeper) known(id string) (bool, error) {
	_, err := s.dir.Containers.Lstat(id + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	swept := s.dryRun && slices.Contains(s.swept.Records, id)
	return err == nil && !swept, err
}

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
		name, id, ok := isUse(file)
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

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
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
		if s.preparing, err = s.dir.preparing(s.store); err != nil {
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
func (d *RuntimeDir) preparing(store closure.Store) (map[string]bool, error) {
	all, err := names(d.Containers)
	if err != nil {
		return nil, err
	}
	memo := closure.Memo{Dir: d.Closures, Store: store}
	needed := map[string]bool{}
	for _, name := range all {
		id, ok := strings.CutSuffix(name, ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		// What cannot be read prepares nothing: no start has such a record.
		r, ok, err := d.readRecord(id)
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
