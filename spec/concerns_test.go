// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestConcernsStore(t *testing.T) {
	h := newNixHost(t)
	runtimeDir := made(t, h.dir+"/host/run/nix-closure")
	overlay := mountOverlay(t, "/", h.dir+"/overlay", "lowerdir="+h.dir+"/bundle/rootfs:"+h.dir+"/data")
	host := h.dir + "/host"
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
		{name: "a disk", root: overlay,
			mounts: []specs.Mount{{Type: "ext4", Source: "/dev/null", Destination: "/x"}}, want: true},
	} {
		if got := ConcernsStore(h.store, runtimeDir, h.dir+"/bundle", c.root, c.mounts); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	// The store is on the same overlay as the root.
	h.store.Dir = made(t, mountOverlay(t, "/", h.dir+"/both", "lowerdir="+h.dir+"/data,upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))+"/nix/store")
	if root := h.dir + "/both/sub"; !ConcernsStore(h.store, runtimeDir, h.dir+"/bundle", root, nil) {
		t.Error("the store is on the same overlay")
	}
	if err := os.Remove(h.store.Dir); err != nil {
		t.Fatal(err)
	}
	if !ConcernsStore(h.store, runtimeDir, h.dir+"/bundle", overlay, nil) {
		t.Error("there is no store")
	}
}
