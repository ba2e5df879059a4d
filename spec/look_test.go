// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
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
	if err := errors.Join(os.Chdir(cwd), syscall.Mount("overlay", target, "overlay", 0, options),
		os.Chdir(back)); err != nil {
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
		{name: "by its name", mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store)) },
			shows: store},
		{name: "relative", mount: func(t *testing.T, at string) { mountOverlay(t, nix, at, of("store")) },
			shows: store},
		{name: "the current directory", mount: func(t *testing.T, at string) { mountOverlay(t, store, at, of(".")) },
			shows: store},
		{name: "not clean",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix+"/./../nix/store")) }, shows: store},
		{name: "by a symbolic link", mount: func(t *testing.T,
			at string) {
			mountOverlay(t, "/", at, of(h.link(t, store, at+"-link")))
		}, shows: store},
		{name: "below /proc",
			mount: func(t *testing.T, at string) { mountOverlay(t, nix, at, of("/proc/self/cwd/store")) },
			shows: store},
		{name: "a bind that was unmounted", mount: func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-alias")
			mountOverlay(t, "/", at, of(alias))
			if err := syscall.Unmount(alias, 0); err != nil {
				t.Fatal(err)
			}
		}, shows: store},
		{name: "a bind that was moved", mount: func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-alias")
			mountOverlay(t, "/", at, of(alias))
			if err := syscall.Mount(alias, made(t, at+"-moved"), "", syscall.MS_MOVE, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(at+"-moved", syscall.MNT_DETACH) })
		}, shows: store},
		{name: "a directory above it that was renamed", mount: func(t *testing.T, at string) {
			alias := bindMount(t, store, at+"-before/alias")
			mountOverlay(t, "/", at, of(alias))
			if err := os.Rename(at+"-before", at+"-after"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(at+"-after/alias", syscall.MNT_DETACH) })
		}, shows: store},
		{name: "an overlay of an overlay", mount: func(t *testing.T, at string) {
			mountOverlay(t, "/", at, of(mountOverlay(t, "/", at+"-inner", of(store))))
		}, shows: store},
		{name: "an overlay of an overlay of the parent", mount: func(t *testing.T, at string) {
			mountOverlay(t, "/", at, of(mountOverlay(t, "/", at+"-inner", of(nix))))
		}, shows: store},
		{name: "a part of an overlay of the parent",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix)) },
			below: "/store", shows: store},
		{name: "the state directory in an overlay of the parent",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(nix)) },
			below: "/var/nix/profiles/per-user",
			shows: state + "/profiles/per-user"},
		{name: "the links in an overlay", mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store)) },
			below: "/.links",
			shows: store + "/.links"},
		{name: "the links alone",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(store+"/.links")) },
			shows: store + "/.links"},
		{name: "the state directory", mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(state)) },
			shows: state},
		{name: "the database's directory",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", at, of(state+"/db")) },
			shows: state + "/db"},
		{name: "the database alone", mount: func(t *testing.T, at string) {
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
		}},
		{name: "a redirect in a part of an overlay", mount: func(t *testing.T, at string) {
			made(t, at+"-upper/sub/x", at+"-work", at)
			must(t, unix.Setxattr(at+"-upper/sub/x", "trusted.overlay.redirect", []byte("/"+string(named("a"))), 0))
			all := mountOverlay(t, "/", at+"-all",
				"redirect_dir=on,lowerdir="+store+",upperdir="+at+"-upper,workdir="+at+"-work")
			must(t, syscall.Mount(all+"/sub", at, "", syscall.MS_BIND, ""), syscall.Unmount(all, syscall.MNT_DETACH))
			t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		}},
		{name: "directories of the same names above it", mount: func(t *testing.T, at string) {
			made(t, at+"-upper/"+string(named("a"))+"/bin", at+"-work")
			mountOverlay(t, "/", at, "lowerdir="+store+",upperdir="+at+"-upper,workdir="+at+"-work")
		}, shows: store},
		{name: "all of it hidden but one file, deep inside", mount: func(t *testing.T, at string) {
			mountOverlay(t, "/", at, "lowerdir="+store+",upperdir="+made(t, at+"-upper")+",workdir="+
				made(t, at+"-work"))
			must(t, os.Remove(at+"/"+string(named("file"))), os.RemoveAll(at+"/.links"),
				os.Remove(at+"/"+string(named("a"))+".lock"),
				os.Chmod(at+"/"+string(named("a")), 0o700), os.Chmod(at+"/"+string(named("a"))+"/bin", 0o700))
		}, shows: store},
		{name: "inside a directory",
			mount: func(t *testing.T, at string) { mountOverlay(t, "/", made(t, at+"/deep"), of(store)) },
			shows: store},
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
	for _, odd := range []string{"with space", "col:on", "com,ma", `back\slash`, "line\nbreak", "tab\t", `\040`, "a=b",
		"quote\""} {
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
	// An image that has the same store paths: copies, of another time.
	time.Sleep(20 * time.Millisecond)
	image := made(t, h.dir+"/image", h.dir+"/image/nix/store/"+a+"/bin", h.dir+"/image/etc",
		h.dir+"/image/nix/var/nix/db")
	must(t, os.WriteFile(image+"/nix/store/"+a+"/bin/run", nil, 0o644),
		os.WriteFile(image+"/nix/var/nix/db/db.sqlite", nil, 0o644))
	upper, work := made(t, h.dir+"/upper/nix/store/"+a, h.dir+"/work"), h.dir+"/work"
	root := mountOverlay(t, "/", h.dir+"/merged",
		"lowerdir="+h.dir+"/data:"+image+",upperdir="+h.dir+"/upper,workdir="+work)
	of := mountOverlay(t, "/", h.dir+"/of", "lowerdir="+h.store.Dir+":"+h.dir+"/data")
	one := mountOverlay(t, "/", h.dir+"/one", "lowerdir="+h.path("a")+":"+h.dir+"/data")
	_ = upper
	for source, want := range map[string]int{root: 0, root + "/nix": 0, of + "/" + a: 1, of + "/" + a + "/bin/run": 1,
		one: 1} {
		got, err := h.look(t).Classify("/", bind(source, "/x"))
		if err != nil || got.Class != NoneOfOurs || len(got.Asked) != want {
			t.Errorf("%s: %+v, %v; want %d store paths asked for", source, got, err, want)
		}
	}
	covers := made(t, h.dir+"/covers")
	mountOverlay(t, "/", covers, "lowerdir="+covers+",upperdir="+made(t, h.dir+"/covers-upper")+",workdir="+
		made(t, h.dir+"/covers-work"))
	if got, err := h.look(t).Classify("/", bind(covers, "/x")); err != nil || got.Class != NoneOfOurs {
		t.Errorf("an overlay on its own layer: %+v, %v", got, err)
	}
}

