// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// Many containers with one closure start at once: one of them makes the layer.
func TestOneLayer(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(watch)
	_, err = unix.InotifyAddWatch(watch, h.dir+"/views", unix.IN_MOVED_TO|unix.IN_DELETE)
	must(t, err)

	var all sync.WaitGroup
	start := make(chan struct{})
	for range 50 {
		all.Go(func() {
			<-start
			layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
			if err != nil || layer.path != h.dir+"/views/"+c.Digest() {
				t.Errorf("%q, %v", layer.path, err)
				return
			}
			// The layer is complete for every container that has it.
			if got := list(t, layer.path+"/"+shown); !slices.Equal(got, c.Names) {
				t.Errorf("half a layer: %d names", len(got))
			}
		})
	}
	close(start)
	all.Wait()
	if left := list(t, h.dir+"/views"); !slices.Equal(left, []closure.BaseName{closure.BaseName(c.Digest())}) {
		t.Errorf("there are %q", left)
	}
	moved, deleted := events(t, watch)
	if !slices.Equal(moved, []string{c.Digest()}) {
		t.Errorf("renamed to %q", moved)
	}
	if slices.Contains(deleted, c.Digest()) {
		t.Errorf("removed %q", deleted)
	}
}

// events returns what inotify saw: names that something was renamed to, and names that
// were removed.
func events(t *testing.T, watch int) (moved, deleted []string) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(watch, buf)
		if errors.Is(err, unix.EAGAIN) {
			return moved, deleted
		}
		must(t, err)
		for at := 0; at < n; {
			mask, size := binary.NativeEndian.Uint32(buf[at+4:]), binary.NativeEndian.Uint32(buf[at+12:])
			name := string(bytes.TrimRight(buf[at+unix.SizeofInotifyEvent:at+unix.SizeofInotifyEvent+int(size)],
				"\x00"))
			if mask&unix.IN_MOVED_TO != 0 {
				moved = append(moved, name)
			} else {
				deleted = append(deleted, name)
			}
			at += unix.SizeofInotifyEvent + int(size)
		}
	}
}

// A second container uses the existing layer.
func TestLayerIsKept(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	began := time.Now()
	if _, ok := OpenLayer(h.views, c.Digest(), listed, 0); ok {
		t.Error("there is a layer already")
	}
	first, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
	must(t, err)
	before, err := os.Stat(first.path)
	must(t, err)
	for range 2 {
		again, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
		must(t, err)
		after, err := os.Stat(again.path)
		must(t, err)
		if !os.SameFile(before, after) {
			t.Error("made anew")
		}
	}
	if _, ok := OpenLayer(h.views, c.Digest(), listed, time.Now().Add(time.Hour).UnixNano()); ok {
		t.Error("opened, though it is older than it may be")
	}
	if l, ok := OpenLayer(h.views, c.Digest(), listed, began.UnixNano()); !ok || l != first {
		t.Errorf("opened %v, %v", l, ok)
	}
	if _, ok := OpenLayer(h.views, c.Digest(), Options{}, 0); ok {
		t.Error("the same layer for a directory that cannot be listed")
	}
}

// A killed builder leaves a half-made layer under its temporary name.
func TestLeftovers(t *testing.T) {
	for _, l := range []struct {
		name string
		make func(aside string) error
	}{
		{"an empty directory", func(aside string) error { return os.Mkdir(aside, 0o700) }},
		{"half a layer", func(aside string) error {
			return errors.Join(os.MkdirAll(aside+"/store/"+string(named("a-directory"))+"/deep", 0o700),
				os.WriteFile(aside+"/store/"+string(named("file")), []byte("wrong"), 0o600),
				os.Mkdir(aside+"/store/"+string(named("foreign")), 0o700),
				os.Symlink("/etc", aside+"/store/"+string(named("link"))))
		}},
		{"read-only and immutable in mode", func(aside string) error {
			return errors.Join(os.MkdirAll(aside+"/store", 0o700), os.Chmod(aside+"/store", 0o111),
				os.Chmod(aside, 0o100))
		}},
		{"a symbolic link for the tree", func(aside string) error {
			return errors.Join(os.Mkdir(aside, 0o700), os.Symlink("../..", aside+"/store"))
		}},
		{"a file for the tree", func(aside string) error {
			return errors.Join(os.Mkdir(aside, 0o700), os.WriteFile(aside+"/store", nil, 0o600))
		}},
	} {
		t.Run(l.name, func(t *testing.T) {
			h := newHost(t)
			c := h.fill(t)
			must(t, l.make(h.dir+"/views/"+c.Digest()+".new"))
			at, _ := attach(t, h, "target", modes[0].make, c, listed)
			if got, want := tree(t, at, c.Names), tree(t, h.store.Dir, c.Names); !slices.Equal(got, want) {
				t.Errorf("%q\nwant %q", got, want)
			}
			if got := list(t, at); !slices.Equal(got, c.Names) {
				t.Errorf("has %q", got)
			}
			if left := list(t, h.dir+"/views"); len(left) != 1 {
				t.Errorf("there are %q", left)
			}
		})
	}
}

