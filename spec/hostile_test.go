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

// checkLeak fails unless a mount leaks exactly what it is said to show.
func (h nixHost) checkLeak(t *testing.T, bundle string, m specs.Mount, shows string) {
	t.Helper()
	got, err := h.look(t).Classify(bundle, m)
	if err != nil || got.Class != Leaks || got.Shows != shows {
		t.Errorf("%s of %s %q: %+v, %v; want a leak of %s", m.Type, m.Source, m.Options, got, err, shows)
	}
}

// checkHarmless fails unless a mount is none of ours: what is refused must not be
// refused for another reason.
func (h nixHost) checkHarmless(t *testing.T, bundle string, m specs.Mount) {
	t.Helper()
	if got, err := h.look(t).Classify(bundle, m); err != nil || got.Class != NoneOfOurs {
		t.Errorf("%s of %s %q: %+v, %v; want one that is none of ours", m.Type, m.Source, m.Options, got, err)
	}
}

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
	h.checkLeak(t, "/", bind(disk, "/data"), h.store.Dir)
	h.checkLeak(t, "/", bind(disk+"/nix/var/nix/profiles/per-user", "/p"), h.store.StateDir+"/profiles/per-user")
	h.checkHarmless(t, "/", bind(h.dir+"/other", "/data"))
}

// Deep in an alias of the state directory.
func TestDeepInAnAlias(t *testing.T) {
	h := newNixHost(t)
	alias := bindMount(t, h.store.StateDir, h.dir+"/alias/state")
	deep := bindMount(t, h.store.StateDir+"/profiles/per-user/root", h.dir+"/nested/deep")
	for source, shows := range map[string]string{
		alias + "/profiles/per-user": "/profiles/per-user", alias + "/gcroots/auto/x": "/gcroots/auto/x",
		deep: "/profiles/per-user/root", h.dir + "/nested": "/profiles/per-user/root",
	} {
		h.checkLeak(t, "/", bind(source, "/x"), h.store.StateDir+shows)
	}
	h.checkHarmless(t, "/", bind(h.dir+"/data", "/x"))
}

// Runtimes join the options with commas, and the kernel takes them apart.
func TestCommaInOption(t *testing.T) {
	h := newNixHost(t)
	for _, o := range []string{
		"index=off,lowerdir=" + h.store.Dir, "ro,lowerdir=" + h.store.Dir,
		"lowerdir=" + h.dir + "/data,upperdir=" + h.store.Dir,
	} {
		h.checkLeak(t, "/", kind("overlay", "/x", "overlay", o), h.store.Dir)
	}
	h.checkHarmless(t, "/", kind("overlay", "/x", "overlay", "ro,lowerdir="+h.dir+"/data,upperdir="+h.dir+"/bundle"))
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
	// Another disk, of a number that no device has.
	if err := unix.Mknod(h.dir+"/bundle/other", unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 7))); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"disk", "../bundle/disk"} {
		h.checkLeak(t, h.dir+"/bundle", kind("ext4", "/x", source), h.store.Dir)
	}
	h.checkHarmless(t, h.dir+"/bundle", kind("ext4", "/x", "other"))
}

// A file system of another type that is made of a directory (ecryptfs, and
// mount helpers): the source is a directory of the host.
func TestDirectorySource(t *testing.T) {
	h := newNixHost(t)
	h.checkLeak(t, "/", kind("ecryptfs", "/x", h.store.Dir), h.store.Dir)
	h.checkHarmless(t, "/", kind("ecryptfs", "/x", h.dir+"/data"))
}

// The store is an overlay (NixOS live systems): its layers are not guarded.
func TestLayersOfTheStore(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/ro/" + string(named("a")), "/rw", "/work", "/other", "/nix/store", "/nix/var/nix"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("overlay", dir+"/nix/store", "overlay", 0,
		"lowerdir="+dir+"/ro,upperdir="+dir+"/rw,workdir="+dir+"/work"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir+"/nix/store", syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	h := nixHost{dir, closure.Store{Dir: dir + "/nix/store", StateDir: dir + "/nix/var/nix"}}
	for _, s := range []string{"/ro", "/rw"} {
		h.checkLeak(t, "/", bind(dir+s, "/x"), h.store.Dir)
	}
	h.checkHarmless(t, "/", bind(dir+"/other", "/x"))
}