// Where the store is an overlay, one store path may be bound elsewhere, and a layer
// may not, by whatever mount it shows.
func TestLayeredStore(t *testing.T) {
	h := newNixHost(t)
	disk := made(t, h.dir+"/disk/deep/ro/"+string(named("a")), h.dir+"/rw/upper", h.dir+"/rw/work")
	disk = strings.TrimSuffix(disk, "/deep/ro/"+string(named("a")))
	ro := bindMount(t, disk+"/deep/ro", h.dir+"/before/ro")
	live := mountOverlay(t, "/", h.dir+"/live/nix/store",
		"lowerdir="+ro+",upperdir="+h.dir+"/rw/upper,workdir="+h.dir+"/rw/work")
	must(t, os.MkdirAll(live+"/"+string(named("added")), 0o755), os.MkdirAll(h.dir+"/live/nix/var/nix/db", 0o755))
	// The names of its layers are no more.
	if err := syscall.Mount(ro, made(t, h.dir+"/live/nix/.ro-store"), "", syscall.MS_MOVE, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(h.dir+"/live/nix/.ro-store", syscall.MNT_DETACH) })
	h.store.Dir, h.store.StateDir = live, h.dir+"/live/nix/var/nix"
	for source, want := range map[string]Class{
		h.dir + "/live/nix/.ro-store": Leaks, disk: Leaks, disk + "/deep/ro": Leaks, h.dir + "/rw/upper": Leaks,
		h.dir + "/rw": Leaks, live: Leaks,
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

// withoutHandles calls f on a thread that opens no files by their handles, as an ordinary
// user's does not.
func withoutHandles(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	must(t, unix.Capget(&header, &before[0]))
	without := before
	without[0].Effective &^= 1 << unix.CAP_DAC_READ_SEARCH
	must(t, unix.Capset(&header, &without[0]))
	defer func() { must(t, unix.Capset(&header, &before[0])) }()
	f()
}

// A layer can be a directory inside a guarded one, and its name be one that is no more.
func TestLayersInside(t *testing.T) {
	h := newNixHost(t)
	made(t, h.dir+"/run/views/0123", h.store.StateDir+"/temproots", h.dir+"/host/nix/var/log/nix/drvs/ab")
	for _, file := range []string{
		h.dir + "/run/views/0123/view", h.dir + "/run/containers/record", h.store.StateDir + "/temproots/1",
		h.dir + "/host/nix/var/log/nix/drvs/ab/log.drv", h.store.StateDir + "/profiles/per-user/alice/profile",
	} {
		h.write(t, file)
	}
	a := named("a")
	mounted := 0
	for _, c := range []struct {
		layer string
		asked bool // it is of a store path
		// deep: it is not recognised by what is in it alone, without its name or handles.
		deep bool
	}{
		{h.store.Dir, false, false}, {h.store.Dir + "/.links", false, false},
		{h.path("a"), true, true}, {h.path("a") + "/bin", true, true},
		{h.store.StateDir, false, false}, {h.store.StateDir + "/db", false, false},
		{h.store.StateDir + "/temproots", false, true}, {h.store.StateDir + "/profiles/per-user", false, false},
		{h.store.StateDir + "/profiles/per-user/alice", false, true}, {h.dir + "/host/nix/var/log/nix", false, false},
		{h.dir + "/host/nix/var/log/nix/drvs", false, false}, {h.dir + "/host/nix/var/log/nix/drvs/ab", false, true},
		{h.dir + "/run/containers", false, false}, {h.dir + "/run/views/0123", false, true},
	} {
		for _, way := range []string{"named", "by a name that is no more", "named, no handles", "no more, no handles"} {
			t.Run(strings.TrimPrefix(c.layer, h.dir)+", "+way, func(t *testing.T) {
				mounted++
				dir := h.dir + "/overlays/" + strconv.Itoa(mounted)
				lower := bindMount(t, c.layer, dir+"/alias")
				at := mountOverlay(t, "/", dir+"/at", "lowerdir="+lower+":"+h.dir+"/data")
				if !strings.HasPrefix(way, "named") {
					must(t, syscall.Unmount(lower, 0))
				}
				check := func() {
					got, err := h.look(t).Classify("/", bind(at, "/x"))
					want := Verdict{Class: Leaks, Shows: got.Shows}
					if c.asked {
						want = Verdict{Asked: []closure.BaseName{a}}
					}
					if c.deep && way == "no more, no handles" {
						want = Verdict{} // nothing tells
					}
					if err != nil || got.Class != want.Class || !slices.Equal(got.Asked, want.Asked) {
						t.Errorf("%+v, %v; want %+v", got, err, want)
					}
				}
				if strings.Contains(way, "no handles") {
					withoutHandles(t, check)
				} else {
					check()
				}
			})
		}
	}
}

// The layer of an overlay can be an overlay of a store path, whatever their names are now.
func TestLayersOfLayers(t *testing.T) {
	h := newNixHost(t)
	h.write(t, h.path("a")+"/bin/program")
	data := h.dir + "/data"
	inner := map[string]func(t *testing.T, at string){
		"a store path": func(t *testing.T, at string) { mountOverlay(t, "/", at, "lowerdir="+h.path("a")+":"+data) },
		"a store path by a name that is no more": func(t *testing.T, at string) {
			alias := bindMount(t, h.path("a"), at+"-alias")
			mountOverlay(t, "/", at, "lowerdir="+alias+":"+data)
			must(t, syscall.Unmount(alias, 0))
		},
		"a part with a redirect to a store path": func(t *testing.T, at string) {
			made(t, at+"-upper/sub/x", at+"-work", at)
			must(t, unix.Setxattr(at+"-upper/sub/x", "trusted.overlay.redirect", []byte("/"+string(named("a"))), 0))
			all := mountOverlay(t, "/", at+"-all",
				"redirect_dir=on,lowerdir="+h.store.Dir+",upperdir="+at+"-upper,workdir="+at+"-work")
			must(t, syscall.Mount(all+"/sub", at, "", syscall.MS_BIND, ""), syscall.Unmount(all, syscall.MNT_DETACH))
			t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		},
	}
	redirected := func(way string) func(t *testing.T, at string) {
		return func(t *testing.T, at string) {
			made(t, at+"-upper/"+way, at+"-work")
			must(t, unix.Setxattr(at+"-upper/"+way, "trusted.overlay.redirect", []byte("/"+string(named("a"))), 0))
			mountOverlay(t, "/", at, "redirect_dir=on,lowerdir="+h.store.Dir+",upperdir="+at+"-upper,workdir="+
				at+"-work")
		}
	}
	// The outer overlay merges all that is looked at of its layers.
	made(t, data+"/merged/deep/er")
	inner["a redirect to a store path"] = redirected("x")
	inner["a redirect in directories that others have too"] = redirected("merged/deep/er/x")
	outer := map[string]func(t *testing.T, at, lower string){
		"by its name": func(t *testing.T, at, lower string) { mountOverlay(t, "/", at, "lowerdir="+lower+":"+data) },
		"by a relative name": func(t *testing.T, at, lower string) {
			mountOverlay(t, filepath.Dir(lower), at, "lowerdir="+filepath.Base(lower)+":"+data)
		},
		"by a name that is no more": func(t *testing.T, at, lower string) {
			alias := bindMount(t, lower, at+"-alias")
			mountOverlay(t, "/", at, "lowerdir="+alias+":"+data)
			must(t, syscall.Unmount(alias, 0))
		},
	}
	tried := 0
	for of, mountInner := range inner {
		for by, mountOuter := range outer {
			t.Run(of+", "+by, func(t *testing.T) {
				tried++
				dir := made(t, h.dir+"/tried/"+strconv.Itoa(tried))
				mountInner(t, made(t, dir+"/inner"))
				mountOuter(t, made(t, dir+"/outer"), dir+"/inner")
				got, err := h.look(t).Classify("/", bind(dir+"/outer", "/x"))
				if err == nil && got.Class == NoneOfOurs && len(got.Asked) == 0 {
					t.Errorf("%+v: shows a store path, and it is not refused", got)
				}
			})
		}
	}
}

// diskWithoutUUID mounts an empty disk.
func diskWithoutUUID(t *testing.T, at string) string {
	t.Helper()
	f, err := os.Create(at + ".image")
	must(t, err)
	must(t, f.Truncate(16<<20), f.Close())
	run(t, "mkfs.ext4", "-q", "-U", "clear", f.Name())
	run(t, "mount", "-o", "loop", f.Name(), made(t, at))
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	return at
}

// A layer's file system need not have a UUID, if it is a disk of the host. Else it may be one
// of a program that shows what another has.
func TestLayersWithoutUUID(t *testing.T) {
	h := newNixHost(t)
	disk := diskWithoutUUID(t, h.dir+"/disk")
	made(t, disk+"/layer/etc")
	h.write(t, disk+"/layer/etc/file")
	at := mountOverlay(t, disk, h.dir+"/at", "lowerdir=layer:"+h.dir+"/data")
	made(t, disk+"/off/upper", disk+"/off/work")
	off := mountOverlay(t, disk, h.dir+"/off", "uuid=off,lowerdir=layer,upperdir=off/upper,workdir=off/work")
	check := func(want error) {
		t.Helper()
		for _, source := range []string{at, off} {
			got, err := h.look(t).Classify("/", bind(source, "/x"))
			if !errors.Is(err, want) || got.Class != NoneOfOurs {
				t.Errorf("%s: %+v, %v; want %v", source, got, err, want)
			}
		}
	}
	check(nil)
	// The handle of a file that was copied up is that of the original.
	upper := made(t, disk+"/upper", disk+"/work")
	writable := mountOverlay(t, disk, h.dir+"/writable", "lowerdir=layer,upperdir=upper,workdir=work")
	h.write(t, writable+"/etc/file")
	must(t, os.WriteFile(writable+"/etc/file", []byte("more than there was"), 0o644))
	if got, err := h.look(t).Classify("/", bind(writable, "/x")); err != nil || got.Class != NoneOfOurs {
		t.Errorf("with a copy in %s: %+v, %v", upper, got, err)
	}
	must(t, syscall.Unmount(writable, syscall.MNT_DETACH), syscall.Unmount(disk, syscall.MNT_DETACH))
	check(errNoHandles)
}

// The host's /etc can be an overlay of an image that leads to a store path, as NixOS makes it.
// Engines bind single files of it into every container.
func TestOverlayOfEtc(t *testing.T) {
	h := newNixHost(t)
	must(t, os.WriteFile(h.path("a")+"/nix.conf", []byte("max-jobs = 1"), 0o644))
	metadata := diskWithoutUUID(t, h.dir+"/metadata")
	h.write(t, metadata+"/hosts")
	must(t, os.WriteFile(metadata+"/nix.conf", nil, 0o644), os.Truncate(metadata+"/nix.conf", 12),
		unix.Setxattr(metadata+"/nix.conf", "trusted.overlay.metacopy", nil, 0),
		unix.Setxattr(metadata+"/nix.conf", "trusted.overlay.redirect", []byte("/nix.conf"), 0))
	upper := made(t, h.dir+"/upper", h.dir+"/work")
	etc := mountOverlay(t, "/", h.dir+"/etc", "redirect_dir=on,metacopy=on,lowerdir="+metadata+"::"+h.path("a")+
		",upperdir="+upper+",workdir="+h.dir+"/work")
	must(t, os.WriteFile(etc+"/hosts", []byte("127.0.0.1 localhost"), 0o644),
		os.WriteFile(etc+"/resolv.conf", []byte("nameserver 127.0.0.1"), 0o644))
	for _, name := range []string{"hosts", "resolv.conf", "nix.conf"} {
		got, err := h.look(t).Classify("/", bind(etc+"/"+name, "/etc/"+name))
		want := []closure.BaseName{named("a")}
		if err != nil || got.Class != NoneOfOurs || !slices.Equal(got.Asked, want) {
			t.Errorf("%s: %+v, %v; want %s asked for", name, got, err, want)
		}
	}
}

// An optimised store has its files by hard links. A file of one store path says nothing of
// the others that have it too.
func TestHardLinksInLayers(t *testing.T) {
	h := newNixHost(t)
	h.write(t, h.path("a")+"/file")
	must(t, os.MkdirAll(h.path("b"), 0o755), os.Link(h.path("a")+"/file", h.path("b")+"/file"),
		os.Link(h.path("a")+"/file", h.store.Dir+"/.links/0456"))
	for _, name := range []string{"a", "b"} {
		at := mountOverlay(t, "/", h.dir+"/at-"+name, "lowerdir="+h.path(name)+":"+h.dir+"/data")
		got, err := h.look(t).Classify("/", bind(at, "/x"))
		if want := []closure.BaseName{named(name)}; err != nil || got.Class != NoneOfOurs ||
			!slices.Equal(got.Asked, want) {
			t.Errorf("%+v, %v; want %s asked for", got, err, want)
		}
	}
}

// Engines mask /sys/dev/block in containers, and so where they run in one.
func TestMaskedDevices(t *testing.T) {
	h := newNixHost(t)
	var st unix.Stat_t
	must(t, unix.Stat(h.dir, &st))
	image := h.dir + "/disk"
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20), f.Close())
	run(t, "mkfs.ext4", "-q", image)
	at := made(t, h.dir+"/mnt")
	run(t, "mount", "-o", "loop", image, at)
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	must(t, unix.Stat(at, &st))
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	check := func() {
		if files, err := backingFiles(device); err != nil || !slices.Equal(files, []string{image}) {
			t.Errorf("%s: %q, %v; want %s", device, files, err, image)
		}
		if files, err := backingFiles("4095:1"); err != nil || files != nil {
			t.Errorf("none: %q, %v", files, err)
		}
	}
	check()
	must(t, syscall.Mount("tmpfs", "/sys/dev/block", "tmpfs", 0, ""))
	t.Cleanup(func() { _ = syscall.Unmount("/sys/dev/block", syscall.MNT_DETACH) })
	check()
}

