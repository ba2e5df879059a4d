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

	"github.com/nix-closure/nix-closure/closure"
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

// Sweep removes what no container needs: records whose process is gone, with
// their GC roots; GC roots of an earlier boot; and what was unused for some time.
// Of a container that is being prepared or runs, it removes nothing. Where others
// prepare containers, it waits for them.
func Sweep(ctx context.Context, configPath string, unused time.Duration, dryRun bool) (Swept, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return Swept{}, fmt.Errorf("reading the configuration: %w", err)
	}
	dir, err := OpenRuntimeDir(c)
	if err != nil {
		return Swept{}, fmt.Errorf("opening the runtime directory: %w", err)
	}
	lock, err := dir.lockAlone(ctx)
	if err != nil {
		return Swept{}, err
	}
	s := sweeper{dir: dir, store: c.Store(), unused: unused, dryRun: dryRun}
	// Not nil: in JSON, what is empty is a list too.
	s.swept = Swept{[]string{}, []string{}, []string{}, []string{}, []string{}}
	err = errors.Join(s.sweep(), lock.Close(), s.removeViews())
	return s.swept, err
}

// sweepSome is Sweep in bounded time, for a container's start or end: it looks at
// some of what there is, others the next time. lock is held alone, and given back.
// What goes wrong is in the log, and keeps no container from starting. Before a
// start it looks at records alone; their GC roots go with them.
func (d *RuntimeDir) sweepSome(lock *os.File, starting bool, store closure.Store, log *slog.Logger) {
	s := sweeper{dir: d, store: store, unused: UnusedFor, most: some}
	sweep := s.sweep
	if starting {
		s.most, sweep = few, s.records
	}
	err := errors.Join(sweep(), lock.Close(), s.removeViews())
	if swept := s.swept; len(swept.Records)+len(swept.GCRoots)+len(swept.Views)+len(swept.Registrations)+len(swept.Closures) > 0 {
		log.Info("swept", "records", swept.Records, "gcRoots", swept.GCRoots, "views", swept.Views,
			"registrations", swept.Registrations, "closures", swept.Closures)
	}
	if err != nil {
		logError(log, &failure{"", "sweeping", err})
	}
}

type sweeper struct {
	dir    *RuntimeDir
	store  closure.Store
	unused time.Duration
	dryRun bool
	most   int // entries of a directory that are looked at; 0: all
	swept  Swept
	ended  []string // views and registrations whose use ends with a record
	moved  []string // views that are out of the way, to be removed
}