// A process waits for the holder of the lock, and uses its layer.
func TestWaitForTheBuilder(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	name := c.Digest()
	must(t, os.Mkdir(h.dir+"/views/"+name+".new", 0o700))
	builder, err := os.Open(h.dir + "/views/" + name + ".new")
	must(t, err, unix.Flock(int(builder.Fd()), unix.LOCK_EX))
	done := make(chan error, 1)
	go func() {
		layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
		if err == nil && layer.path != h.dir+"/views/"+name {
			err = errors.New("another layer: " + layer.path)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	storeDir, err := os.OpenFile(h.store.Dir, unix.O_PATH, 0)
	must(t, err)
	defer storeDir.Close()
	must(t, fill(builder, storeDir, h.store, c, listed), os.Rename(h.dir+"/views/"+name+".new", h.dir+"/views/"+name))
	made, err := builder.Stat()
	must(t, err)
	builder.Close()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("waits for ever")
	}
	if now, err := os.Stat(h.dir + "/views/" + name); err != nil || !os.SameFile(made, now) {
		t.Errorf("the builder's layer was replaced: %v", err)
	}
}

// A stopped builder keeps no other process from starting, and does no harm when it
// continues.
func TestStoppedBuilder(t *testing.T) {
	defer func(d time.Duration) { builderTimeout = d }(builderTimeout)
	builderTimeout = 50 * time.Millisecond
	h := newHost(t)
	c := h.fill(t)
	name := c.Digest()
	aside := h.dir + "/views/" + name + ".new"
	must(t, os.Mkdir(aside, 0o700))
	builder, err := os.Open(aside)
	must(t, err, unix.Flock(int(builder.Fd()), unix.LOCK_EX))
	defer builder.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	want := fmt.Sprintf("waiting for another process to make %s (process %d has the lock): context deadline exceeded",
		aside, os.Getpid())
	if _, err := EnsureLayer(ctx, h.views, h.store, c, listed); !errors.Is(err, context.DeadlineExceeded) ||
		err.Error() != want {
		t.Errorf("after the deadline: %v\nwant %s", err, want)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
			if err != nil || layer.path != h.dir+"/views/"+name {
				t.Errorf("%q, %v", layer.path, err)
				return
			}
			if got := list(t, layer.path+"/"+shown); !slices.Equal(got, c.Names) {
				t.Errorf("half a layer: %d names", len(got))
			}
		})
	}
	all.Wait()
	made, err := os.Stat(h.dir + "/views/" + name)
	must(t, err)
	if left := list(t, h.dir+"/views"); len(left) != 2 {
		t.Errorf("there are %q", left)
	}
	if _, ok := LockAbandoned(h.views, name+half); ok {
		t.Error("taken for abandoned, though it has the lock")
	}

	storeDir, err := openStore(h.store)
	must(t, err)
	defer storeDir.Close()
	must(t, fill(builder, storeDir, h.store, c, listed), publish(h.views, storeDir, name+half, c, listed))
	if now, err := os.Stat(h.dir + "/views/" + name); err != nil || !os.SameFile(made, now) {
		t.Errorf("replaced: %v", err)
	}
	if left := list(t, h.dir+"/views"); len(left) != 1 {
		t.Errorf("there are %q", left)
	}
}

