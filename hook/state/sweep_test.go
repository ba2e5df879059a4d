// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/proc"
)

// runs and ended set the process of a record: a running one, and one that has ended.
func runs(t *testing.T, r Record) Record {
	t.Helper()
	start, err := proc.StartTime(os.Getpid())
	must(t, err)
	r.Pid, r.PidStart = os.Getpid(), start
	return r
}

func ended(_ *testing.T, r Record) Record {
	r.Pid, r.PidStart = 1<<30, 1
	return r
}

// make makes a container's state on the host: a record, GC roots, and the view and
// registration that it uses.
func (h host) make(t *testing.T, r Record) {
	t.Helper()
	d := newDir(t, h)
	must(t, d.writeRecord(r), h.store.GCRoots().Add(h.store, r.ID, []closure.BaseName{named("hello")}))
	if r.View != "" {
		fill(t, h.dir+"/run/views/"+r.View)
		must(t, d.addRef(d.Views, r.View, r.ID))
	}
	if r.Registration != "" {
		fill(t, h.dir+"/run/registrations/"+r.Registration)
		must(t, d.addRef(d.Registrations, r.Registration, r.ID))
	}
}

// fill makes the content of a path in the runtime directory: a view, or a file.
func fill(t *testing.T, path string) {
	t.Helper()
	if filepath.Base(filepath.Dir(path)) == "views" {
		must(t, os.MkdirAll(path+"/store/x", 0o700))
	} else {
		must(t, os.WriteFile(path, []byte("x"), 0o600))
	}
}

// age moves a file's times into the past.
func age(t *testing.T, path string, by time.Duration) {
	t.Helper()
	must(t, os.Chtimes(path, time.Now().Add(-by), time.Now().Add(-by)))
}

func (h host) sweep(t *testing.T, unused time.Duration, dryRun bool) Swept {
	t.Helper()
	swept, err := newDir(t, h).Sweep(t.Context(), unused, dryRun)
	must(t, err)
	return swept
}

// files returns all files below the runtime directory and the GC roots, with their times.
func (h host) files(t *testing.T) (all []string) {
	t.Helper()
	for _, dir := range []string{h.dir + "/run", h.store.StateDir + "/gcroots"} {
		must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			must(t, err)
			st, err := e.Info()
			must(t, err)
			all = append(all, fmt.Sprint(strings.TrimPrefix(path, h.dir), st.ModTime().UnixNano()))
			return nil
		}))
	}
	return all
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestSweepRecords(t *testing.T) {
	h := newHost(t)
	bundle := t.TempDir()
	wrongStart := func(t *testing.T, r Record) Record {
		r = runs(t, r)
		r.PidStart--
		return r
	}
	sandbox := func(bundle string) func(t *testing.T, r Record) Record {
		return func(_ *testing.T, r Record) Record {
			r.Pid, r.Bundle = -1, bundle
			return r
		}
	}
	var gone []string
	for _, c := range []struct {
		id      string
		process func(t *testing.T, r Record) Record
		text    string // replaces the text of the record
		stays   bool
	}{
		{id: "runs", process: runs, stays: true},
		{id: "runs.json", process: runs, stays: true},
		{id: "ended", process: ended},
		{id: "another-process", process: wrongStart},
		{id: "no-process", process: func(_ *testing.T, r Record) Record { return r }},
		{id: "gvisor", process: sandbox(bundle), stays: true},
		{id: "gvisor-gone", process: sandbox(bundle + "/gone")},
		{id: "empty", process: ended, text: " ", stays: true},
		{id: "cut-off", process: ended, text: `{"id":"cut-off","pid":`, stays: true},
		{id: "no-record", process: ended, text: `[]`, stays: true},
		{id: "another-id", process: runs, text: `{"id":"runs","pid":0}`},
	} {
		h.make(t, c.process(t, Record{ID: c.id, View: "view-" + c.id, Registration: "db-" + c.id}))
		if c.text != "" {
			must(t, os.WriteFile(h.dir+"/run/containers/"+c.id+".json", []byte(c.text), 0o600))
		}
		if !c.stays {
			gone = append(gone, c.id)
		}
	}
	swept, err := newDir(t, h).Sweep(t.Context(), 0, false)
	for _, id := range []string{"empty", "cut-off", "no-record"} {
		if want := h.dir + "/run/containers/" + id + ".json"; err == nil ||
			!strings.Contains(err.Error(), "record kept: damaged record "+want) {
			t.Errorf("%s: %v", id, err)
		}
	}
	slices.Sort(gone)
	if slices.Sort(swept.Records); !slices.Equal(swept.Records, gone) {
		t.Errorf("swept %q, want %q", swept.Records, gone)
	}
	for id, stays := range map[string]bool{
		"runs": true, "runs.json": true, "ended": false, "another-process": false, "no-process": false, "gvisor": true,
		"gvisor-gone": false, "empty": true, "cut-off": true, "no-record": true, "another-id": false,
	} {
		for _, path := range []string{
			h.dir + "/run/containers/" + id + ".json", h.store.GCRoots().Of(id),
			h.dir + "/run/views/view-" + id, h.dir + "/run/views/view-" + id + "@" + id,
			h.dir + "/run/registrations/db-" + id, h.dir + "/run/registrations/db-" + id + "@" + id,
		} {
			if exists(t, path) != stays {
				t.Errorf("%s: there: %v", path, !stays)
			}
		}
	}
}

