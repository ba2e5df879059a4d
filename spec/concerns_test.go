// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestConcernsStore(t *testing.T) {
	h := newNixHost(t)
	runtimeDir := made(t, h.dir+"/host/run/nix-closure")
	overlay := mountOverlay(t, "/", h.dir+"/overlay", "lowerdir="+h.dir+"/bundle/rootfs:"+h.dir+"/data")
	host, disk := h.dir+"/host", h.dir+"/disk"
	must(t, unix.Mknod(disk, unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 7))))
	for _, c := range []struct {
		name, root string
		mounts     []specs.Mount
		want       bool
	}{
		{name: "an overlay", root: overlay},
		{name: "a directory", root: h.dir + "/bundle/rootfs", want: true},
		{name: "a relative directory", root: "rootfs", want: true},
		{name: "no such directory", root: "none", want: true},
		{name: "a volume", root: overlay, mounts: []specs.Mount{bind(h.dir+"/data", "/x")}},
		{name: "memory", root: overlay, mounts: []specs.Mount{{Type: "tmpfs", Source: "tmpfs", Destination: "/x"}}},
		{name: "the processes", root: overlay,
			mounts: []specs.Mount{{Type: "proc", Source: "proc", Destination: "/proc"}}},
		{name: "the last of two", root: overlay,
			mounts: []specs.Mount{bind(h.dir+"/data", "/x"), bind(h.store.Dir, "/y")}, want: true},
		{name: "on the store", root: overlay, mounts: []specs.Mount{bind(h.dir+"/data", h.store.Dir)}, want: true},
		{name: "memory on the store", root: overlay,
			mounts: []specs.Mount{{Type: "tmpfs", Destination: h.store.Dir + "/"}}, want: true},
		{name: "in the store", root: overlay, mounts: []specs.Mount{bind(h.path("a"), h.path("a"))}, want: true},
		{name: "above the store", root: overlay, mounts: []specs.Mount{bind(h.dir+"/data", host)}, want: true},
		{name: "above the store, by another name", root: overlay,
			mounts: []specs.Mount{bind(h.dir+"/data", "/x/.."+host+"/nix/../")}, want: true},
		{name: "the state directory", root: overlay, mounts: []specs.Mount{bind(h.store.StateDir, "/x")}, want: true},
		{name: "a file of it", root: overlay,
			mounts: []specs.Mount{bind(h.store.StateDir+"/db/db.sqlite", "/x")}, want: true},
		{name: "the runtime directory", root: overlay, mounts: []specs.Mount{bind(runtimeDir, "/x")}, want: true},
		{name: "above all", root: overlay, mounts: []specs.Mount{bind("/", "/x")}, want: true},
		{name: "a link to the store", root: overlay,
			mounts: []specs.Mount{bind(h.link(t, h.store.Dir, "link"), "/x")}, want: true},
		{name: "no such source", root: overlay, mounts: []specs.Mount{bind(h.dir+"/none", "/x")}, want: true},
		{name: "an overlay in the list", root: overlay, mounts: []specs.Mount{{Type: "overlay", Destination: "/x",
			Options: []string{"lowerdir=" + h.dir + "/data"}}}, want: true},
		{name: "in a volume", root: overlay, mounts: []specs.Mount{bind(h.dir+"/data", "/x"),
			{Type: "tmpfs", Source: "tmpfs", Destination: "/x/y"}}, want: true},
		{name: "in memory", root: overlay, mounts: []specs.Mount{
			{Type: "tmpfs", Source: "tmpfs", Destination: "/x"}, bind(h.dir+"/data", "/x/y")}},
		{name: "the logs", root: overlay,
			mounts: []specs.Mount{bind(made(t, logDir(h.store)), "/x")}, want: true},
		{name: "a disk's file", root: overlay, mounts: []specs.Mount{bind(disk, "/x")}, want: true},
		{name: "processes", root: overlay, mounts: []specs.Mount{bind("/proc", "/x")}, want: true},
		{name: "a file of a process", root: overlay, mounts: []specs.Mount{bind("/proc/1/mounts", "/x")}, want: true},
		{name: "an overlay of the host", root: overlay, mounts: []specs.Mount{bind(overlay, "/x")}, want: true},
		{name: "a disk", root: overlay,
			mounts: []specs.Mount{{Type: "ext4", Source: "/dev/null", Destination: "/x"}}, want: true},
	} {
		if got := ConcernsStore(h.store, runtimeDir, h.dir+"/bundle", c.root, c.mounts); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	// The store is on an overlay.
	h.store.Dir = made(t, mountOverlay(t, "/", h.dir+"/another", "lowerdir="+h.dir+"/data,upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))+"/nix/store")
	if !ConcernsStore(h.store, runtimeDir, h.dir+"/bundle", overlay, nil) {
		t.Error("the store is on an overlay")
	}
}

func TestAreBelow(t *testing.T) {
	dir := t.TempDir()
	made(t, dir+"/sandboxes/id/shm", dir+"/sandboxes/another/id")
	link := dir + "/sandboxes/id/link"
	if err := os.Symlink(dir+"/sandboxes/another", link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		mount specs.Mount
		want  bool
	}{
		{"below", bind(dir+"/sandboxes/id/shm", "/x"), true},
		{"below, relative", bind("sandboxes/id/shm", "/x"), true},
		{"the directory itself", bind(dir+"/sandboxes/id", "/x"), false},
		{"of that name", bind(dir+"/sandboxes/another/id", "/x"), false},
		{"another", bind(dir+"/sandboxes/another", "/x"), false},
		{"by a link", bind(link+"/id", "/x"), false},
		{"the host's memory", bind("/dev/shm", "/x"), false},
		{"not there", bind(dir+"/sandboxes/id/none", "/x"), false},
		{"memory", specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/x"}, true},
		{"the kernel's", specs.Mount{Type: "sysfs", Source: "sysfs", Destination: "/x"}, true},
		{"a disk", specs.Mount{Type: "ext4", Source: dir + "/sandboxes/id/shm", Destination: "/x"}, false},
		{"an overlay", specs.Mount{Type: "overlay", Source: "overlay", Destination: "/x",
			Options: []string{"lowerdir=" + dir + "/sandboxes/id/shm"}}, false},
	} {
		if got := AreBelow("id", dir, []specs.Mount{c.mount}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestIsMountedIn(t *testing.T) {
	h := newNixHost(t)
	root := h.dir + "/bundle/rootfs"
	if h.look(t).IsMountedIn("/", root) || h.look(t).IsMountedIn(h.dir+"/bundle", "rootfs") {
		t.Error("nothing is mounted there")
	}
	mountOverlay(t, "/", root, "lowerdir="+h.dir+"/data:"+h.dir+"/bundle")
	if h.look(t).IsMountedIn("/", root) {
		t.Error("the root itself is mounted")
	}
	mountOverlay(t, "/", root+"/sub", "lowerdir="+h.dir+"/data:"+h.dir+"/bundle")
	for _, name := range []string{root, h.link(t, root, "root"), h.dir + "/none"} {
		if !h.look(t).IsMountedIn("/", name) {
			t.Errorf("%s: it has a mount, or is not there", name)
		}
	}
}