// An abandoned layer has no lock, and nobody continues a layer while its lock is held.
func TestLockAbandoned(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"a", "a.new", "a.X.new", "a.stale.X"} {
		must(t, os.Mkdir(h.dir+"/views/"+name, 0o700))
		release, ok := LockAbandoned(h.views, name)
		if ok != strings.HasSuffix(name, ".new") {
			t.Errorf("%s: %v", name, ok)
		}
		if !ok {
			continue
		}
		if _, ok := LockAbandoned(h.views, name); ok {
			t.Errorf("%s: locked twice", name)
		}
		release()
	}
	if _, ok := LockAbandoned(h.views, "nothing.new"); ok {
		t.Error("what is not there")
	}
	// A builder that comes meanwhile makes another layer.
	release, ok := LockAbandoned(h.views, "a.new")
	builder := make(chan *os.File)
	go func() {
		dir, err := lockedDir(t.Context(), h.views, "a.new", "a")
		if err != nil {
			t.Error(err)
		}
		builder <- dir
	}()
	time.Sleep(20 * time.Millisecond)
	must(t, os.Rename(h.dir+"/views/a.new", h.dir+"/views/a.stale.Y"))
	release()
	dir := <-builder
	if !ok || dir == nil || !samefile.At(dir, h.views.Name()+"/"+"a.new") {
		t.Errorf("%v, %v", ok, dir)
	}
}

// A layer states its cost, which is not less than what it takes of its file system.
func TestLayerCost(t *testing.T) {
	for _, kind := range []string{"tmpfs", "the file system of the tests"} {
		h := newHost(t)
		if kind == "tmpfs" {
			must(t, unix.Mount("tmpfs", h.dir+"/views", "tmpfs", 0, ""))
			defer func() { must(t, unix.Unmount(h.dir+"/views", unix.MNT_DETACH)) }()
			h.views = owndir.At(h.dir + "/views")
		}
		var names []closure.BaseName
		for i := range 500 {
			name := named(fmt.Sprint("a-path-with-a-name-of-common-length-", i))
			h.directory(t, string(name), 0o555)
			names = append(names, name)
		}
		c := closure.New(h.store, names)
		var before, after unix.Statfs_t
		must(t, unix.Statfs(h.dir+"/views", &before))
		want, err := LayerCost(h.views, c, listed)
		must(t, err)
		_, err = EnsureLayer(t.Context(), h.views, h.store, c, listed)
		must(t, err, unix.Statfs(h.dir+"/views", &after))
		got := CostOf(h.views, c.Digest())
		if got.Inodes != want.Inodes || got.Bytes < want.Inodes*InodeBytes || got.Bytes > 2*want.Bytes {
			t.Errorf("%s: costs %v, and %v was expected", kind, got, want)
		}
		if kind == "tmpfs" { // no other process uses it
			if used := int64(before.Ffree) - int64(after.Ffree); used > got.Inodes || used < got.Inodes/2 {
				t.Errorf("takes %d inodes, and says %v", used, got)
			}
		}
		// A layer of an earlier version does not state its cost.
		must(t, os.Remove(h.dir+"/views/"+c.Digest()+"/"+sizeLink))
		if old := CostOf(h.views, c.Digest()); old.Inodes < 500 || old.Bytes < 500*InodeBytes {
			t.Errorf("%s: without the link: %v", kind, old)
		}
	}
}