// A killed writer's files are removed when no writer can still be using them.
func TestSweepTemporary(t *testing.T) {
	h := newHost(t)
	newDir(t, h)
	for _, c := range []struct {
		name  string
		age   time.Duration
		stays bool
	}{
		{"containers/.web.json.ABC", 2 * time.Hour, false},
		{"containers/.db.json.ABC", time.Minute, true},
		{"closures/.roots-1.ABC", rememberedFor*time.Hour + time.Hour, false},
		{"closures/.roots-2.ABC", 2 * time.Hour, true},
		{"registrations/.a.ABC", 2 * time.Hour, false},
		{"registrations/.a.ABC-journal", 2 * time.Hour, false},
		{"registrations/.b.ABC", time.Minute, true},
		{"views/a.new", 0, false},          // nobody has a lock on it
		{"containers/.web.json", 0, false}, // nor on the ID
		{"views/a.stale.ABC", 2 * time.Hour, false},
		{"views/b.stale.ABC", time.Minute, true},
	} {
		path := h.dir + "/run/" + c.name
		fill(t, path)
		age(t, path, c.age)
		h.sweep(t, UnusedFor, false)
		if exists(t, path) != c.stays {
			t.Errorf("%s: there: %v", c.name, !c.stays)
		}
		must(t, os.RemoveAll(path))
	}
}

func TestSweepGCRoots(t *testing.T) {
	h := newHost(t)
	of := h.store.GCRoots().Of
	before := func(path string) {
		t.Helper()
		must(t, os.Remove(path+"/.boot"), os.Symlink("another", path+"/.boot"))
	}

	h.make(t, runs(t, Record{ID: "runs"}))
	for _, id := range []string{"earlier", "now", "ended", "file"} {
		must(t, h.store.GCRoots().Add(h.store, id, []closure.BaseName{named("hello")}))
	}
	h.make(t, ended(t, Record{ID: "ended"}))
	must(t, os.RemoveAll(of("file")), os.WriteFile(of("file"), nil, 0o600))
	for _, id := range []string{"runs", "earlier", "ended"} {
		before(of(id))
	}
	want := nothingSwept()
	want.Records, want.GCRoots = []string{"ended"}, []string{"earlier"}
	for _, dryRun := range []bool{true, false} {
		swept := h.sweep(t, 0, dryRun)
		if slices.Sort(swept.GCRoots); !cmp.Equal(swept, want) {
			t.Errorf("dry run %v: %+v", dryRun, swept)
		}
	}
	for id, stays := range map[string]bool{"runs": true, "now": true, "earlier": false, "ended": false, "file": true} {
		if exists(t, of(id)) != stays {
			t.Errorf("%s: there: %v", id, !stays)
		}
	}
	// The runtime directory and the state directory do not exist yet.
	must(t, os.RemoveAll(h.dir+"/run"), os.RemoveAll(h.store.StateDir+"/gcroots"))
	if swept := h.sweep(t, 0, false); len(swept.GCRoots) > 0 {
		t.Errorf("%q", swept.GCRoots)
	}
}

