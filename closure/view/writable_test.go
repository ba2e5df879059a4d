// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// container is a user of a container.
var container = Owner{UID: 1234, GID: 4321}

// newWritable returns a maker of writable views of size bytes.
func newWritable(size int64) func(host, closure.Closure, Options) (View, error) {
	return func(h host, c closure.Closure, o Options) (View, error) {
		layer, err := EnsureLayer(context.Background(), h.views, h.store, c, o)
		if err != nil {
			return nil, err
		}
		return NewWritable(h.store, c, layer, o, size, container), nil
	}
}

// A new writable view shows the same as any other view, except for the store directory
// itself, which the container owns.
func TestWritableExact(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	for name, o := range map[string]struct {
		Options
		mode fs.FileMode
	}{
		"listed":   {listed, 0o775},
		"unlisted": {Options{}, 0o331},
	} {
		at, v := attach(t, h, name, newWritable(1<<20), c, o.Options)
		if got := list(t, at); !slices.Equal(got, c.Names) {
			t.Errorf("%s: has %q\nwant %q", name, got, c.Names)
		}
		if got, want := tree(t, at, c.Names), tree(t, h.store.Dir, c.Names); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", name, got, want)
		}
		var st unix.Stat_t
		must(t, unix.Stat(at, &st))
		if got, want := fs.FileMode(st.Mode&0o777), o.mode; got != want || st.Mode&unix.S_ISVTX == 0 ||
			st.Uid != 1234 || st.Gid != 4321 || st.Mtim != (unix.Timespec{Sec: 1}) {
			t.Errorf("%s: the store directory: %o %d:%d %v", name, st.Mode, st.Uid, st.Gid, st.Mtim)
		}
		f, err := os.Open(at)
		must(t, err)
		if ok, err := v.Shows(f); err != nil || !ok {
			t.Errorf("%s: shows: %v, %v", name, ok, err)
		}
		f.Close()
	}
}

