// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// /nix is a bind mount of a directory of a data disk, as on many hosts: the
// directories above the store on that disk are not known.
func TestUnderlyingAncestor(t *testing.T) {
	h := newNixHost(t)
	disk := h.dir + "/host"
	mounted := bindMount(t, disk+"/nix", h.dir+"/mnt/nix")
	if err := os.MkdirAll(h.dir+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	h.store = closure.Store{Dir: mounted + "/store", StateDir: mounted + "/var/nix"}
	for _, m := range []specs.Mount{bind(disk, "/data"), bind(disk+"/nix/var/nix/profiles/per-user", "/p")} {
		if got, err := h.look(t).Classify("/", m); got.Class != Leaks {
			t.Errorf("%s: %+v, %v", m.Source, got, err)
		}
	}
}

// Deep in an alias of the state directory.
func TestDeepInAnAlias(t *testing.T) {
	h := newNixHost(t)
	alias := bindMount(t, h.store.StateDir, h.dir+"/alias/state")
	deep := bindMount(t, h.store.StateDir+"/profiles/per-user/root", h.dir+"/nested/deep")
	for _, source := range []string{alias + "/profiles/per-user", alias + "/gcroots/auto/x", deep, h.dir + "/nested"} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); got.Class != Leaks {
			t.Errorf("%s: %+v, %v", source, got, err)
		}
	}
}

// Runtimes join the options with commas, and the kernel takes them apart.
func TestCommaInOption(t *testing.T) {
	h := newNixHost(t)
	for _, o := range []string{"index=off,lowerdir=" + h.store.Dir, "ro,lowerdir=" + h.store.Dir, "lowerdir=" + h.dir + "/data,upperdir=" + h.store.Dir} {
		if got, err := h.look(t).Classify("/", kind("overlay", "/x", "overlay", o)); got.Class != Leaks && err == nil {
			t.Errorf("%s: %+v, %v", o, got, err)
		}
	}
}

// A block device by a relative name, or that holds the state directory only.
func TestDevices(t *testing.T) {
	h := newNixHost(t)
	var st unix.Stat_t
	if err := unix.Stat(h.store.Dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(h.dir+"/bundle/disk", unix.S_IFBLK|0o600, int(st.Dev)); err != nil {
		t.Fatal(err)
	}
	if got, err := h.look(t).Classify(h.dir+"/bundle", kind("ext4", "/x", "disk")); got.Class != Leaks && err == nil {
		t.Errorf("relative: %+v, %v", got, err)
	}
	if got, err := h.look(t).Classify(h.dir+"/bundle", kind("ext4", "/x", "../bundle/disk")); got.Class != Leaks && err == nil {
		t.Errorf("relative: %+v, %v", got, err)
	}
}

// A file system of another type that is made of a directory (ecryptfs, and
// mount helpers): the source is a directory of the host.
func TestDirectorySource(t *testing.T) {
	h := newNixHost(t)
	if got, err := h.look(t).Classify("/", kind("ecryptfs", "/x", h.store.Dir)); got.Class != Leaks && err == nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// The store is an overlay (NixOS live systems): its layers are not guarded.
func TestLayersOfTheStore(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/ro/" + string(named("a")), "/rw", "/work", "/nix/store", "/nix/var/nix"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("overlay", dir+"/nix/store", "overlay", 0, "lowerdir="+dir+"/ro,upperdir="+dir+"/rw,workdir="+dir+"/work"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir+"/nix/store", syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	h := nixHost{dir, closure.Store{Dir: dir + "/nix/store", StateDir: dir + "/nix/var/nix"}}
	for _, s := range []string{"/ro", "/rw"} {
		if got, err := h.look(t).Classify("/", bind(dir+s, "/x")); got.Class != Leaks {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
}
