// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
)

// newCache makes a cache as Nix makes it, with times that long ago.
func (h host) newCache(t *testing.T, ago time.Duration) {
	t.Helper()
	dir := h.dir + "/run/cache"
	must(t, os.MkdirAll(dir+"/nix", 0o700), os.WriteFile(dir+"/nix/binary-cache-v6.sqlite", make([]byte, 4096), 0o600))
	for _, path := range []string{dir + "/nix/binary-cache-v6.sqlite", dir + "/nix", dir} {
		age(t, path, ago)
	}
}

// A sweep removes Nix's cache if nobody has fetched for long.
func TestSweepCache(t *testing.T) {
	const long = (rememberedFor + 1) * time.Hour
	for _, c := range []struct {
		name        string
		age, unused time.Duration
		fetching    bool
		swept       bool
	}{
		{name: "written lately", age: time.Minute, unused: UnusedFor},
		{name: "written long ago", age: long, unused: UnusedFor, swept: true},
		{name: "while somebody fetches", age: long, unused: UnusedFor, fetching: true},
		{name: "all that is unused", swept: true},
		{name: "all that is unused while somebody fetches", fetching: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			d := newDir(t, h)
			h.newCache(t, c.age)
			release := func() {}
			if c.fetching {
				var err error
				release, err = d.HoldCache()
				must(t, err)
				age(t, h.dir+"/run/cache", c.age)
			}
			want := nothingSwept()
			if c.swept {
				want.Cache = []string{"nix"}
			}
			if diff := cmp.Diff(want, h.sweep(t, c.unused, true)); diff != "" || !exists(t, h.dir+"/run/cache/nix") {
				t.Errorf("a dry run (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(want, h.sweep(t, c.unused, false)); diff != "" ||
				exists(t, h.dir+"/run/cache") == c.swept {
				t.Errorf("a sweep (-want +got)\n%s", diff)
			}
			release()
			if c.fetching {
				h.newCache(t, c.age)
				if h.sweep(t, c.unused, false); exists(t, h.dir+"/run/cache") {
					t.Error("it is kept after the fetching")
				}
			}
		})
	}
}

// Two containers can fetch at the same time, and the cache is made again after a sweep.
func TestHoldCache(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	for range 2 {
		one, err := d.HoldCache()
		must(t, err)
		other, err := d.HoldCache()
		must(t, err)
		if st, err := os.Stat(h.dir + "/run/cache"); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", st, err)
		}
		one()
		other()
		h.sweep(t, 0, false)
	}
	must(t, os.Symlink(t.TempDir(), h.dir+"/run/cache"))
	if _, err := d.HoldCache(); err == nil || !strings.Contains(err.Error(), "run/cache") {
		t.Errorf("a link was followed: %v", err)
	}
}

// The cache counts toward the size of the runtime directory, and is removed to make room.
func TestMakeRoomOfCache(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h, config.Config{RuntimeInodes: 10, RuntimeSize: 1 << 20})
	h.newCache(t, time.Hour)
	swept, err := d.MakeRoom(t.Context(), view.Cost{Inodes: 7})
	if err != nil || len(swept.Cache) > 0 {
		t.Errorf("there is room: %+v, %v", swept, err)
	}
	swept, err = d.MakeRoom(t.Context(), view.Cost{Inodes: 8})
	if diff := cmp.Diff(Swept{Cache: []string{"nix"}}, swept); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}
