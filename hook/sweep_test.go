// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// runs and ended are of a process that runs, and of one that does not.
func runs(t *testing.T, r Record) Record {
	t.Helper()
	start, err := startTime(os.Getpid())
	must(t, err)
	r.Pid, r.PidStart = os.Getpid(), start
	return r
}

func ended(_ *testing.T, r Record) Record {
	r.Pid, r.PidStart = 1<<30, 1
	return r
}

// make makes what a container has on the host: a record, GC roots, a view and a
// registration that it uses.
func (h host) make(t *testing.T, r Record) {
	t.Helper()
	d := newRuntimeDir(t, h)
	must(t, d.writeRecord(r), h.store.GCRoots().Add(h.store, r.ID, []closure.BaseName{named("hello")}))
	if r.View != "" {
		fill(t, h.dir+"/run/views/"+r.View)
		must(t, d.use(d.Views, r.View, r.ID))
	}
	if r.Database != "" {
		fill(t, h.dir+"/run/registrations/"+r.Database)
		must(t, d.use(d.Registrations, r.Database, r.ID))
	}
}

// fill makes what is in a path of the runtime directory: a view, or a file.
func fill(t *testing.T, path string) {
	t.Helper()
	if filepath.Base(filepath.Dir(path)) == "views" {
		must(t, os.MkdirAll(path+"/store/x", 0o700))
	} else {
		must(t, os.WriteFile(path, []byte("x"), 0o600))
	}
}

// age sets a file's times back.
func age(t *testing.T, path string, by time.Duration) {
	t.Helper()
	must(t, os.Chtimes(path, time.Now().Add(-by), time.Now().Add(-by)))
}

func (h host) sweep(t *testing.T, unused time.Duration, dryRun bool) Swept {
	t.Helper()
	swept, err := Sweep(t.Context(), h.config, unused, dryRun)
	must(t, err)
	return swept
}