// There is one mount, and nothing below it can be reached.
func TestWritableMount(t *testing.T) {
	h := newHost(t)
	must(t, unix.Mount(h.dir, h.dir, "", unix.MS_BIND, ""), unix.Mount("", h.dir, "", unix.MS_SHARED, ""))
	defer func() { _ = unix.Unmount(h.dir, unix.MNT_DETACH) }()
	c := h.fill(t)
	at, _ := attach(t, h, "target", newWritable(1<<20), c, listed)
	all := mountsAt(t, at)
	if want := (mount{point: at, options: "rw,nosuid,nodev,relatime",
		kind: "overlay"}); len(all) != 1 || all[0] != want {
		t.Errorf("mounts %q, want %q", all, want)
	}
	for _, name := range []string{upper, work, shown, upper + "/" + shown} {
		if _, err := os.Lstat(at + "/" + name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, unix.Unmount(at, unix.MNT_DETACH))
	if got := list(t, at); len(got) > 0 || len(mountsAt(t, at)) > 0 {
		t.Errorf("underneath: %q, %v", got, mountsAt(t, at))
	}
}

// Writes to a view are in that view only: not in the store, not in the layer, and not in
// another view of the same closure.
func TestWritten(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	before := tree(t, h.store.Dir, list(t, h.store.Dir))
	at, _ := attach(t, h, "target", newWritable(1<<20), c, listed)
	other, _ := attach(t, h, "other", newWritable(1<<20), c, listed)
	readOnly, _ := attach(t, h, "read-only", modes[0].make, c, listed)
	layers := tree(t, h.dir+"/views", list(t, h.dir+"/views"))

	path := func(name string) string { return at + "/" + string(named(name)) }
	must(t,
		os.WriteFile(path("new"), []byte("new"), 0o644),
		os.Mkdir(path("new-directory"), 0o755),
		os.WriteFile(path("new-directory")+"/file", []byte("new"), 0o644),
		os.WriteFile(path("a-directory")+"/new", []byte("new"), 0o644),
		os.WriteFile(path("file"), []byte("changed"), 0o644),
		os.WriteFile(path("a-directory")+"/bin/run", []byte("changed"), 0o644),
		os.Chmod(path("program"), 0o777), os.Lchown(path("link"), 7, 7),
		unix.Setxattr(path("large-file"), "trusted.x", []byte("x"), 0),
		os.Remove(path("empty-file")), os.RemoveAll(path("empty-directory")),
		os.Rename(path("relative-link"), path("renamed-link")), os.Rename(path("owned-directory"), path("renamed")),
		os.Rename(path("a-directory")+"/share", path("share")),
		os.Link(path("program"), path("hard-link")),
	)
	for p, want := range map[string]string{
		path("new-directory") + "/file": "new", path("file"): "changed", path("hard-link"): "#!/bin/sh\n",
		path("share") + "/name with space, comma:colon\\ ä\nand line": "odd", path("renamed-link"): "changed",
	} {
		if got, err := os.ReadFile(p); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	if after := tree(t, h.store.Dir, list(t, h.store.Dir)); !slices.Equal(after, before) {
		t.Errorf("the store changed:\n%q\nwas\n%q", after, before)
	}
	if after := tree(t, h.dir+"/views", list(t, h.dir+"/views")); !slices.Equal(after, layers) {
		t.Errorf("the layer changed:\n%q\nwas\n%q", after, layers)
	}
	for _, dir := range []string{other, readOnly} {
		if got, want := tree(t, dir, list(t, dir)), tree(t, h.store.Dir, c.Names); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", dir, got, want)
		}
	}
}

// A name of another store path is new in a view, whatever is made under it and whichever
// attributes of overlay it gets.
func TestForeignNames(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	at, _ := attach(t, h, "target", newWritable(1<<20), c, listed)
	foreign, file := at+"/"+string(named("foreign")), at+"/"+string(named("file"))+".lock"
	must(t, os.Mkdir(foreign, 0o755), os.WriteFile(file, nil, 0o644), os.Mkdir(at+"/redirected", 0o755),
		os.Mkdir(at+"/"+linksDir, 0o755))
	for _, p := range []string{foreign, file, at, at + "/redirected", at + "/" + string(named("empty-directory")),
		at + "/" + string(named("file"))} {
		for name, values := range map[string][]string{
			xattrOpaque: {"n", "x", ""}, xattrMetacopy: {""},
			xattrRedirect: {"/" + string(named("foreign")), string(named("foreign")), "/../" + string(named("foreign")),
				"/" + shown + "/" + string(named("foreign"))},
		} {
			for _, v := range values {
				// Before Linux 6.7 the kernel refuses it. Since then it keeps the
				// attribute under a name that overlay does not use.
				_ = unix.Setxattr(p, name, []byte(v), 0)
			}
			_ = unix.Setxattr(p, strings.Replace(name, "trusted", "user", 1), []byte(values[0]), 0)
		}
		_ = unix.Removexattr(p, xattrOpaque)
	}
	if err := unix.Mknod(at+"/whiteout", unix.S_IFCHR, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("whiteout: %v", err)
	}
	// The kernel looks everything up again.
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2\n"), 0))
	for _, dir := range []string{foreign, at + "/redirected", at + "/" + linksDir,
		at + "/" + string(named("empty-directory"))} {
		if got := list(t, dir); len(got) > 0 {
			t.Errorf("in %s: %q", dir, got)
		}
	}
	if got, err := os.ReadFile(at + "/" + string(named("file"))); err != nil || string(got) != "a file\n" {
		t.Errorf("a file: %q, %v", got, err)
	}
	want := append(slices.Clone(c.Names), named("foreign"), named("file")+".lock", "redirected", linksDir)
	slices.Sort(want)
	if got := list(t, at); !slices.Equal(got, want) {
		t.Errorf("has %q\nwant %q", got, want)
	}
}

func TestWritableSize(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	const size = 2 << 20
	at, _ := attach(t, h, "target", newWritable(size), c, listed)
	checkSize(t, at, size)
	// Without its own limit, the number of files would be unlimited.
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		err = unix.Mknod(fmt.Sprintf("%s/%d", at, i), unix.S_IFREG|0o644, 0)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("10000 files: %v", err)
	}
}

// checkSize writes to a directory until that is refused.
func checkSize(t *testing.T, dir string, size int64) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if got := int64(st.Blocks) * st.Bsize; got != size {
		t.Errorf("%d bytes, want %d", got, size)
	}
	err := os.WriteFile(dir+"/large", make([]byte, size+1), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%d bytes written: %v", size+1, err)
	}
	must(t, os.Remove(dir+"/large"))
}

// Attach finds the runtime directory and the store in the container's mount namespace,
// and nothing of the view is in another namespace.
func TestWritableInAnotherNamespace(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	v, err := newWritable(1<<20)(h, c, listed)
	must(t, err)
	defer func() { _ = v.Close() }()
	target := h.target(t, "target").Name()
	var names []closure.BaseName
	err = inOwnNamespace(func() error {
		f, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := v.Attach(f); err != nil {
			return err
		}
		names = list(t, target)
		return os.WriteFile(target+"/new", nil, 0o644)
	})
	if err != nil || !slices.Equal(names, c.Names) {
		t.Errorf("%q, %v", names, err)
	}
	if all := mountsAt(t, target); len(all) > 0 {
		t.Errorf("in this namespace too: %v", all)
	}
	if got := list(t, target); len(got) > 0 {
		t.Errorf("in the directory underneath: %q", got)
	}
}