func TestSweepUnused(t *testing.T) {
	for _, c := range []struct {
		name   string
		file   string // in the runtime directory
		age    time.Duration
		user   string // `runs`, `ended`, or `unknown`: has a use mark but no record
		unused time.Duration
		stays  bool
	}{
		{name: "view young", file: "views/v", age: 59 * time.Minute, unused: UnusedFor, stays: true},
		{name: "view old", file: "views/v", age: 61 * time.Minute, unused: UnusedFor},
		{name: "view now", file: "views/v", unused: 0},
		{name: "view used", file: "views/v", age: 9 * time.Hour, user: "runs", unused: UnusedFor, stays: true},
		{name: "view used now", file: "views/v", age: 9 * time.Hour, user: "runs", unused: 0, stays: true},
		{name: "view no longer used", file: "views/v", age: 9 * time.Hour, user: "ended", unused: UnusedFor,
			stays: true},
		{name: "view no longer used now", file: "views/v", age: 9 * time.Hour, user: "ended", unused: 0},
		{name: "view used by nobody that is known", file: "views/v", age: 9 * time.Hour, user: "unknown",
			unused: UnusedFor},
		{name: "stale view its name used", file: "views/v.stale.X", age: 9 * time.Hour, user: "runs", unused: 0,
			stays: true},
		{name: "stale view old", file: "views/v.stale.X", age: 9 * time.Hour, unused: UnusedFor},
		{name: "half a view its name used", file: "views/v.new", user: "runs", unused: UnusedFor},
		{name: "registration young", file: "registrations/v", age: 59 * time.Minute, unused: UnusedFor, stays: true},
		{name: "registration old", file: "registrations/v", age: 61 * time.Minute, unused: UnusedFor},
		{name: "registration used now", file: "registrations/v", age: 9 * time.Hour, user: "runs", unused: 0,
			stays: true},
		{name: "registration no longer used", file: "registrations/v", age: 9 * time.Hour, user: "ended",
			unused: UnusedFor, stays: true},
		{name: "registration no longer used now", file: "registrations/v", age: 9 * time.Hour, user: "ended",
			unused: 0},
		{name: "registration used by nobody that is known", file: "registrations/v", age: 9 * time.Hour,
			user: "unknown", unused: UnusedFor},
		{name: "closure young", file: "closures/c", age: 47 * time.Hour, unused: UnusedFor, stays: true},
		{name: "closure old", file: "closures/c", age: 49 * time.Hour, unused: UnusedFor},
		{name: "closure now", file: "closures/c", unused: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			newDir(t, h)
			path := h.dir + "/run/" + c.file
			switch r := (Record{ID: "web", View: "v", Registration: "v"}); c.user {
			case "runs":
				h.make(t, runs(t, r))
			case "ended":
				h.make(t, ended(t, r))
			case "unknown":
				must(t, os.WriteFile(path+"@web", nil, 0o600))
			}
			fill(t, path)
			last := time.Now().Add(-c.age)
			files := func() []string {
				must(t, os.Chtimes(path, last, last))
				all := h.files(t)
				must(t, os.Chtimes(path, last, last)) // listing a directory reads it
				return all
			}
			before := files()
			planned := h.sweep(t, c.unused, true)
			if diff := cmp.Diff(before, files()); diff != "" {
				t.Errorf("the dry run changed something (-before +after)\n%s", diff)
			}
			if swept := h.sweep(t, c.unused, false); !cmp.Equal(planned, swept) {
				t.Errorf("the dry run said %+v, and %+v was removed", planned, swept)
			}
			if exists(t, path) != c.stays {
				t.Errorf("there: %v", !c.stays)
			}
			for _, kind := range []string{"views", "registrations"} {
				if used := exists(t, h.dir+"/run/"+kind+"/v@web"); used != (c.user == "runs") {
					t.Errorf("%s: is said to be used: %v", kind, used)
				}
			}
		})
	}
}

