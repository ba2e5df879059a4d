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

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// Swept is what a sweep removed, or would remove.
type Swept struct {
	// Records are the IDs of containers whose process is gone. Their GC roots are removed
	// with the record.
	Records []string `json:"records"`
	// GCRoots are IDs with GC roots of an earlier boot and without a record. A caller may add
	// others.
	GCRoots []string `json:"gcRoots"`
	// Views, Registrations and Closures are names in these directories that no container
	// uses.
	Views         []string `json:"views"`
	Registrations []string `json:"registrations"`
	Closures      []string `json:"closures"`
	// Cache are names in the directory in which Nix caches what substituters have.
	Cache []string `json:"cache"`
}

// Empty reports whether nothing was removed.
func (s Swept) Empty() bool {
	return len(s.Records)+len(s.GCRoots)+len(s.Views)+len(s.Registrations)+len(s.Closures)+len(s.Cache) == 0
}

// nothingSwept returns a Swept without nil lists, so that JSON has empty lists and no
// null.
func nothingSwept() Swept {
	return Swept{
		Records: []string{}, GCRoots: []string{}, Views: []string{}, Registrations: []string{}, Closures: []string{},
		Cache: []string{},
	}
}

// Limits of the sweep that runs during a container's start or end.
const (
	// some: entries of a directory checked after an end.
	// few: records checked before a start, and after an end if a sweep found nothing lately.
	// A start leaves at most one stale record, so this bounds the backlog. An end that finds
	// a stale one checks some.
	some, few = 64, 8
	// UnusedFor is how long an unused view or registration stays.
	UnusedFor = time.Hour
)

// rememberedFor is the factor by which a cache of a closure stays longer than UnusedFor. A
// cache is small, and each start looks it up. With relatime, the kernel may record only
// once a day that a file was read.
const rememberedFor = 48

// remembered returns how long an unused cache stays.
func remembered(unused time.Duration) time.Duration {
	return min(unused, math.MaxInt64/rememberedFor) * rememberedFor
}

// Sweep removes what no container needs: records whose process is gone, together with
// their GC roots; GC roots of an earlier boot; and everything that was unused for the
// time unused. It removes nothing of a container that is being prepared or running. It
// waits for no other process: what another process has locked is left for the next sweep.
// It keeps what it cannot judge, and reports that in the error. After an error too, it
// returns what it removed.
func (d *Dir) Sweep(ctx context.Context, unused time.Duration, dryRun bool) (Swept, error) {
	s := sweeper{dir: d, unused: unused, dryRun: dryRun, swept: nothingSwept()}
	err := s.sweep(ctx)
	return s.swept, err
}

// SweepBeforeStart is Sweep for a container's start, which must be fast. It checks a few
// records and their GC roots, and others at the next start.
func (d *Dir) SweepBeforeStart(ctx context.Context) (Swept, error) {
	s := sweeper{dir: d, unused: UnusedFor, most: few}
	err := s.records(ctx)
	return s.swept, err
}

// SweepAfterEnd is Sweep for a container's end, in bounded time. It checks some entries
// of each directory, and others at the next end. If a sweep found nothing to do, or did all
// of it, the next sweeps check the records only, for some minutes: all the rest becomes old
// by time, and what it takes until then is space.
func (d *Dir) SweepAfterEnd(ctx context.Context) (Swept, error) {
	s := sweeper{dir: d, unused: UnusedFor, most: some}
	if d.sweptLately() {
		s.most = few
		err := s.records(ctx)
		if err == nil && len(s.swept.Records) > 0 {
			s.most = some - few
			err = s.records(ctx)
		}
		return s.swept, err
	}
	err := s.sweep(ctx)
	if err == nil && (!s.more || s.swept.Empty()) {
		err = d.noteSwept()
	}
	return s.swept, err
}

// sweepEvery is how long a sweep that found nothing to do counts. It is short beside
// UnusedFor.
const sweepEvery = 10 * time.Minute

// sweptFile was last modified when a sweep at a container's end found nothing to do, or did
// all of it.
func (d *Dir) sweptFile() string { return d.path + "/swept" }