// Content that the kernel does not show is detected before the container gets the view,
// also if the upper layer's file system is the cause.
func TestWritableChecks(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
	must(t, err, unix.Removexattr(layer.path+"/"+shown+"/"+string(named("a-directory")), xattrRedirect))
	v := NewWritable(h.store, c, layer, listed, 1<<20, container)
	if err := v.Attach(h.target(t, "target")); !errors.Is(err, ErrUnsupported) ||
		!strings.Contains(err.Error(), "shows without its content") {
		t.Errorf("error %v", err)
	}
	if all := mountsAt(t, h.dir); len(all) > 0 {
		t.Errorf("left: %v", all)
	}
	must(t, v.Close())
	// Never attached.
	v = NewWritable(h.store, c, layer, listed, 1<<20, container)
	if ok, err := v.Shows(h.target(t, "target")); ok || err != nil {
		t.Errorf("shows: %v, %v", ok, err)
	}
	must(t, v.Close())
}

// The view has an empty directory .links and not the host's, because Nix cannot open a
// read-only store without it.
func TestLinks(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		for name, listed := range map[string]bool{"listed": true, "unlisted": false} {
			at, _ := attach(t, h, name, newView, c, Options{Listed: listed, Links: true})
			if got, want := list(t, at), append([]closure.BaseName{linksDir}, c.Names...); !slices.Equal(got, want) {
				t.Errorf("%s: has %q\nwant %q", name, got, want)
			}
			var st unix.Stat_t
			must(t, unix.Stat(at+"/"+linksDir, &st))
			if st.Mode != unix.S_IFDIR|0o755 || st.Uid != 0 || st.Gid != 0 || st.Mtim != (unix.Timespec{Sec: 1}) {
				t.Errorf("%s: %o %d:%d %v", name, st.Mode, st.Uid, st.Gid, st.Mtim)
			}
			if got := list(t, at+"/"+linksDir); len(got) > 0 {
				t.Errorf("%s: in it is %q", name, got)
			}
			if err := os.WriteFile(at+"/"+linksDir+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: written to: %v", name, err)
			}
			must(t, unix.Stat(at, &st))
			if st.Mtim != (unix.Timespec{Sec: 1}) {
				t.Errorf("%s: the store directory is of %v", name, st.Mtim)
			}
		}
	})
}

// Containers with different options for the same closure have different layers.
func TestLayerNames(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	digest := c.Digest()
	variants := []struct {
		name string
		Options
	}{
		{digest, Options{Listed: true}},
		{digest + "-links", Options{Listed: true, Links: true}},
		{digest + "-unlisted", Options{}},
		{digest + "-unlisted-links", Options{Links: true}},
	}
	var want []closure.BaseName
	for _, v := range variants {
		// A label belongs to the mount and not to the layer.
		v.Label = "system_u:object_r:container_file_t:s0"
		if got := LayerName(digest, v.Options); got != v.name {
			t.Errorf("%+v: %q, want %q", v.Options, got, v.name)
		}
		if l, ok := OpenLayer(h.views, digest, v.Options, 0); ok {
			t.Errorf("%+v: there is %v", v.Options, l)
		}
		l, err := EnsureLayer(t.Context(), h.views, h.store, c, v.Options)
		if err != nil || l.path != h.dir+"/views/"+v.name {
			t.Errorf("%+v: %v, %v", v.Options, l, err)
		}
		st, err := os.Stat(l.path + "/" + shown)
		if err != nil || uint32(st.Mode().Perm()) != v.mode() {
			t.Errorf("%+v: %v, %v", v.Options, st.Mode(), err)
		}
		_, err = os.Lstat(l.path + "/" + shown + "/" + linksDir)
		if v.Links != (err == nil) {
			t.Errorf("%+v: %s: %v", v.Options, linksDir, err)
		}
		want = append(want, closure.BaseName(v.name))
	}
	if got := list(t, h.dir+"/views"); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	for _, v := range variants {
		before, err := os.Stat(h.dir + "/views/" + v.name)
		must(t, err)
		_, err = EnsureLayer(t.Context(), h.views, h.store, c, v.Options)
		must(t, err)
		if after, err := os.Stat(h.dir + "/views/" + v.name); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: made anew, %v", v.name, err)
		}
	}
}