// A name is believed where only root can make it lead elsewhere.
func TestRootsAlone(t *testing.T) {
	dir := made(t, t.TempDir()+"/a/b")
	base := filepath.Dir(filepath.Dir(dir))
	must(t, os.Chmod(base, 0o755), os.Symlink("b", base+"/a/link"), os.Symlink("/usr/bin", base+"/a/away"),
		os.Symlink("link", base+"/a/twice"), os.Symlink("round", base+"/a/round"))
	h := &Host{}
	for name, want := range map[string]bool{
		"/usr": true, "/": true, "/usr/../etc": true, dir: true, base + "/a/link": true, base + "/a/away": true,
		base + "/a/twice/.": true, base + "/a/round": false, base + "/a/none": false, base + "/none/b": false,
	} {
		if h.rootsAlone(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	must(t, os.Chmod(base+"/a", 0o777))
	if (&Host{}).rootsAlone(dir) {
		t.Error("anybody can rename it")
	}
	must(t, os.Chmod(base+"/a", 0o777|os.ModeSticky))
	if !(&Host{}).rootsAlone(dir) {
		t.Error("root's in a sticky directory")
	}
	must(t, os.Lchown(base+"/a/link", 12345, 12345), os.Chown(dir, 12345, 12345))
	if (&Host{}).rootsAlone(base+"/a/link") || (&Host{}).rootsAlone(dir) {
		t.Error("another's in a sticky directory")
	}
	must(t, os.Chmod(base+"/a", 0o755), os.Chown(base+"/a", 12345, 12345))
	if (&Host{}).rootsAlone(dir) {
		t.Error("a directory of another user's")
	}
}

// In an overlay with redirects, a directory of the store can have any name.
func TestRedirects(t *testing.T) {
	h := newNixHost(t)
	at := mountOverlay(t, "/", h.dir+"/at", "redirect_dir=on,lowerdir="+h.dir+"/host/nix,upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))
	must(t, os.Rename(at+"/store", at+"/music"), os.RemoveAll(at+"/var"))
	if got, err := h.look(t).Classify("/", bind(at, "/x")); err != nil || got.Class != Leaks ||
		got.Shows != h.store.Dir {
		t.Errorf("%+v, %v", got, err)
	}
}

// A redirect can lead above the store, too.
func TestRedirectAboveTheStore(t *testing.T) {
	h := newNixHost(t)
	at := mountOverlay(t, "/", h.dir+"/at", "redirect_dir=on,lowerdir="+h.dir+"/host,upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))
	must(t, os.Rename(at+"/nix", at+"/music"), os.RemoveAll(at+"/music/var"))
	if got, err := h.look(t).Classify("/", bind(at, "/x")); err != nil || got.Class != Leaks ||
		got.Shows != h.store.Dir {
		t.Errorf("%+v, %v", got, err)
	}
}

// Where the upper layer is on another file system and has no inode numbers of its own for
// those of the lower ones (xino=off), times and sizes tell.
func TestMadeUpInodes(t *testing.T) {
	h := newNixHost(t)
	memory := made(t, h.dir+"/memory")
	must(t, syscall.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = syscall.Unmount(memory, syscall.MNT_DETACH) })
	users := h.store.StateDir + "/gcroots/per-user"
	made(t, users+"/alice") // a directory of nothing but directories
	for i, layer := range []string{h.store.Dir, users} {
		at, dir := h.dir+"/at"+strconv.Itoa(i), memory+"/"+strconv.Itoa(i)
		alias := bindMount(t, layer, at+"-alias")
		mountOverlay(t, "/", at, "xino=off,lowerdir="+alias+",upperdir="+made(t, dir+"/upper")+",workdir="+
			made(t, dir+"/work"))
		must(t, syscall.Unmount(alias, 0))
		withoutHandles(t, func() {
			got, err := h.look(t).Classify("/", bind(at, "/x"))
			if err != nil || got.Class != Leaks || got.Shows != layer {
				t.Errorf("%+v, %v; want that it shows %s", got, err, layer)
			}
		})
	}
}

// vanish mounts an overlay by names that are no more. upper and work are in one directory.
func vanish(t *testing.T, at, lower, upper, work string) {
	t.Helper()
	alias := bindMount(t, lower, at+"-lower")
	both := bindMount(t, filepath.Dir(upper), at+"-both")
	mountOverlay(t, "/", at, "lowerdir="+alias+",upperdir="+both+"/"+filepath.Base(upper)+
		",workdir="+both+"/"+filepath.Base(work))
	must(t, syscall.Unmount(alias, 0), syscall.Unmount(both, 0), os.Remove(alias), os.Remove(both))
}

// A host whose state directory is on an overlay: each layer is guarded that has a part of
// what shows, though another has the same names.
func TestLayersWithTheSameNames(t *testing.T) {
	h := newNixHost(t)
	made(t, h.dir+"/rw/upper", h.dir+"/rw/work")
	nix := made(t, h.dir+"/live/nix")
	vanish(t, nix, h.dir+"/host/nix", h.dir+"/rw/upper", h.dir+"/rw/work")
	must(t, os.RemoveAll(nix+"/var/nix/profiles"), os.MkdirAll(nix+"/var/nix/profiles/per-user/root", 0o755))
	h.store.Dir, h.store.StateDir = nix+"/store", nix+"/var/nix"
	// From elsewhere, so that no position is the one that the names had.
	moved := bindMount(t, h.dir+"/rw/upper/var/nix", h.dir+"/moved")
	for _, source := range []string{
		h.dir + "/rw/upper/var/nix", h.dir + "/rw/upper/var/nix/profiles/per-user/root", h.dir + "/host/nix/var/nix/db",
		moved,
	} {
		if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != Leaks {
			t.Errorf("%s: %+v, %v", source, got, err)
		}
	}
}

// The file of the disk of a layer, where the kernel gives no handles.
func TestLayerOnADisk(t *testing.T) {
	h := newNixHost(t)
	image := made(t, h.dir+"/images") + "/disk"
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20), f.Close())
	run(t, "mkfs.ext4", "-q", image)
	disk := made(t, h.dir+"/disk")
	run(t, "mount", "-o", "loop", image, disk)
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	run(t, "cp", "-a", h.store.Dir, disk+"/store")
	live := mountOverlay(t, "/", h.dir+"/live/nix/store", "lowerdir="+disk+"/store,upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))
	h.store.Dir, h.store.StateDir = live, made(t, h.dir+"/live/nix/var/nix")
	check := func() {
		for _, source := range []string{image, h.dir + "/images"} {
			if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != Leaks {
				t.Errorf("%s: %+v, %v", source, got, err)
			}
		}
	}
	check()
	withoutHandles(t, check)
}

// A host that is itself in a container: its root directory is an overlay by names that are
// no more. The files of an overlay of that have no handles, so that one with a name that
// others can change tells nothing.
func TestHostInAContainer(t *testing.T) {
	h := newNixHost(t)
	made(t, h.dir+"/rw/upper", h.dir+"/rw/work")
	live := made(t, h.dir+"/live")
	vanish(t, live, h.dir+"/host", h.dir+"/rw/upper", h.dir+"/rw/work")
	made(t, live+"/srv/data")
	h.store.Dir, h.store.StateDir = live+"/nix/store", live+"/nix/var/nix"
	for source, want := range map[string]int{live + "/srv": 0, live + "/srv/data": 0, h.path("a"): 1} {
		got, err := h.look(t).Classify("/", bind(source, "/x"))
		if err != nil || got.Class != NoneOfOurs || len(got.Asked) != want {
			t.Errorf("%s: %+v, %v; want %d store paths asked for", source, got, err, want)
		}
	}
	link := h.link(t, h.path("a"), "links/link")
	at := mountOverlay(t, "/", h.dir+"/at", "lowerdir="+link+":"+h.dir+"/data")
	must(t, os.Remove(link), os.Symlink(h.dir+"/data", link), os.Chmod(filepath.Dir(link), 0o777))
	const want = "is named by a path that others than root can change"
	if got, err := h.look(t).Classify("/", bind(at, "/x")); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A layer of the host's own overlay is on a disk that is mounted nowhere any more. The host's
// files are looked at as ever, and of another overlay by names that are no more, nothing is
// known.
func TestDeadLayers(t *testing.T) {
	h := newNixHost(t)
	image, disk := made(t, h.dir+"/images")+"/disk", made(t, h.dir+"/disk")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20), f.Close())
	run(t, "mkfs.ext4", "-q", image)
	run(t, "mount", "-o", "loop", image, disk)
	run(t, "cp", "-a", h.dir+"/host/nix", disk+"/nix")
	made(t, disk+"/srv/data")
	live := mountOverlay(t, "/", h.dir+"/live", "lowerdir="+disk+",upperdir="+
		made(t, h.dir+"/upper")+",workdir="+made(t, h.dir+"/work"))
	another := mountOverlay(t, "/", h.dir+"/another",
		"lowerdir="+disk+"/nix/store/"+string(named("a"))+":"+h.dir+"/data")
	must(t, syscall.Unmount(disk, syscall.MNT_DETACH), os.Remove(disk))
	h.store.Dir, h.store.StateDir = live+"/nix/store", live+"/nix/var/nix"
	for source, want := range map[string]int{live + "/srv": 0, h.path("a"): 1} {
		got, err := h.look(t).Classify("/", bind(source, "/x"))
		if err != nil || got.Class != NoneOfOurs || len(got.Asked) != want {
			t.Errorf("%s: %+v, %v; want %d store paths asked for", source, got, err, want)
		}
	}
	if got, err := h.look(t).Classify("/", bind(another, "/x")); err == nil ||
		!strings.Contains(err.Error(), "leads nowhere") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Looking leaves nothing open.
func TestLookCloses(t *testing.T) {
	h := newNixHost(t)
	at := mountOverlay(t, "/", h.dir+"/at", "lowerdir="+h.dir+"/data:"+h.dir+"/othernix")
	count := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(open)
	}
	before := count()
	for range 3 {
		host := h.look(t)
		if got, err := host.Classify("/", bind(at, "/x")); err != nil || got.Class != NoneOfOurs {
			t.Errorf("%+v, %v", got, err)
		}
		host.Close()
	}
	if after := count(); after != before {
		t.Errorf("%d files are open, were %d", after, before)
	}
}

// The host's processes show the store by their roots, and those of other containers what
// these see. Each mount of /proc is a file system of its own.
func TestProcesses(t *testing.T) {
	h := newNixHost(t)
	another := made(t, h.dir+"/proc")
	must(t, syscall.Mount("proc", another, "proc", 0, ""))
	t.Cleanup(func() { _ = syscall.Unmount(another, syscall.MNT_DETACH) })
	for source, want := range map[string]Class{
		"/proc": Leaks, "/proc/1": Leaks, "/proc/self": Leaks, "/proc/sys": NoneOfOurs, "/proc/cpuinfo": NoneOfOurs,
		another: Leaks, another + "/1": Leaks, another + "/sys": NoneOfOurs,
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
	// A container has the /proc of its own PID namespace, and no other.
	root := bindMount(t, h.dir+"/bundle/rootfs", h.dir+"/root")
	first := exec.Command("unshare", "--pid", "--fork", "--kill-child", "sh", "-c",
		"mount -t proc proc "+made(t, root+"/proc")+" && echo mounted && exec sleep 600")
	said, err := first.StdoutPipe()
	must(t, err, first.Start())
	t.Cleanup(func() {
		_ = first.Process.Kill()
		_ = first.Wait()
		_ = syscall.Unmount(root+"/proc", syscall.MNT_DETACH)
	})
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || line != "mounted\n" {
		t.Fatal(line, err)
	}
	own, err := os.Stat("/proc/" + strconv.Itoa(first.Process.Pid) + "/ns/pid_for_children")
	must(t, err)
	other, err := os.Stat("/proc/self/ns/pid")
	must(t, err)
	mounts, err := ParseMounts(readFile(t, "/proc/self/mountinfo"))
	must(t, err)
	for namespace, want := range map[os.FileInfo]string{own: "", other: "mount on /proc: shows the processes"} {
		host := h.look(t)
		host.OwnPIDs = namespace
		_, err := host.CheckMounts(mounts, root)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A mount that cannot be looked into matters to nobody until a container has it.
func TestLayeredHost(t *testing.T) {
	h := newNixHost(t)
	nix := h.dir + "/live/nix"
	mountOverlay(t, "/", nix, "lowerdir="+h.dir+"/host/nix,upperdir="+made(t, h.dir+"/up")+",workdir="+
		made(t, h.dir+"/work"))
	h.store.Dir, h.store.StateDir = nix+"/store", nix+"/var/nix"
	for i := range 3 {
		at := h.dir + "/others/" + strconv.Itoa(i)
		mountOverlay(t, "/", at, "lowerdir="+h.dir+"/data:"+made(t, at+"-lower"))
		must(t, syscall.Mount("tmpfs", at, "tmpfs", 0, ""))
		t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	}
	check := func() {
		for source, want := range map[string]Class{
			h.dir + "/data": NoneOfOurs, h.dir + "/host/nix": Leaks, h.dir + "/host/nix/store": Leaks,
			h.path("a"): NoneOfOurs,
		} {
			if got, err := h.look(t).Classify("/", bind(source, "/x")); err != nil || got.Class != want {
				t.Errorf("%s: %+v, %v; want %v", source, got, err, want)
			}
		}
		if got, err := h.look(t).Classify("/", bind(h.dir+"/others/0", "/x")); err != nil || got.Class != NoneOfOurs {
			t.Errorf("%+v, %v", got, err) // the tmpfs
		}
	}
	check()
	withoutHandles(t, check)
}

// The file of a file system without a disk is what its source says.
func TestFilesOf(t *testing.T) {
	image := filepath.Join(t.TempDir(), "store image")
	must(t, os.WriteFile(image, nil, 0o600))
	escaped := strings.ReplaceAll(image, " ", `\040`)
	mounts, err := ParseMounts([]byte("30 1 0:99 / /nix/store ro - erofs " + escaped + " ro\n" +
		"31 1 0:98 / /tmp rw - tmpfs " + escaped + " rw\n32 1 0:97 / /x rw - btrfs /nowhere rw\n"))
	must(t, err)
	h := &Host{mounts: mounts}
	for device, want := range map[string][]string{"0:99": {image}, "0:98": nil, "0:97": nil, "0:96": nil} {
		if got, err := h.filesOf(device); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", device, got, err, want)
		}
	}
	if mounts[0].ownsItsFiles() || !mounts[1].ownsItsFiles() || mounts[2].ownsItsFiles() {
		t.Error("erofs of a file can be mounted twice, a tmpfs cannot")
	}
}

// A type of file system that is not known may have a server.
func TestMovable(t *testing.T) {
	for kind, want := range map[string]bool{
		"ext4": false, "overlay": false, "btrfs": false, "proc": false, "tmpfs": false,
		"nfs4": true, "fuse.sshfs": true, "virtiofs": true, "9p": true, "lustre": true, "": true,
	} {
		if isMovable(kind) != want {
			t.Errorf("%s: %v", kind, !want)
		}
	}
	mounts, err := ParseMounts([]byte("1 1 8:1 / / rw - ext4 /dev/a rw\n2 1 0:50 / /remote rw - nfs4 s:/x rw\n" +
		"3 1 0:51 / /c rw - overlay overlay lowerdir=/var/layers/1:/remote/layers/2,upperdir=/var/u,workdir=/var/w\n" +
		"4 1 0:52 / /d rw - overlay overlay lowerdir=/var/layers/1,upperdir=/var/u,workdir=/var/w\n"))
	must(t, err)
	h := &Host{mounts: mounts}
	if err := h.CheckServers(mounts, "/c", "/nix/store"); err == nil ||
		!strings.Contains(err.Error(), "/ of the container is on a nfs4") {
		t.Error(err)
	}
	if err := h.CheckServers(mounts, "/d", "/nix/store"); err != nil {
		t.Error(err)
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