// sweep goes on after an error: what is in the way of one thing is not in the
// way of the next.
func (s *sweeper) sweep() error {
	return errors.Join(s.records(), s.gcRoots(), s.views(), s.registrations(), s.closures())
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

func (s *sweeper) records() error {
	all, err := names(s.dir.Containers)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range s.part(all) {
		id, ok := strings.CutSuffix(name, ".json")
		if !ok {
			errs = append(errs, s.temporary(s.dir.Containers, name))
			continue
		}
		r, ok, err := s.dir.readRecord(id)
		if err != nil || !ok || r.live() {
			errs = append(errs, err)
			continue
		}
		r.ID = id // of a damaged record, too
		if !s.dryRun {
			err = s.dir.forget(s.store, r)
		}
		if errs = append(errs, err); err == nil {
			s.swept.Records = append(s.swept.Records, id)
			s.ended = append(s.ended, r.View, r.Database)
		}
	}
	return errors.Join(errs...)
}

// temporary removes a file that closure.WriteFile did not finish. It takes much
// less than unusedFor.
func (s *sweeper) temporary(dir *os.Root, name string) error {
	if strings.HasPrefix(name, ".") && old(dir, name, s.unused) {
		return s.remove(dir, name)
	}
	return nil
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
func (s *sweeper) gcRoots() error {
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
	var errs []error
	for _, id := range s.part(all) {
		if s.known(id) || slices.Contains(s.swept.Records, id) || !roots.Indirect && !roots.OfEarlierBoot(id) {
			continue
		}
		errs = append(errs, s.removeFile(dir, id, &s.swept.GCRoots))
	}
	return errors.Join(errs...)
}

// known tells whether a container has a record.
func (s *sweeper) known(id string) bool {
	_, err := s.dir.Containers.Lstat(id + ".json")
	return err == nil && !slices.Contains(s.swept.Records, id)
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
		switch {
		case !ok:
			others = append(others, name)
		case s.known(id):
			used[name] = true
		default:
			errs = append(errs, s.remove(dir, file))
		}
	}
	return used, others, errors.Join(errs...)
}

// unusedLong tells whether a view or a registration that nobody uses was not used
// for some time. Of one whose use ends now it says so in a dry run too.
func (s *sweeper) unusedLong(dir *os.Root, name string) bool {
	return (s.unused <= 0 || !slices.Contains(s.ended, name)) && old(dir, name, s.unused)
}

// old tells whether a file was neither made nor used for some time.
func old(dir *os.Root, name string, unused time.Duration) bool {
	st, err := dir.Lstat(name)
	if err != nil {
		return false
	}
	last := st.ModTime()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && last.Before(time.Unix(sys.Atim.Unix())) {
		last = time.Unix(sys.Atim.Unix())
	}
	return time.Since(last) >= unused
}

// views takes views out of the way. To remove them takes longer, and is for when
// other containers may be prepared again: removeViews.
func (s *sweeper) views() error {
	dir := s.dir.Views
	used, others, err := s.users(dir)
	errs := []error{err}
	for _, name := range s.part(others) {
		// Nobody makes a layer now: what is half made was left by one who was
		// killed. One that is stale is used by whoever uses the layer of its name.
		layer, _, _ := strings.Cut(name, ".")
		abandoned := strings.HasSuffix(name, ".new")
		if !abandoned && (used[layer] || !s.unusedLong(dir, name)) {
			continue
		}
		if s.most > 0 && len(s.moved) > 0 {
			break // the next one the next time
		}
		moved := name
		var err error
		if !s.dryRun && (abandoned || name == layer) {
			// What is half removed must not be found under its name, and what is
			// half made not be finished by another.
			moved = layer + ".stale." + crand.Text()
			err = dir.Rename(name, moved)
		}
		if errs = append(errs, err); err == nil {
			s.swept.Views = append(s.swept.Views, name)
			s.moved = append(s.moved, moved)
		}
	}
	return errors.Join(errs...)
}

func (s *sweeper) removeViews() error {
	var errs []error
	for _, name := range s.moved {
		errs = append(errs, s.remove(s.dir.Views, name))
	}
	return errors.Join(errs...)
}

func (s *sweeper) registrations() error {
	dir := s.dir.Registrations
	used, others, err := s.users(dir)
	errs := []error{err}
	for _, name := range s.part(others) {
		if !used[name] && s.unusedLong(dir, name) {
			errs = append(errs, s.removeFile(dir, name, &s.swept.Registrations))
		}
	}
	return errors.Join(errs...)
}

// closures removes what is remembered of closures. Nothing that runs needs it:
// it makes the next start faster.
func (s *sweeper) closures() error {
	dir := s.dir.Closures
	all, err := names(dir)
	if err != nil {
		return err
	}
	errs := []error{err}
	for _, name := range s.part(all) {
		if old(dir, name, min(s.unused, math.MaxInt64/rememberedFor)*rememberedFor) {
			errs = append(errs, s.removeFile(dir, name, &s.swept.Closures))
		}
	}
	return errors.Join(errs...)
}

func (s *sweeper) removeFile(dir *os.Root, name string, to *[]string) error {
	if err := s.remove(dir, name); err != nil {
		return err
	}
	*to = append(*to, name)
	return nil
}
