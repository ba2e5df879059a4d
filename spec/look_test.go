// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountOverlay mounts an overlay for the length of a test. Its options are written as
// they are; the calling thread's directory is cwd.
func mountOverlay(t *testing.T, cwd, target, options string) string {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	back, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chdir(cwd), syscall.Mount("overlay", target, "overlay", 0, options), os.Chdir(back)); err != nil {
		t.Fatalf("overlay %s: %v", options, err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
	return target
}

// escaped is a name as overlay reads it in an option of its own.
func escaped(name string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(name)
}

// made makes directories, and returns the first.
func made(t *testing.T, dirs ...string) string {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dirs[0]
}

// However an overlay of the store was mounted, what it shows counts, and not what its
// options say.
func TestOverlaysOfTheStore(t *testing.T) {
	h := newNixHost(t)
	store, state, nix := h.store.Dir, h.store.StateDir, h.dir+"/host/nix"
	data := h.dir + "/data"
	of := func(lower string) string { return "lowerdir=" + lower + ":" + data }
	for _, c := range []struct {
		name  string
		mount func(t *testing.T, at string)
		below string // of the mount: what is bound; empty: the mount
		shows string // empty: that cannot be told
	}{
		{"by its name", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store)) }, "", store},
		{"relative", func(t *testing.T, at string) { mountOverlay(t, nix, at, of("store")) }, "", store},
		{"the current directory", func(t *testing.T, at string) { mountOverlay(t, store, at, of(".")) }, "", store},
		{"not clean", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix+"/./../nix/store")) }, "", store},
		{"by a symbolic link", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(h.link(t, store, at+"-link"))) }, "", store},
		{"below /proc", func(t *testing.T, at string) { mountOverlay(t, nix, at, of("/proc/self/cwd/store")) }, "", store},
		{"a bind that was unmounted", func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-alias")
			mountOverlay(t, "/", at, of(alias))
			if err := syscall.Unmount(alias, 0); err != nil {
				t.Fatal(err)
			}
		}, "", store},
		{"a bind that was moved", func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-alias")
			mountOverlay(t, "/", at, of(alias))
			if err := syscall.Mount(alias, made(t, at+"-moved"), "", syscall.MS_MOVE, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(at+"-moved", syscall.MNT_DETACH) })
		}, "", store},
		{"a directory above it that was renamed", func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-before/alias")
			mountOverlay(t, "/", at, of(alias))
			if err := os.Rename(at+"-before", at+"-after"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(at+"-after/alias", syscall.MNT_DETACH) })
		}, "", store},
		{"an overlay of an overlay", func(t *testing.T, at string) {
			mountOverlay(t, "/", at, of(mountOverlay(t, "/", at+"-inner", of(store))))
		}, "", store},
		{"an overlay of an overlay of the parent", func(t *testing.T, at string) {
			mountOverlay(t, "/", at, of(mountOverlay(t, "/", at+"-inner", of(nix))))
		}, "", store},
		{"a part of an overlay of the parent", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix)) }, "/store", store},
		{"the state directory in an overlay of the parent", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix)) }, "/var/nix/profiles/per-user", state + "/profiles/per-user"},
		{"the links in an overlay", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store)) }, "/.links", store + "/.links"},
		{"the links alone", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store+"/.links")) }, "", store + "/.links"},
		{"the state directory", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(state)) }, "", state},
		{"the database's directory", func(t *testing.T, at string) { mountOverlay(t, "/", at, of(state+"/db")) }, "", state + "/db"},
		{"the database alone", func(t *testing.T, at string) {
			all := mountOverlay(t, "/", at+"-all", of(state+"/db"))
			if err := os.WriteFile(at, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount(all+"/db.sqlite", at, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
			if err := syscall.Unmount(all, syscall.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}, "", ""},
		{"a redirect in a part of an overlay", func(t *testing.T, at string) {
			made(t, at+"-upper/sub/x", at+"-work", at)
			must(t, unix.Setxattr(at+"-upper/sub/x", "trusted.overlay.redirect", []byte("/"+string(named("a"))), 0))
			all := mountOverlay(t, "/", at+"-all", "redirect_dir=on,lowerdir="+store+",upperdir="+at+"-upper,workdir="+at+"-work")
			must(t, syscall.Mount(all+"/sub", at, "", syscall.MS_BIND, ""), syscall.Unmount(all, syscall.MNT_DETACH))
			t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		}, "", ""},
		{"directories of the same names above it", func(t *testing.T, at string) {
			made(t, at+"-upper/"+string(named("a"))+"/bin", at+"-work")
			mountOverlay(t, "/", at, "lowerdir="+store+",upperdir="+at+"-upper,workdir="+at+"-work")
		}, "", store},
		{"all of it hidden but one file, deep inside", func(t *testing.T, at string) {
			mountOverlay(t, "/", at, "lowerdir="+store+",upperdir="+made(t, at+"-upper")+",workdir="+made(t, at+"-work"))
			must(t, os.Remove(at+"/"+string(named("file"))), os.RemoveAll(at+"/.links"), os.Remove(at+"/"+string(named("a"))+".lock"),
				os.Chmod(at+"/"+string(named("a")), 0o700), os.Chmod(at+"/"+string(named("a"))+"/bin", 0o700))
		}, "", store},
		{"inside a directory", func(t *testing.T, at string) { mountOverlay(t, "/", made(t, at+"/deep"), of(store)) }, "", store},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := h.dir + "/mounts/" + strings.NewReplacer(" ", "-", ",", "").Replace(c.name)
			made(t, filepath.Dir(at))
			c.mount(t, at)
			got, err := h.look(t).Classify("/", bind(at+c.below, "/x"))
			if c.shows == "" && errors.Is(err, errPart) {
				return
			}
			if err != nil || got.Class != Leaks || got.Shows != c.shows {
				t.Errorf("%+v, %v; want that it shows %s", got, err, c.shows)
			}
		})
	}
	for _, odd := range []string{"with space", "col:on", "com,ma", `back\slash`, "line\nbreak", "tab\t", `\040`, "a=b", "quote\""} {
		t.Run(odd, func(t *testing.T) {
			at := h.dir + "/odd"
			alias := bindMount(t, nix, h.dir+"/odd-"+odd+"/nix")
			mountOverlay(t, "/", at, of(escaped(alias)))
			if got, err := h.look(t).Classify("/", bind(at, "/x")); err != nil || got.Class != Leaks {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// Overlays that show nothing of the store are none of our business, and one store path
// in an overlay is asked for by name.
func TestOverlaysOfOthers(t *testing.T) {
	h := newNixHost(t)
	a := string(named("a"))
	// An image that has the same store paths: copies.
	image := made(t, h.dir+"/image", h.dir+"/image/nix/store/"+a+"/bin", h.dir+"/image/etc", h.dir+"/image/nix/var/nix/db")
	must(t, os.WriteFile(image+"/nix/store/"+a+"/bin/run", nil, 0o644), os.WriteFile(image+"/nix/var/nix/db/db.sqlite", nil, 0o644))
	upper, work := made(t, h.dir+"/upper/nix/store/"+a, h.dir+"/work"), h.dir+"/work"
	root := mountOverlay(t, "/", h.dir+"/merged", "lowerdir="+h.dir+"/data:"+image+",upperdir="+h.dir+"/upper,workdir="+work)
	of := mountOverlay(t, "/", h.dir+"/of", "lowerdir="+h.store.Dir+":"+h.dir+"/data")
	one := mountOverlay(t, "/", h.dir+"/one", "lowerdir="+h.path("a")+":"+h.dir+"/data")
	_ = upper
	for source, want := range map[string]int{root: 0, root + "/nix": 0, of + "/" + a: 1, of + "/" + a + "/bin/run": 1, one: 1} {
		got, err := h.look(t).Classify("/", bind(source, "/x"))
		if err != nil || got.Class != NoneOfOurs || len(got.Asked) != want {
			t.Errorf("%s: %+v, %v; want %d store paths asked for", source, got, err, want)
		}
	}
}

// Where the store is an overlay, one store path may be bound elsewhere, and a layer
// may not, by whatever mount it shows.
func TestLayeredStore(t *testing.T) {
	h := newNixHost(t)
	disk := made(t, h.dir+"/disk/deep/ro/"+string(named("a")), h.dir+"/rw/upper", h.dir+"/rw/work")
	disk = strings.TrimSuffix(disk, "/deep/ro/"+string(named("a")))
	ro := bindMount(t, disk+"/deep/ro", h.dir+"/before/ro")
	live := mountOverlay(t, "/", h.dir+"/live/nix/store", "lowerdir="+ro+",upperdir="+h.dir+"/rw/upper,workdir="+h.dir+"/rw/work")
	must(t, os.MkdirAll(live+"/"+string(named("added")), 0o755), os.MkdirAll(h.dir+"/live/nix/var/nix/db", 0o755))
	// The names of its layers are no more.
	if err := syscall.Mount(ro, made(t, h.dir+"/live/nix/.ro-store"), "", syscall.MS_MOVE, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(h.dir+"/live/nix/.ro-store", syscall.MNT_DETACH) })
	h.store.Dir, h.store.StateDir = live, h.dir+"/live/nix/var/nix"
	for source, want := range map[string]Class{
		h.dir + "/live/nix/.ro-store": Leaks, disk: Leaks, disk + "/deep/ro": Leaks, h.dir + "/rw/upper": Leaks, h.dir + "/rw": Leaks, live: Leaks,
		h.path("a"): NoneOfOurs, h.path("added"): NoneOfOurs, h.dir + "/data": NoneOfOurs,
	} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != want {
			t.Errorf("%s: %+v, %v; want %v", source, got, err, want)
		}
	}
	over := mountOverlay(t, "/", h.dir+"/over", "lowerdir="+live+":"+h.dir+"/data")
	if got, err := h.look(t).Classify("/", bind(over, "/x")); err != nil || got.Class != Leaks {
		t.Errorf("an overlay of it: %+v, %v", got, err)
	}
}

// What cannot be looked into is refused: another mount covers it.
func TestHiddenOverlay(t *testing.T) {
	h := newNixHost(t)
	at := mountOverlay(t, "/", h.dir+"/volume/hidden", "lowerdir="+h.store.Dir+":"+h.dir+"/data")
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	if got, err := h.look(t).Classify("/", bind(h.dir+"/volume", "/x")); !errors.Is(err, errHidden) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A mount inside an overlay hides nothing of what is underneath.
func TestCoveredInOverlay(t *testing.T) {
	h := newNixHost(t)
	at := mountOverlay(t, "/", h.dir+"/volume", "lowerdir="+h.dir+"/host/nix:"+h.dir+"/data")
	for _, covered := range []string{"/store", "/var"} {
		if err := syscall.Mount("tmpfs", at+covered, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(at+covered, syscall.MNT_DETACH) })
	}
	if got, err := h.look(t).Classify("/", bind(at, "/x")); err != nil || got.Class != Leaks {
		t.Errorf("%+v, %v", got, err)
	}
}

// The host's processes show the store by their roots.
func TestProcesses(t *testing.T) {
	h := newNixHost(t)
	for source, want := range map[string]Class{
		"/proc": Leaks, "/proc/1": Leaks, "/proc/self": Leaks, "/proc/sys": NoneOfOurs, "/proc/cpuinfo": NoneOfOurs,
	} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != want {
			t.Errorf("%s: %+v, %v; want %v", source, got, err, want)
		}
	}
	host := h.look(t)
	host.ProcessesAllowed = true
	if got, err := host.Classify("/", bind("/proc", "/x")); err != nil || got.Class != NoneOfOurs {
		t.Errorf("where the configuration allows it: %+v, %v", got, err)
	}
}

// The file that holds the disk that the store is on.
func TestDiskOfAFile(t *testing.T) {
	h := newNixHost(t)
	image := made(t, h.dir+"/images") + "/disk"
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20), f.Close())
	run(t, "mkfs.ext4", "-q", image)
	at := made(t, h.dir+"/mnt")
	run(t, "mount", "-o", "loop", image, at)
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	h.store.Dir, h.store.StateDir = made(t, at+"/nix/store", at+"/nix/var/nix"), at+"/nix/var/nix"
	if err := os.Link(image, h.dir+"/other-name"); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{image, h.dir + "/images", h.dir + "/other-name"} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != Leaks {
			t.Errorf("%s: %+v, %v", source, got, err)
		}
	}
	var st unix.Stat_t
	must(t, unix.Stat(h.store.Dir, &st))
	must(t, unix.Mknod(h.dir+"/loop", unix.S_IFBLK|0o600, int(st.Dev)))
	if got, err := h.look(t).Classify("/", kind("ext4", "/x", h.dir+"/loop")); err != nil || got.Class != Leaks {
		t.Errorf("the loop device: %+v, %v", got, err)
	}
}

// What Nix says while it builds.
func TestLogDirectory(t *testing.T) {
	h := newNixHost(t)
	logs := made(t, h.dir+"/host/nix/var/log/nix/drvs")
	for _, source := range []string{logs, filepath.Dir(logs), h.dir + "/host/nix/var/log"} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != Leaks {
			t.Errorf("%s: %+v, %v", source, got, err)
		}
	}
}