// Reading counts as use, if the file system records it.
func TestSweepRead(t *testing.T) {
	h := newHost(t)
	newDir(t, h)
	path := h.dir + "/run/closures/c"
	must(t, os.WriteFile(path, nil, 0o600), os.Chtimes(path, time.Now(), time.Now().Add(-100*24*time.Hour)))
	if h.sweep(t, UnusedFor, false); !exists(t, path) {
		t.Error("a closure went that was read a moment ago")
	}
}

func TestSweptJSON(t *testing.T) {
	const want = `{"records":[],"gcRoots":[],"views":[],"registrations":[],"closures":[],"cache":[]}`
	if text, err := json.Marshal(newHost(t).sweep(t, 0, false)); err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

// An entry that cannot be removed does not stop the others.
func TestSweepGoesOn(t *testing.T) {
	h := newHost(t)
	for _, id := range []string{"a", "b", "c"} {
		h.make(t, ended(t, Record{ID: id, View: "view-" + id, Registration: "db-" + id}))
	}
	must(t, os.Remove(h.dir+"/run/containers/b.json"), os.Mkdir(h.dir+"/run/containers/b.json", 0o700))
	long := strings.Repeat("v", 250) // it cannot be renamed
	fill(t, h.dir+"/run/views/"+long)
	views := []string{"view-a", "view-c"}
	for i := range 9 {
		stale := fmt.Sprint("view-a.stale.", i)
		fill(t, h.dir+"/run/views/"+stale)
		views = append(views, stale)
	}
	slices.Sort(views)
	swept, err := newDir(t, h).Sweep(t.Context(), 0, false)
	if err == nil || !strings.Contains(err.Error(), "b.json") || !strings.Contains(err.Error(), long) {
		t.Errorf("error %v", err)
	}
	for _, list := range [][]string{swept.Records, swept.Views, swept.Registrations} {
		slices.Sort(list)
	}
	want := nothingSwept()
	want.Records, want.Views, want.Registrations = []string{"a", "c"}, views, []string{"db-a", "db-c"}
	if diff := cmp.Diff(want, swept); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !exists(t, h.store.GCRoots().Of("b")) {
		t.Error("GC roots went whose record cannot be read")
	}
}

// A sweep waits for no process: what another process has locked stays for the next sweep.
func TestSweepDoesNotWait(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	h.make(t, ended(t, Record{ID: "web", View: "v"}))
	must(t, h.store.GCRoots().Add(h.store, "earlier", nil), d.addRef(d.Views, "w", "nobody"),
		os.Remove(h.store.GCRoots().Of("earlier")+"/.boot"),
		os.Symlink("another", h.store.GCRoots().Of("earlier")+"/.boot"))
	temporary, err := atomicfile.CreateTemporary(d.Closures, ".roots.ABC")
	must(t, err)
	fill(t, h.dir+"/run/registrations/.x.ABC-db")
	held, err := atomicfile.CreateTemporary(d.Registrations, ".x.ABC")
	must(t, err)
	fill(t, h.dir+"/run/containers/.nobody.json")
	fill(t, h.dir+"/run/views/w.new")
	builder, err := os.Open(h.dir + "/run/views/w.new")
	must(t, err, unix.Flock(int(builder.Fd()), unix.LOCK_EX))
	var locks []idLock
	for _, id := range []string{"web", "earlier", "nobody"} {
		lock, err := d.lockID(t.Context(), id)
		must(t, err)
		locks = append(locks, lock)
	}
	before := len(h.files(t))
	began := time.Now()
	swept := h.sweep(t, 0, false)
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s", took)
	}
	if diff := cmp.Diff(nothingSwept(), swept); diff != "" || len(h.files(t)) != before {
		t.Errorf("swept (-want +got)\n%s", diff)
	}
	for _, lock := range locks {
		lock.release()
	}
	temporary.Close()
	held.Close()
	builder.Close()
	h.sweep(t, 0, false)
	for _, dir := range []string{"run/containers", "run/views", "run/registrations", "run/closures",
		"nix/var/nix/gcroots/nix-closure"} {
		if left := list(t, h.dir+"/"+dir); len(left) > 0 {
			t.Errorf("%s: left %q", dir, left)
		}
	}
}