// A store path that was collected and came back different has the same name and
// the same digest.
func TestStaleLayer(t *testing.T) {
	path := func(h host, name string) string { return h.store.Dir + "/" + string(named(name)) }
	for _, s := range []struct {
		name   string
		change func(t *testing.T, h host)
		same   bool // the layer is still valid
	}{
		{"nothing", func(*testing.T, host) {}, true},
		{"the files below a store path", func(t *testing.T, h host) {
			h.file(t, string(named("a-directory"))+"/new", "new", 0o444)
			h.directory(t, string(named("a-directory")), 0o555)
		}, true},
		{"another store path", func(t *testing.T, h host) { h.directory(t, string(named("foreign2")), 0o555) }, true},
		{"another size", func(t *testing.T, h host) { h.file(t, string(named("file")), "longer than before\n", 0o444) },
			false},
		{"another mode of a file", func(t *testing.T, h host) { must(t, os.Chmod(path(h, "file"), 0o555)) }, false},
		{"another mode of a directory", func(t *testing.T, h host) { must(t, os.Chmod(path(h, "a-directory"), 0o700)) },
			false},
		{"another owner", func(t *testing.T, h host) { must(t, os.Chown(path(h, "a-directory"), 7, 0)) }, false},
		{"another group", func(t *testing.T, h host) { must(t, os.Lchown(path(h, "link"), 0, 7)) }, false},
		{"another time", func(t *testing.T, h host) {
			must(t, os.Chtimes(path(h, "a-directory"), built, time.Unix(1, 1)))
		}, false},
		{"a file became a directory", func(t *testing.T, h host) {
			must(t, os.Remove(path(h, "file")))
			h.directory(t, string(named("file")), 0o555)
		}, false},
		{"a directory became a link", func(t *testing.T, h host) {
			must(t, os.Remove(path(h, "empty-directory")))
			h.link(t, string(named("empty-directory")), "/")
		}, false},
		{"a link leads elsewhere", func(t *testing.T, h host) {
			must(t, os.Remove(path(h, "relative-link")))
			// The text has the same length.
			h.link(t, string(named("relative-link")), strings.Replace(string(named("file")), "0", "1", 1))
		}, false},
		{"the layer lost a path", func(t *testing.T, h host) {
			views := list(t, h.dir+"/views")
			must(t, os.RemoveAll(h.dir+"/views/"+string(views[0])+"/"+shown+"/"+string(named("file"))))
		}, false},
		{"the layer lost all", func(t *testing.T, h host) {
			views := list(t, h.dir+"/views")
			must(t, os.RemoveAll(h.dir+"/views/"+string(views[0])+"/"+shown))
		}, false},
	} {
		t.Run(s.name, func(t *testing.T) {
			h := newHost(t)
			c := h.fill(t)
			layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
			must(t, err)
			before, err := os.Stat(layer.path)
			must(t, err)
			s.change(t, h)
			at, _ := attach(t, h, "target", modes[0].make, c, listed)
			after, err := os.Stat(layer.path)
			must(t, err)
			if same := os.SameFile(before, after); same != s.same {
				t.Errorf("the layer was kept: %v", same)
			}
			if got, want := tree(t, at, c.Names), tree(t, h.store.Dir, c.Names); !slices.Equal(got, want) {
				t.Errorf("%q\nwant %q", got, want)
			}
		})
	}
}

// A path that is missing in the store is an error, even if there is a layer.
func TestLayerOfAMissingPath(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	_, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
	must(t, err, os.Remove(h.store.Dir+"/"+string(named("file"))))
	if _, err := EnsureLayer(t.Context(), h.views, h.store, c, listed); !errors.Is(err, ErrMissing) {
		t.Errorf("error %v", err)
	}
}

// The kernel ignores attributes of overlay if a module parameter says so. The view then
// has no content, which Check finds before the view is attached.
func TestCheck(t *testing.T) {
	for _, k := range []struct {
		name   string
		change func(entries string) error
		ok     bool
	}{
		{"as it is", func(string) error { return nil }, true},
		{"directories without a redirect", func(entries string) error {
			return unix.Removexattr(entries+"/"+string(named("a-directory")), xattrRedirect)
		}, false},
		{"files without their content", func(entries string) error {
			name := entries + "/" + string(named("file"))
			return errors.Join(unix.Removexattr(name, xattrMetacopy), unix.Removexattr(name, xattrRedirect))
		}, false},
	} {
		h := newHost(t)
		h.file(t, string(named("a-directory"))+"/file", "file", 0o444)
		h.file(t, string(named("file")), "file", 0o444)
		h.link(t, string(named("link")), "/")
		c := closure.New(h.store, []closure.BaseName{named("a-directory"), named("file"), named("link")})
		layer, err := EnsureLayer(t.Context(), h.views, h.store, c, listed)
		must(t, err, k.change(layer.path+"/"+shown))
		v, err := NewOverlay(h.store, layer, listed)
		must(t, err)
		if err := v.Check(h.store, c); (err == nil) != k.ok || err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", k.name, err)
		}
		must(t, v.Close())
	}
	// A bind view needs no check.
	h := newHost(t)
	v, err := NewBind(h.store, closure.New(h.store, nil), listed)
	must(t, err, v.Check(h.store, closure.New(h.store, []closure.BaseName{named("missing")})), v.Close())
}