func (d *Dir) sweptLately() bool {
	var st unix.Stat_t
	if err := unix.Lstat(d.sweptFile(), &st); err != nil {
		return false
	}
	ago := time.Since(time.Unix(st.Mtim.Unix()))
	return 0 <= ago && ago < sweepEvery
}

func (d *Dir) noteSwept() error {
	path := d.sweptFile()
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, now, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		var fd int
		if fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			err = unix.Close(fd)
		}
	}
	if err != nil {
		return &os.PathError{Op: "touch", Path: path, Err: err}
	}
	return nil
}

// sweeper removes what no container needs, while containers start and end.
//
// State of one container (its record, its GC roots, its use marks) is removed under the
// lock of the container's ID. The lock is taken without waiting, and the state is checked
// again under it.
//
// Shared state is protected by the order of steps, as in Dekker's algorithm. A start
// writes its record, then its use mark, and only then looks for the view. A sweep renames
// an unmarked view, so that no start finds it any more, and only then checks the marks
// again. If there is still no mark, it removes the view. Each side writes before it
// reads, and the kernel orders the operations in one directory, so at least one side sees
// the other. Either the start does not find the view, and makes one. Or the sweep sees
// the mark, and gives the view its name back, or leaves it under its new name until
// nobody marks it. A start that loses the view between finding and mounting it looks for
// it again.
//
// A registration without a mark is unlinked. It needs no such order: a start that has it
// open keeps it, and a start that does not find it has it made again.
type sweeper struct {
	dir       *Dir
	unused    time.Duration
	dryRun    bool
	most      int  // entries to check per directory; 0: all
	more      bool // something was left for the next sweep
	swept     Swept
	ended     []string // views and registrations of removed records
	moved     int      // views that were renamed
	preparing map[string]bool
}

// sweep continues after an error, because an error in one part does not concern the next
// part.
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

// part returns the whole list, or, if most is set, at most that many entries from a
// random start.
func (s *sweeper) part(names []string) []string {
	if s.most == 0 || len(names) <= s.most {
		return names
	}
	s.more = true
	start := rand.IntN(len(names))
	return slices.Concat(names[start:], names[:start])[:s.most]
}

func (s *sweeper) records(ctx context.Context) error {
	all, err := s.dir.containers.Names()
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

// gone reports whether there is a record of a container that is gone. The error says that
// it cannot tell, and what to do.
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

// record removes a record and everything that belongs to it, if the container is still
// gone under the lock of its ID.
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

// lock takes the lock of an ID without waiting. A dry run needs no lock, and makes no
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

// temporary removes a file that atomicfile.Write or another process began and did not
// finish. A process that still writes the file holds a lock on it, and then the file
// stays.
func (s *sweeper) temporary(dir *owndir.Dir, name string) error {
	if !strings.HasPrefix(name, ".") || !old(dir, name, s.unused) {
		return nil
	}
	_, err := s.file(dir, name)
	return err
}

// file removes a file, unless another process is writing it.
func (s *sweeper) file(dir *owndir.Dir, name string) (removed bool, _ error) {
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

func (s *sweeper) remove(dir *owndir.Dir, name string) error {
	if s.dryRun {
		return nil
	}
	if err := dir.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// gcRoots removes the GC roots of an earlier boot, because the records were lost with
// that boot. Newer GC roots stay: they may belong to another runtime directory, or
// somebody removed their record by hand.
func (s *sweeper) gcRoots(ctx context.Context) error {
	roots := s.dir.GCRoots()
	dir := owndir.At(roots.Dir)
	defer dir.Close()
	all, err := dir.Names()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
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

// unknown removes name, which belongs to an ID, from a directory, if ofNobody says that
// nobody owns it, before and after taking the lock of the ID.
func (s *sweeper) unknown(
	id string, ofNobody func(id string) (bool, error), dir *owndir.Dir, name string,
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

// known reports whether a container has a record. In a dry run, a record that would be
// removed does not count. An error means that it cannot tell.
func (s *sweeper) known(id string) (bool, error) {
	_, err := s.dir.containers.Lstat(id + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	swept := s.dryRun && slices.Contains(s.swept.Records, id)
	return err == nil && !swept, err
}