// A start and a sweep run at the same moment. What the start finds stays, and the start
// does not find what the sweep removes.
func TestSweepHandshake(t *testing.T) {
	const rounds = 300
	h := newHost(t)
	d := newDir(t, h)
	found := 0
	for round := range rounds {
		fill(t, h.dir+"/run/views/v")
		r := runs(t, Record{ID: "web"})
		must(t, d.writeRecord(r))
		var all sync.WaitGroup
		var dir *os.File
		begin := make(chan struct{})
		all.Go(func() {
			<-begin
			if err := d.addRef(d.Views, "v", "web"); err != nil {
				t.Error(err)
			}
			if f, err := d.Views.Open("v"); err == nil {
				dir = f
			}
		})
		all.Go(func() {
			s := sweeper{dir: d}
			close(begin)
			if round%3 > 0 {
				time.Sleep(time.Duration(round) * 100 * time.Nanosecond)
			}
			if err := s.views(t.Context()); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if dir != nil {
			found++
			// The view is complete, whatever its name is now.
			if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/store/x", dir.Fd())); err != nil {
				t.Errorf("round %d: removed under a container that found it: %v", round, err)
			}
			dir.Close()
		}
		must(t, d.forget(Record{ID: "web", View: "v"}))
		h.sweep(t, 0, false)
		if left := list(t, h.dir+"/run/views"); len(left) > 0 {
			t.Fatalf("round %d: left %q", round, left)
		}
	}
	t.Logf("%d of %d found it", found, rounds)
}

// A sweep that listed the marks before a container marked a view gives the view its name
// back.
func TestSweepGivesBack(t *testing.T) {
	h := newHost(t)
	h.make(t, runs(t, Record{ID: "web", View: "v"}))
	s := sweeper{dir: newDir(t, h)}
	if removed, err := s.view("v"); removed || err != nil || !exists(t, h.dir+"/run/views/v/store/x") {
		t.Errorf("%v, %v: %q", removed, err, list(t, h.dir+"/run/views"))
	}
	// It does not if there is another view by now.
	fill(t, h.dir+"/run/views/v.stale.X")
	if removed, err := s.view("v.stale.X"); removed || err != nil || !exists(t, h.dir+"/run/views/v.stale.X/store/x") {
		t.Errorf("stale: %v, %v: %q", removed, err, list(t, h.dir+"/run/views"))
	}
}

// The cache of a closure stays while a container that needs it is being prepared.
func TestSweepPreparing(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	r := runs(t, Record{ID: "web", Roots: []closure.BaseName{named("hello")}, Digest: strings.Repeat("0", 64)})
	cache := closure.Cache{Dir: d.Closures, Store: h.store}
	needed := []string{r.Digest, cache.EntryName(closure.Query{Roots: r.Roots})}
	for _, name := range append(needed, "other") {
		fill(t, h.dir+"/run/closures/"+name)
	}
	for _, attached := range []bool{false, true} {
		r.Attached = attached
		must(t, d.writeRecord(r))
		h.sweep(t, 0, false)
		want := needed
		if attached {
			want = nil
		}
		if left := list(t, h.dir+"/run/closures"); !slices.Equal(left, want) {
			t.Errorf("attached %v: left %q", attached, left)
		}
	}
}

// While a sweep at an end has found nothing more to do, the next ones check the records
// only.
func TestSweepLately(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	left := h.dir + "/run/registrations/left"
	pass := func() {
		t.Helper()
		_, err := d.SweepAfterEnd(t.Context())
		must(t, err)
	}
	plant := func() {
		t.Helper()
		fill(t, left)
		age(t, left, 2*UnusedFor)
		h.make(t, ended(t, Record{ID: "ended"}))
	}
	isThere := func() bool { _, err := os.Lstat(left); return err == nil }
	plant()
	pass()
	if isThere() {
		t.Error("the first sweep left something")
	}
	for _, c := range []struct {
		ago   time.Duration // since the last sweep that found nothing more to do
		there bool
	}{{0, true}, {sweepEvery - time.Minute, true}, {sweepEvery + time.Minute, false}, {-time.Hour, false}} {
		plant()
		age(t, d.sweptFile(), c.ago)
		pass()
		if isThere() != c.there {
			t.Errorf("%s after a sweep: left behind: %v", c.ago, isThere())
		}
		if _, ok, err := d.Record("ended"); ok || err != nil {
			t.Errorf("%s after a sweep: the record stays, %v", c.ago, err)
		}
	}
	// What was left for the next sweep is not forgotten.
	plant()
	for i := range 2 * some {
		fill(t, fmt.Sprintf("%s-%d", left, i))
		age(t, fmt.Sprintf("%s-%d", left, i), 2*UnusedFor)
	}
	age(t, d.sweptFile(), sweepEvery+time.Minute)
	for range 10 {
		pass()
	}
	if names := list(t, h.dir+"/run/registrations"); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
}

// A sweep that checked some of many live containers, and found nothing to do, counts too. An
// end that then finds a stale record checks more than the few.
func TestSweepLatelyOfMany(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	for i := range 2 * some {
		h.make(t, runs(t, Record{ID: fmt.Sprint("runs-", i)}))
	}
	swept, err := d.SweepAfterEnd(t.Context())
	must(t, err)
	if !swept.Empty() || !d.sweptLately() {
		t.Errorf("swept %+v; it counts: %v", swept, d.sweptLately())
	}
	for i := range 2 * some {
		must(t, os.Remove(d.recordFile(fmt.Sprint("runs-", i))))
		h.make(t, ended(t, Record{ID: fmt.Sprint("ended-", i)}))
	}
	swept, err = d.SweepAfterEnd(t.Context())
	must(t, err)
	if len(swept.Records) != some {
		t.Errorf("%d records removed at once; want %d", len(swept.Records), some)
	}
}

// Each sweep at an end checks some of the entries, and together the sweeps check all.
func TestSweepSome(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	pass := func() {
		t.Helper()
		_, err := d.SweepAfterEnd(t.Context())
		must(t, err)
	}
	const many = 200
	h.make(t, runs(t, Record{ID: "runs", View: "used"}))
	for i := range many {
		h.make(t, ended(t, Record{ID: fmt.Sprint("ended-", i), View: fmt.Sprint("view-", i)}))
		for _, kind := range []string{"registrations", "closures"} {
			path := fmt.Sprintf("%s/run/%s/x-%d", h.dir, kind, i)
			fill(t, path)
			age(t, path, (rememberedFor+1)*time.Hour)
		}
	}
	kinds := map[string]int{ // the number that stays
		h.dir + "/run/containers": 1, h.store.StateDir + "/gcroots/nix-closure": 1,
		h.dir + "/run/registrations": 0, h.dir + "/run/closures": 0,
	}
	for range many/(some-1) + 1 {
		before := map[string]int{}
		for dir := range kinds {
			before[dir] = len(list(t, dir))
		}
		pass()
		for dir := range kinds {
			if gone := before[dir] - len(list(t, dir)); gone > some {
				t.Errorf("%s: %d went at once", dir, gone)
			}
		}
	}
	for dir, stay := range kinds {
		if left := list(t, dir); len(left) != stay {
			t.Errorf("%s: left %q", dir, left)
		}
	}
	// Removing a view takes longer: a sweep removes one.
	views := h.dir + "/run/views"
	for i := range many {
		age(t, fmt.Sprintf("%s/view-%d", views, i), 2*UnusedFor)
	}
	for range many {
		before := len(list(t, views))
		if pass(); before-len(list(t, views)) != 1 {
			t.Fatalf("of %d views %d are left", before, len(list(t, views)))
		}
	}
	if left := list(t, views); !slices.Equal(left, []string{"used", "used@runs"}) {
		t.Errorf("left %q", left)
	}
}

// list returns the sorted names in a directory.
func list(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
