// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure"
)

// Several containers with one ID start at the same moment, after an ended container with
// that ID. One of them gets the record, and what it made stays.
func TestClaim(t *testing.T) {
	h := newHost(t)
	roots := h.store.GCRoots()
	for round := range 50 {
		h.make(t, ended(t, Record{ID: "web", Bundle: "/ended", View: "v"}))
		var all sync.WaitGroup
		var won atomic.Int64
		begin := make(chan struct{})
		for i := range 4 {
			// Like two engines, each opens the runtime directory itself.
			d := newDir(t, h)
			r := runs(t, Record{ID: "web", Bundle: fmt.Sprint("/", i)})
			all.Go(func() {
				<-begin
				_, attached, err := d.Claim(t.Context(), r, nil)
				if attached || err != nil &&
					!strings.Contains(err.Error(), "of another container with this ID is running (bundle /") {
					t.Errorf("%d: %v, %v", i, attached, err)
				}
				if err == nil {
					won.Add(1)
					if err := roots.Add(h.store, "web", []closure.BaseName{named(fmt.Sprint("of-", i))}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		close(begin)
		all.Wait()
		r, ok, err := newDir(t, h).Record("web")
		if won.Load() != 1 || !ok || err != nil {
			t.Fatalf("round %d: %d have it: %v, %v", round, won.Load(), ok, err)
		}
		if want := roots.Of("web") + "/" + string(named("of-"+r.Bundle[1:])); len(list(t, roots.Of("web"))) != 2 {
			t.Fatalf("round %d: %q, want %s", round, list(t, roots.Of("web")), want)
		} else if _, err := os.Lstat(want); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		must(t, os.Remove(h.dir+"/run/containers/web.json"))
	}
	if left := list(t, h.dir+"/run/containers"); len(left) > 0 {
		t.Errorf("%q", left)
	}
}

// If the container already has the ID, its state stays. The state of an earlier container
// is removed.
func TestClaimAgain(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	own := runs(t, Record{ID: "web", Bundle: "/a"})
	for _, c := range []struct {
		name     string
		old, new Record
		attached bool
		refused  bool
	}{
		{name: "attached", old: Record{ID: "web", Bundle: "/a", Pid: own.Pid, PidStart: own.PidStart, Attached: true},
			new: own, attached: true},
		{name: "a hook was killed", old: own, new: own},
		{name: "another start of the process's number",
			old: Record{ID: "web", Bundle: "/a", Pid: own.Pid, PidStart: 1, Attached: true}, new: own},
		{name: "another bundle", old: Record{ID: "web", Bundle: "/b", Pid: own.Pid, PidStart: own.PidStart}, new: own,
			refused: true},
		{name: "another process", old: own, new: Record{ID: "web", Bundle: "/a", Pid: 1, PidStart: 1}, refused: true},
	} {
		h.make(t, c.old)
		_, attached, err := d.Claim(t.Context(), c.new, nil)
		if attached != c.attached || (err != nil) != c.refused {
			t.Errorf("%s: %v, %v", c.name, attached, err)
		}
		if kept := exists(t, h.store.GCRoots().Of("web")); kept != (c.attached || c.refused) {
			t.Errorf("%s: GC roots kept: %v", c.name, kept)
		}
	}
}

// A failed start, and a start that continues too late, change nothing of another
// container.
func TestClaimOfAnother(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	c, _, err := d.Claim(t.Context(), ended(t, Record{ID: "web", Bundle: "/a"}), nil)
	must(t, err)
	h.make(t, runs(t, Record{ID: "web", Bundle: "/b"}))
	before := h.files(t)
	must(t, c.Undo(t.Context()))
	next := c.Record()
	next.Digest, next.View = strings.Repeat("0", 64), "v"
	if err := c.Reserve(t.Context(), next, []closure.BaseName{named("a")}); !errors.Is(err, errNotOwn) {
		t.Errorf("reserved: %v", err)
	}
	if err := c.Update(t.Context(), next); !errors.Is(err, errNotOwn) {
		t.Errorf("updated: %v", err)
	}
	if diff := cmp.Diff(before, h.files(t)); diff != "" {
		t.Errorf("another's changed (-before +after)\n%s", diff)
	}
	must(t, os.Remove(h.dir+"/run/containers/web.json"))
	if err := c.Reserve(t.Context(), c.Record(), nil); !errors.Is(err, errNotOwn) {
		t.Errorf("reserved without a record: %v", err)
	}
	must(t, c.Undo(t.Context()))
	if exists(t, h.store.GCRoots().Of("web")) {
		t.Error("GC roots of nobody stay")
	}
}

// A container's use is marked, and the mark is removed when the record no longer names
// it.
func TestClaimReserve(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	c, _, err := d.Claim(t.Context(), runs(t, Record{ID: "web", Bundle: "/a"}), nil)
	must(t, err)
	r := c.Record()
	r.View, r.Registration = "v", "db"
	must(t, c.Reserve(t.Context(), r, []closure.BaseName{named("hello")}))
	r.View = ""
	must(t, c.Update(t.Context(), r))
	if got, _, err := d.Record("web"); err != nil || !cmp.Equal(got, r) {
		t.Errorf("%+v, %v, want %+v", got, err, r)
	}
	if exists(t, h.dir+"/run/views/v@web") || !exists(t, h.dir+"/run/registrations/db@web") ||
		!exists(t, h.store.GCRoots().Of("web")) {
		t.Errorf("views %q, registrations %q", list(t, h.dir+"/run/views"), list(t, h.dir+"/run/registrations"))
	}
	must(t, c.Undo(t.Context()))
	if left := list(t, h.dir+"/run/registrations"); len(left) > 0 || exists(t, h.dir+"/run/containers/web.json") ||
		exists(t, h.store.GCRoots().Of("web")) {
		t.Errorf("left: %q", left)
	}
}
