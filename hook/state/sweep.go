// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
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

// Empty tells whether nothing was removed.
func (s Swept) Empty() bool {
	return len(s.Records)+len(s.GCRoots)+len(s.Views)+len(s.Registrations)+len(s.Closures)+len(s.Cache) == 0
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
	// some: entries of a directory checked after an end.
	// few: records checked before a start. A start leaves at most one stale record, so
	// this bounds the backlog.
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
// cannot judge it keeps, and says so in the error. Also after an error, it says what
// it removed.
func (d *Dir) Sweep(ctx context.Context, unused time.Duration, dryRun bool) (Swept, error) {
	s := sweeper{dir: d, unused: unused, dryRun: dryRun, swept: nothingSwept()}
	err := s.sweep(ctx)
	return s.swept, err
}

// SweepBeforeStart is Sweep for a container's start, which somebody waits for: it looks
// at a few records alone, others the next time. Their GC roots go with them.
func (d *Dir) SweepBeforeStart(ctx context.Context) (Swept, error) {
	s := sweeper{dir: d, unused: UnusedFor, most: few}
	err := s.records(ctx)
	return s.swept, err
}

// SweepAfterEnd is Sweep for a container's end, in bounded time: it looks at some of
// what there is, others the next time.
func (d *Dir) SweepAfterEnd(ctx context.Context) (Swept, error) {
	s := sweeper{dir: d, unused: UnusedFor, most: some}
	err := s.sweep(ctx)
	return s.swept, err
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
	dir       *Dir
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

func (s *sweeper) records(ctx context.Context) error {
	all, err := names(s.dir.containers)
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
			s.ended = append(s.ended, r.View, r.Registration)
		}
	}
	return errors.Join(errs...)
}

// gone tells whether there is a record of a container that is gone. An error says
// that nobody can tell, and what to do.
func (s *sweeper) gone(id string) (r Record, gone bool, _ error) {
	r, ok, err := s.dir.Record(id)
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
		err = s.dir.forget(r)
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
		return s.temporary(s.dir.containers, name)
	}
	lock, err := s.lock(id)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.release()
	return s.remove(s.dir.containers, name)
}

// temporary removes a file that atomicfile.Write did not finish, or that another
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
		release, ok := atomicfile.LockAbandoned(dir, name)
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
	roots := s.dir.GCRoots()
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
	_, err := s.dir.containers.Lstat(id + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	swept := s.dryRun && slices.Contains(s.swept.Records, id)
	return err == nil && !swept, err
}
