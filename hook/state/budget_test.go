// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
)

// onTmpfs mounts a tmpfs on the path of the runtime directory.
func (h host) onTmpfs(t *testing.T, options string) {
	t.Helper()
	must(t, os.Mkdir(h.dir+"/run", 0o700), unix.Mount("tmpfs", h.dir+"/run", "tmpfs", 0, "mode=0700,"+options))
	t.Cleanup(func() { must(t, unix.Unmount(h.dir+"/run", unix.MNT_DETACH)) })
}

// The configuration limits the runtime directory; the size of its file system is the
// default limit.
func TestLimit(t *testing.T) {
	const none = math.MaxInt64
	for _, c := range []struct {
		options string
		config  config.Config
		want    view.Cost
	}{
		{"nr_inodes=1000,size=4M", config.Config{}, view.Cost{Inodes: 250, Bytes: 1 << 20}},
		{"nr_inodes=1000,size=4M", config.Config{RuntimeInodes: 17}, view.Cost{Inodes: 17, Bytes: 1 << 20}},
		{"nr_inodes=1000,size=4M", config.Config{RuntimeSize: 8 << 20}, view.Cost{Inodes: 250, Bytes: 8 << 20}},
		{"nr_inodes=1000,size=4M", config.Config{RuntimeInodes: 1, RuntimeSize: 4096},
			view.Cost{Inodes: 1, Bytes: 4096}},
		{"nr_inodes=0,size=0", config.Config{}, view.Cost{Inodes: none, Bytes: none}},
		{"nr_inodes=0,size=4M", config.Config{RuntimeInodes: 5}, view.Cost{Inodes: 5, Bytes: 1 << 20}},
	} {
		h := newHost(t)
		h.onTmpfs(t, c.options)
		if got, err := newDir(t, h, c.config).limit(); got != c.want || err != nil {
			t.Errorf("%s, %+v: %+v, %v", c.options, c.config, got, err)
		}
	}
}

// The longest unused entries are removed first, until the new one fits. Nothing that is
// in use is removed.
func TestMakeRoom(t *testing.T) {
	layer := func(t *testing.T, h host, name string, age time.Duration) {
		t.Helper()
		path := h.dir + "/run/views/" + name
		fill(t, path)
		must(t, os.Symlink("100 102400", path+"/size"))
		last := time.Now().Add(-age)
		must(t, os.Chtimes(path, last, last))
	}
	need := view.Cost{Inodes: 100, Bytes: 102400}
	for _, c := range []struct {
		name    string
		inodes  int64
		size    config.Size
		removed Swept
		full    bool
	}{
		{name: "all fits", inodes: 1000, removed: Swept{}},
		{name: "one goes", inodes: 604, removed: Swept{Views: []string{"a-old"}}},
		{name: "by size", size: 604 << 10, removed: Swept{Views: []string{"a-old"}}},
		{name: "small ones too, if they are old", inodes: 503,
			removed: Swept{Views: []string{"a-old"}, Registrations: []string{"r"}, Closures: []string{"c"}}},
		{name: "all that may", inodes: 310,
			removed: Swept{Views: []string{"a-old", "d-younger", "b.stale.X"}, Registrations: []string{"r"},
				Closures: []string{"c"}}},
		{name: "even that is too little", inodes: 300,
			removed: Swept{Views: []string{"a-old", "d-younger", "b.stale.X"}, Registrations: []string{"r"},
				Closures: []string{"c"}}, full: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.make(t, runs(t, Record{ID: "web", View: "used", Registration: "used-r"}))
			must(t, os.RemoveAll(h.dir+"/run/views/used"))
			layer(t, h, "used", 90*time.Hour)
			layer(t, h, "used.stale.X", 95*time.Hour)
			layer(t, h, "a-old", 9*time.Hour)
			layer(t, h, "b.stale.X", time.Hour)
			layer(t, h, "d-younger", 2*time.Hour)
			for i, name := range []string{"registrations/r", "closures/c"} {
				fill(t, h.dir+"/run/"+name)
				age(t, h.dir+"/run/"+name, time.Duration(8-i)*time.Hour)
			}
			limit := config.Config{RuntimeInodes: c.inodes, RuntimeSize: c.size}
			if c.inodes == 0 {
				limit.RuntimeInodes = math.MaxInt64
			} else {
				limit.RuntimeSize = math.MaxInt64
			}
			swept, err := newDir(t, h, limit).MakeRoom(t.Context(), need)
			if (err != nil) != c.full ||
				err != nil && !strings.Contains(err.Error(),
					"raise runtime-inodes or runtime-size in the configuration, or end containers") {
				t.Errorf("error %v", err)
			}
			if fmt.Sprint(swept) != fmt.Sprint(c.removed) {
				t.Errorf("removed %+v\nwant    %+v", swept, c.removed)
			}
			for _, name := range []string{"used", "used.stale.X", "used@web"} {
				if !exists(t, h.dir+"/run/views/"+name) {
					t.Errorf("%s went", name)
				}
			}
			for _, name := range swept.Views {
				if exists(t, h.dir+"/run/views/"+name) {
					t.Errorf("%s stays", name)
				}
			}
		})
	}
}

// Another process's half-made entry counts, and stays.
func TestMakeRoomWhileMaking(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h, config.Config{RuntimeInodes: 150, RuntimeSize: math.MaxInt64})
	path := h.dir + "/run/views/v.new"
	fill(t, path)
	must(t, os.Symlink("100 102400", path+"/size"))
	builder, err := os.Open(path)
	must(t, err, unix.Flock(int(builder.Fd()), unix.LOCK_EX))
	if swept, err := d.MakeRoom(t.Context(), view.Cost{Inodes: 60}); err == nil || len(swept.Views) > 0 {
		t.Errorf("%+v, %v", swept, err)
	}
	builder.Close()
	if swept, err := d.MakeRoom(t.Context(), view.Cost{Inodes: 60}); err != nil ||
		!slices.Equal(swept.Views, []string{"v.new"}) {
		t.Errorf("abandoned: %+v, %v", swept, err)
	}
}