// files are all files below the runtime directory and GC roots, with their times.
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
		text    string // of the record, instead
		stays   bool
	}{
		{id: "runs", process: runs, stays: true},
		{id: "runs.json", process: runs, stays: true},
		{id: "ended", process: ended},
		{id: "another-process", process: wrongStart},
		{id: "no-process", process: func(_ *testing.T, r Record) Record { return r }},
		{id: "gvisor", process: sandbox(bundle), stays: true},
		{id: "gvisor-gone", process: sandbox(bundle + "/gone")},
		{id: "empty", process: runs, text: " "},
		{id: "cut-off", process: runs, text: `{"id":"cut-off","pid":`},
		{id: "no-record", process: runs, text: `[]`},
		{id: "another-id", process: runs, text: `{"id":"runs","pid":0}`},
	} {
		h.make(t, c.process(t, Record{ID: c.id, View: "view-" + c.id, Database: "db-" + c.id}))
		if c.text != "" {
			must(t, os.WriteFile(h.dir+"/run/containers/"+c.id+".json", []byte(c.text), 0o600))
		}
		if !c.stays {
			gone = append(gone, c.id)
		}
	}
	swept := h.sweep(t, 0, false)
	slices.Sort(gone)
	if slices.Sort(swept.Records); !slices.Equal(swept.Records, gone) {
		t.Errorf("swept %q, want %q", swept.Records, gone)
	}
	for id, stays := range map[string]bool{
		"runs": true, "runs.json": true, "ended": false, "another-process": false, "no-process": false, "gvisor": true,
		"gvisor-gone": false, "empty": false, "cut-off": false, "no-record": false, "another-id": false,
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

// What a writer that was killed left goes when no writer can still be at it.
func TestSweepTemporary(t *testing.T) {
	h := newHost(t)
	newRuntimeDir(t, h)
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
		{"views/a.new", 0, false}, // nobody makes one while a sweep does this
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
	want := Swept{[]string{"ended"}, []string{"earlier"}, []string{}, []string{}, []string{}}
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
	// Of a runtime directory and a state directory that are not there yet.
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
		user   string // `runs`, `ended`, or `unknown`: said to use it and has no record
		unused time.Duration
		stays  bool
	}{
		{name: "view young", file: "views/v", age: 59 * time.Minute, unused: UnusedFor, stays: true},
		{name: "view old", file: "views/v", age: 61 * time.Minute, unused: UnusedFor},
		{name: "view now", file: "views/v", unused: 0},
		{name: "view used", file: "views/v", age: 9 * time.Hour, user: "runs", unused: UnusedFor, stays: true},
		{name: "view used now", file: "views/v", age: 9 * time.Hour, user: "runs", unused: 0, stays: true},
		{name: "view no longer used", file: "views/v", age: 9 * time.Hour, user: "ended", unused: UnusedFor, stays: true},
		{name: "view no longer used now", file: "views/v", age: 9 * time.Hour, user: "ended", unused: 0},
		{name: "view used by nobody that is known", file: "views/v", age: 9 * time.Hour, user: "unknown", unused: UnusedFor},
		{name: "stale view its name used", file: "views/v.stale.X", age: 9 * time.Hour, user: "runs", unused: 0, stays: true},
		{name: "stale view old", file: "views/v.stale.X", age: 9 * time.Hour, unused: UnusedFor},
		{name: "half a view its name used", file: "views/v.new", user: "runs", unused: UnusedFor},
		{name: "registration young", file: "registrations/v", age: 59 * time.Minute, unused: UnusedFor, stays: true},
		{name: "registration old", file: "registrations/v", age: 61 * time.Minute, unused: UnusedFor},
		{name: "registration used now", file: "registrations/v", age: 9 * time.Hour, user: "runs", unused: 0, stays: true},
		{name: "registration no longer used", file: "registrations/v", age: 9 * time.Hour, user: "ended", unused: UnusedFor, stays: true},
		{name: "registration no longer used now", file: "registrations/v", age: 9 * time.Hour, user: "ended", unused: 0},
		{name: "registration used by nobody that is known", file: "registrations/v", age: 9 * time.Hour, user: "unknown", unused: UnusedFor},
		{name: "closure young", file: "closures/c", age: 47 * time.Hour, unused: UnusedFor, stays: true},
		{name: "closure old", file: "closures/c", age: 49 * time.Hour, unused: UnusedFor},
		{name: "closure now", file: "closures/c", unused: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			newRuntimeDir(t, h)
			path := h.dir + "/run/" + c.file
			switch r := (Record{ID: "web", View: "v", Database: "v"}); c.user {
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
				must(t, os.Chtimes(path, last, last)) // to list a directory is to read it
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

// That it was read counts as use, where the file system notes it.
func TestSweepRead(t *testing.T) {
	h := newHost(t)
	newRuntimeDir(t, h)
	path := h.dir + "/run/closures/c"
	must(t, os.WriteFile(path, nil, 0o600), os.Chtimes(path, time.Now(), time.Now().Add(-100*24*time.Hour)))
	if h.sweep(t, UnusedFor, false); !exists(t, path) {
		t.Error("a closure went that was read a moment ago")
	}
}

func TestSweptJSON(t *testing.T) {
	const want = `{"records":[],"gcRoots":[],"views":[],"registrations":[],"closures":[]}`
	if text, err := json.Marshal(newHost(t).sweep(t, 0, false)); err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

// What one cannot remove is not in the way of the others.
func TestSweepGoesOn(t *testing.T) {
	h := newHost(t)
	for _, id := range []string{"a", "b", "c"} {
		h.make(t, ended(t, Record{ID: id, View: "view-" + id, Database: "db-" + id}))
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
	swept, err := Sweep(t.Context(), h.config, 0, false)
	if err == nil || !strings.Contains(err.Error(), "b.json") || !strings.Contains(err.Error(), long) {
		t.Errorf("error %v", err)
	}
	for _, list := range [][]string{swept.Records, swept.Views, swept.Registrations} {
		slices.Sort(list)
	}
	want := Swept{[]string{"a", "c"}, []string{}, views, []string{"db-a", "db-c"}, []string{}}
	if diff := cmp.Diff(want, swept); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !exists(t, h.store.GCRoots().Of("b")) {
		t.Error("GC roots went whose record cannot be read")
	}
}

// A sweep waits for who prepares a container, and as long as it is allowed.
func TestSweepWaits(t *testing.T) {
	h := newHost(t)
	preparing, err := newRuntimeDir(t, h).lock(unix.LOCK_SH)
	must(t, err)
	h.make(t, ended(t, Record{ID: "web"}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if swept, err := Sweep(ctx, h.config, 0, false); !errors.Is(err, context.DeadlineExceeded) || !exists(t, h.dir+"/run/containers/web.json") {
		t.Errorf("swept %+v while a container was prepared: %v", swept, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { preparing.Close() })
	if swept := h.sweep(t, 0, false); len(swept.Records) != 1 {
		t.Errorf("%+v", swept)
	}
}

// A view that nobody finished is out of the way before others may make it: they
// would go on with it while it is removed.
func TestSweepHalfMadeView(t *testing.T) {
	for _, name := range []string{"v.new", "v", "v.stale.X"} {
		h := newHost(t)
		d := newRuntimeDir(t, h)
		s := sweeper{dir: d, store: h.store}
		must(t, os.MkdirAll(h.dir+"/run/views/"+name+"/store/old", 0o700), s.sweep())
		// From here on others may.
		if name == "v.stale.X" {
			name = "v"
		}
		must(t, os.MkdirAll(h.dir+"/run/views/"+name+"/store/new", 0o700), s.removeViews())
		if left, err := filepath.Glob(h.dir + "/run/views/*/store/*"); err != nil || !slices.Equal(left, []string{h.dir + "/run/views/" + name + "/store/new"}) {
			t.Errorf("%s: left %q, %v", name, left, err)
		}
	}
}

// Each sweep in passing looks at some of what there is, and together they get at
// all of it.
func TestSweepSome(t *testing.T) {
	h := newHost(t)
	d := newRuntimeDir(t, h)
	pass := func() {
		t.Helper()
		lock, err := d.lock(unix.LOCK_EX)
		must(t, err)
		d.sweepSome(lock, false, h.store, slog.New(slog.DiscardHandler))
		if lock, err = d.lock(unix.LOCK_EX | unix.LOCK_NB); err != nil {
			t.Fatalf("the lock is not given back: %v", err)
		}
		lock.Close()
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
	kinds := map[string]int{ // what stays
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
	// To remove a view takes longer: one at a time.
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

// list are the names in a directory, sorted.
func list(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
