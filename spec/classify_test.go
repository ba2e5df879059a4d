// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// nixHost is a host with a store and a state directory below dir/host.
type nixHost struct {
	dir   string
	store closure.Store
}

func newNixHost(t *testing.T) nixHost {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := nixHost{dir, closure.Store{Dir: dir + "/host/nix/store", StateDir: dir + "/host/nix/var/nix"}}
	for _, path := range []string{
		h.path("a") + "/bin/run", h.path("file"), h.path("a") + ".lock", h.store.Dir + "/.links/0123",
		h.store.StateDir + "/db/db.sqlite", h.store.StateDir + "/db/db.sqlite-wal", h.store.StateDir + "/gc.lock",
		h.store.StateDir + "/profiles/per-user/root/channels", h.store.StateDir + "/gcroots/auto/x",
		dir + "/data/file", dir + "/data/sub/file", dir + "/bundle/rootfs/etc/x", dir + "/othernix/store/other",
	} {
		h.write(t, path)
	}
	if err := os.Mkdir(h.store.StateDir+"/daemon-socket", 0o755); err != nil {
		t.Fatal(err)
	}
	// By a short name: the path of a socket has at most 107 characters.
	t.Chdir(h.store.StateDir + "/daemon-socket")
	l, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return h
}

func (h nixHost) write(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// path is a store path of this host.
func (h nixHost) path(name string) string { return h.store.Path(named(name)) }

func (h nixHost) link(t *testing.T, target, name string) string {
	t.Helper()
	path := h.dir + "/" + name
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
	return path
}

// look is LookAtHost with the mounts that there are now.
func (h nixHost) look(t *testing.T) *Host {
	t.Helper()
	host, err := LookAtHost(h.store, h.dir+"/run", readFile(t, "/proc/self/mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func bind(source, destination string) specs.Mount {
	return specs.Mount{Destination: destination, Source: source, Type: "bind",
		Options: []string{"rbind", "rprivate", "ro"}}
}

func kind(kind, destination, source string, options ...string) specs.Mount {
	return specs.Mount{Destination: destination, Type: kind, Source: source, Options: options}
}

func TestClassify(t *testing.T) {
	h := newNixHost(t)
	store, state, nix := h.store.Dir, h.store.StateDir, h.dir+"/host/nix"

	// Other names of the same, as an administrator makes them.
	alias := h.dir + "/alias/"
	bindMount(t, store, alias+"store")
	bindMount(t, nix, alias+"nix")
	bindMount(t, h.dir+"/host", alias+"host")
	bindMount(t, state, alias+"state")
	bindMount(t, store+"/.links", alias+"links")
	bindMount(t, state+"/db", alias+"db")
	bindMount(t, state+"/db/db.sqlite", alias+"database")
	bindMount(t, state+"/daemon-socket/socket", alias+"socket")
	bindMount(t, h.path("a"), alias+"path")
	bindMount(t, store, h.dir+"/nested/with space/store")
	bindMount(t, state+"/daemon-socket", h.dir+"/nested-socket/deep")
	bindMount(t, h.path("a"), h.dir+"/nested-path/deep")
	bindMount(t, h.dir+"/data", h.dir+"/nested-data/deep")
	link := h.link(t, store, "links/store")
	h.link(t, "store", "links/chain")
	h.link(t, "../host", "links/host")
	h.link(t, nix, "links/nix")
	h.link(t, h.path("a"), "links/path")
	h.link(t, state+"/daemon-socket/socket", "links/socket")
	h.link(t, "loop", "links/loop")
	h.link(t, h.dir+"/nowhere", "links/dangling")
	links := filepath.Dir(link)
	device := func(name string, number uint64) string {
		t.Helper()
		if err := unix.Mknod(h.dir+"/"+name, unix.S_IFBLK|0o600, int(number)); err != nil {
			t.Fatal(err)
		}
		return h.dir + "/" + name
	}
	var st unix.Stat_t
	if err := unix.Stat(store, &st); err != nil {
		t.Fatal(err)
	}
	disk, otherDisk := device("disk", st.Dev), device("other-disk", unix.Mkdev(240, 17))
	h.link(t, disk, "links/by-uuid")
	bundle := h.dir + "/bundle"

	for _, c := range []struct {
		name  string
		mount specs.Mount
		want  Class
		shows string
	}{
		// On the store directory, or inside it: whatever it is.
		{name: "the store", mount: bind(store, store), want: Replaced},
		{name: "slash at the end", mount: bind(store, store+"/"), want: Replaced},
		{name: "slashes", mount: bind(store, strings.ReplaceAll(store, "/", "//")+"//"), want: Replaced},
		{name: "dots", mount: bind(store, nix+"/./var/../store/."), want: Replaced},
		{name: "no slash at the beginning", mount: bind(store, store[1:]), want: Replaced},
		{name: "dots at the beginning", mount: bind(store, "../.."+store), want: Replaced},
		{name: "the root of the host on the store", mount: bind("/", store), want: Replaced},
		{name: "something else on the store", mount: bind(h.dir+"/data", store), want: Replaced},
		{name: "what does not exist, on the store", mount: bind(h.dir+"/nowhere", store), want: Replaced},
		{name: "what cannot be looked at, on the store", mount: bind(links+"/loop", store), want: Replaced},
		{name: "a tmpfs on the store", mount: kind("tmpfs", store, "tmpfs"), want: Replaced},
		{name: "an overlay on the store", mount: kind("overlay", store, "overlay", "lowerdir="+store+`:/a\:b`),
			want: Replaced},

		// Inside it: a store path on its own place, or nothing.
		{name: "inside the store", mount: bind(h.path("a"), h.path("a")), want: Admitted},
		{name: "a file inside the store", mount: bind(h.path("file"), h.path("file")), want: Admitted},
		{name: "below a store path, on its own place", mount: bind(h.path("a")+"/bin/run", h.path("a")+"/bin/run"),
			want: Admitted},
		{name: "inside the store by an alias", mount: bind(alias+"store/"+string(named("a")), h.path("a")),
			want: Admitted},
		{name: "inside the store by a symbolic link", mount: bind(links+"/path", h.path("a")), want: Admitted},
		{name: "one store path on another's place", mount: bind(h.path("a"), h.path("file")), shows: "error"},
		{name: "below a store path on another's place", mount: bind(h.path("a")+"/bin/run", h.path("a")+"/run"),
			shows: "error"},
		{name: "a store path that is not there", mount: bind(h.path("nowhere"), h.path("nowhere")), shows: "error"},
		{name: "an overlay on a store path", mount: kind("overlay", h.path("a"), "overlay", "lowerdir="+h.path("a")),
			shows: "error"},
		{name: "a tmpfs on a store path", mount: kind("tmpfs", h.path("a"), "tmpfs"), shows: "error"},
		{name: "inside the store, no store path", mount: kind("tmpfs", store+"/.links", "tmpfs"), shows: "error"},
		{name: "the links on their own place", mount: bind(store+"/.links", store+"/.links"), shows: "error"},
		{name: "deep inside the store", mount: bind(h.dir+"/data/file", h.path("a")+"/etc/x"), shows: "error"},

		// Above it, and it shows the store there.
		{name: "the parent", mount: bind(nix, nix), want: Replaced},
		{name: "the parent with a slash", mount: bind(nix+"/", nix+"/"), want: Replaced},
		{name: "the parent without its mounts", mount: kind("bind", nix, nix, "bind"), want: Replaced},
		{name: "the parent by an alias", mount: bind(alias+"nix", nix), want: Replaced},
		{name: "the parent by a symbolic link", mount: bind(links+"/nix", nix), want: Replaced},
		{name: "the parent's parent", mount: bind(h.dir+"/host", h.dir+"/host"), want: Replaced},
		{name: "the parent's parent by an alias", mount: bind(alias+"host", h.dir+"/host"), want: Replaced},
		{name: "the parent as a layer", mount: kind("overlay", nix, "overlay", "lowerdir="+h.dir+"/data:"+nix),
			want: Replaced},

		// Elsewhere.
		{name: "the root of the host", mount: bind("/", "/host"), want: Leaks, shows: "/"},
		{name: "the root of the host as root", mount: bind("/", "/"), want: Leaks, shows: "/"},
		{name: "the root of the host without its mounts", mount: kind("bind", "/host", "/", "bind"), want: Leaks,
			shows: "/"},
		{name: "store elsewhere", mount: bind(store, "/mnt/store"), want: Leaks, shows: store},
		{name: "store on a path that begins the same", mount: bind(store, store+"X"), want: Leaks, shows: store},
		{name: "store below the parent", mount: bind(store, nix+"/stor"), want: Leaks, shows: store},
		{name: "parent elsewhere", mount: bind(nix, "/mnt"), want: Leaks, shows: nix},
		{name: "parent's parent on the parent", mount: bind(h.dir+"/host", nix), want: Leaks, shows: h.dir + "/host"},
		{name: "store on the parent", mount: bind(store, nix), want: Leaks, shows: store},
		{name: "an ancestor far above", mount: bind(filepath.Dir(h.dir), "/mnt"), want: Leaks,
			shows: filepath.Dir(h.dir)},
		{name: "type none", mount: kind("none", "/mnt", store, "rbind"), want: Leaks, shows: store},
		{name: "no type", mount: kind("", "/mnt", store, "ro", "bind"), want: Leaks, shows: store},
		{name: "type bind and no option", mount: kind("bind", "/mnt", store), want: Leaks, shows: store},
		{name: "slashes in the source", mount: bind(store+"//", "/mnt"), want: Leaks, shows: store},
		{name: "dots in the source", mount: bind(state+"/../../store/.", "/mnt"), want: Leaks, shows: store},
		{name: "a symbolic link", mount: bind(links+"/store", "/mnt"), want: Leaks, shows: store},
		{name: "a chain of symbolic links", mount: bind(links+"/chain", "/mnt"), want: Leaks, shows: store},
		{name: "a symbolic link to an ancestor", mount: bind(links+"/host", "/mnt"), want: Leaks,
			shows: h.dir + "/host"},
		{name: "by way of a symbolic link", mount: bind(links+"/host/nix/store", "/mnt"), want: Leaks, shows: store},
		{name: "relative to the bundle", mount: bind("../host/nix/store", "/mnt"), want: Leaks, shows: store},
		{name: "relative to the bundle, by way of a symbolic link", mount: bind("../links/nix", "/mnt"), want: Leaks,
			shows: nix},
		{name: "an alias of the store", mount: bind(alias+"store", "/mnt"), want: Leaks, shows: store},
		{name: "an alias of the parent", mount: bind(alias+"nix", "/mnt"), want: Leaks, shows: nix},
		{name: "an alias of the parent's parent", mount: bind(alias+"host", "/mnt"), want: Leaks,
			shows: h.dir + "/host"},
		{name: "by way of an alias", mount: bind(alias+"host/nix/store", "/mnt"), want: Leaks, shows: store},
		{name: "the links", mount: bind(store+"/.links", "/mnt"), want: Leaks, shows: store + "/.links"},
		{name: "one of the links", mount: bind(store+"/.links/0123", "/mnt"), want: Leaks,
			shows: store + "/.links/0123"},
		{name: "an alias of the links", mount: bind(alias+"links", "/mnt"), want: Leaks, shows: store + "/.links"},
		{name: "the links by an alias of the store", mount: bind(alias+"store/.links", "/mnt"), want: Leaks,
			shows: store + "/.links"},
		{name: "a lock in the store", mount: bind(h.path("a")+".lock/../.links", "/mnt"), shows: "error"},
		{name: "the state directory", mount: bind(state, "/mnt"), want: Leaks, shows: state},
		{name: "above the state directory", mount: bind(filepath.Dir(state), "/mnt"), want: Leaks,
			shows: filepath.Dir(state)},
		{name: "the state directory on the store's parent", mount: bind(filepath.Dir(state), nix), want: Leaks,
			shows: filepath.Dir(state)},
		{name: "an alias of the state directory", mount: bind(alias+"state", "/mnt"), want: Leaks, shows: state},
		{name: "a directory in the state directory", mount: bind(state+"/profiles", "/mnt"), want: Leaks,
			shows: state + "/profiles"},
		{name: "deep in the state directory", mount: bind(state+"/profiles/per-user/root", "/mnt"), want: Leaks,
			shows: state + "/profiles/per-user/root"},
		{name: "a directory in an alias of the state directory", mount: bind(alias+"state/gcroots", "/mnt"),
			want:  Leaks,
			shows: state + "/gcroots"},
		{name: "the database", mount: bind(state+"/db/db.sqlite", "/mnt"), want: Leaks, shows: state + "/db/db.sqlite"},
		{name: "the database's directory by an alias", mount: bind(alias+"db", "/mnt"), want: Leaks,
			shows: state + "/db"},
		{name: "the database by an alias of its directory", mount: bind(alias+"db/db.sqlite", "/mnt"), want: Leaks,
			shows: state + "/db/db.sqlite"},
		{name: "the database by an alias of the file", mount: bind(alias+"database", "/mnt"), want: Leaks,
			shows: state + "/db/db.sqlite"},
		{name: "the daemon's socket", mount: bind(state+"/daemon-socket/socket", "/run/nix"), want: Leaks,
			shows: state + "/daemon-socket/socket"},
		{name: "the daemon's socket by a symbolic link", mount: bind(links+"/socket", "/run/nix"), want: Leaks,
			shows: state + "/daemon-socket/socket"},
		{name: "the daemon's socket by an alias", mount: bind(alias+"socket", "/run/nix"), want: Leaks,
			shows: state + "/daemon-socket/socket"},
		{name: "the daemon's directory", mount: bind(state+"/daemon-socket", "/run/nix"), want: Leaks,
			shows: state + "/daemon-socket"},
		{name: "an alias below the source", mount: bind(h.dir+"/nested", "/mnt"), want: Leaks, shows: store},
		{name: "an alias far below the source", mount: kind("bind", "/mnt", h.dir+"/nested"), want: Leaks,
			shows: store},
		{name: "an alias of the daemon's directory below the source", mount: bind(h.dir+"/nested-socket", "/mnt"),
			want:  Leaks,
			shows: state + "/daemon-socket"},
		{name: "a layer", mount: kind("overlay", "/mnt", "overlay", "lowerdir="+store, "ro"), want: Leaks,
			shows: store},
		{name: "one of the layers",
			mount: kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:"+alias+"store:/nowhere"),
			want:  Leaks, shows: store},
		{name: "the data of a layer", mount: kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data::"+nix),
			want: Leaks, shows: nix},
		{name: "a layer of its own option", mount: kind("overlay", "/mnt", "overlay", "lowerdir+="+h.dir+"/data",
			"lowerdir+="+store), want: Leaks, shows: store},
		{name: "data of its own option", mount: kind("overlay", "/mnt", "overlay", "datadir+="+store), want: Leaks,
			shows: store},
		{name: "the upper layer",
			mount: kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data", "upperdir="+links+"/store",
				"workdir="+h.dir+"/data"), want: Leaks, shows: store},
		{name: "the work directory", mount: kind("overlay", "/mnt", "overlay", "workdir="+state), want: Leaks,
			shows: state},
		{name: "the disk", mount: kind("ext4", "/mnt", disk, "ro"), want: Leaks, shows: store},
		{name: "the disk by a symbolic link", mount: kind("btrfs", "/mnt", links+"/by-uuid"), want: Leaks,
			shows: store},

		// None of our business.
		{name: "proc", mount: kind("proc", "/proc", "proc", "nosuid"), want: NoneOfOurs},
		{name: "sysfs", mount: kind("sysfs", "/sys", "sysfs"), want: NoneOfOurs},
		{name: "cgroup", mount: kind("cgroup", "/sys/fs/cgroup", "cgroup", "ro"), want: NoneOfOurs},
		{name: "a tmpfs", mount: kind("tmpfs", "/tmp", "tmpfs"), want: NoneOfOurs},
		{name: "a tmpfs on the parent", mount: kind("tmpfs", nix, "tmpfs"), want: NoneOfOurs},
		{name: "a tmpfs named after the store", mount: kind("tmpfs", "/mnt", store), want: NoneOfOurs},
		{name: "an empty directory on the parent", mount: bind(h.dir+"/data/sub", nix), want: NoneOfOurs},
		{name: "another store's parent on the parent", mount: bind(h.dir+"/othernix", nix), want: NoneOfOurs},
		{name: "a directory", mount: bind(h.dir+"/data", "/data"), want: NoneOfOurs},
		{name: "a file", mount: bind(h.dir+"/data/file", "/etc/hostname"), want: NoneOfOurs},
		{name: "a directory relative to the bundle", mount: bind("rootfs/etc", "/mnt"), want: NoneOfOurs},
		{name: "a directory with a mount of another", mount: bind(h.dir+"/nested-data", "/mnt"), want: NoneOfOurs},
		{name: "a store path", mount: bind(h.path("a"), "/app"), want: NoneOfOurs},
		{name: "a store path that is a file", mount: bind(h.path("file"), "/app"), want: NoneOfOurs},
		{name: "below a store path", mount: bind(h.path("a")+"/bin/run", "/bin/run"), want: NoneOfOurs},
		{name: "a store path by a symbolic link", mount: bind(links+"/path", "/app"), want: NoneOfOurs},
		{name: "a store path by an alias of the store", mount: bind(alias+"store/"+string(named("a")), "/app"),
			want: NoneOfOurs},
		{name: "an alias of a store path", mount: bind(alias+"path", "/app"), want: NoneOfOurs},
		{name: "a directory with an alias of a store path", mount: bind(h.dir+"/nested-path", "/app"),
			want: NoneOfOurs},
		{name: "a directory without the alias below it", mount: kind("bind", "/mnt", h.dir+"/nested", "bind"),
			want: NoneOfOurs},
		{name: "symbolic links", mount: bind(links, "/mnt"), want: NoneOfOurs},
		{name: "what does not exist", mount: bind(h.dir+"/nowhere", "/mnt"), want: NoneOfOurs},
		{name: "a symbolic link that leads nowhere", mount: bind(links+"/dangling", "/mnt"), want: NoneOfOurs},
		{name: "an overlay of others", mount: kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:"+links,
			"upperdir="+h.dir+"/data/sub", "index=off"), want: NoneOfOurs},
		{name: "another disk", mount: kind("ext4", "/mnt", otherDisk), want: NoneOfOurs},
		{name: "a device", mount: bind("/dev/null", "/dev/null"), want: NoneOfOurs},
		{name: "nothing", mount: specs.Mount{}, want: NoneOfOurs},

		// What cannot be found out.
		{name: "a loop", mount: bind(links+"/loop", "/mnt"), shows: "error"},
		{name: "below a file", mount: bind(h.dir+"/data/file/x", "/mnt"), shows: "error"},
		{name: "NUL", mount: bind(h.dir+"/data\x00", "/mnt"), shows: "error"},
		{name: "a name too long", mount: bind(h.dir+"/"+strings.Repeat("x", 300), "/mnt"), shows: "error"},
		{name: "a layer relative to the bundle", mount: kind("overlay", "/mnt", "overlay", "lowerdir=../host/nix"),
			shows: "error"},
		{name: "a harmless layer relative to the bundle",
			mount: kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:../data"), shows: "error"},
		{name: "a backslash in a layer", mount: kind("overlay", "/mnt", "overlay", `lowerdir=/a\:b`), shows: "error"},
		{name: "a backslash in the upper layer", mount: kind("overlay", "/mnt", "overlay", "upperdir=/a\\,b"),
			shows: "error"},
		{name: "a loop as a layer", mount: kind("overlay", "/mnt", "overlay", "lowerdir="+links+"/loop"),
			shows: "error"},
	} {
		got, err := h.look(t).Classify(bundle, c.mount)
		if c.shows == "error" {
			if err == nil {
				t.Errorf("%s: %+v and no error", c.name, got)
			}
			continue
		}
		if err != nil || got.Class != c.want || got.Shows != c.shows {
			t.Errorf("%s: %+v, %v; want %v, %q", c.name, got, err, c.want, c.shows)
		}
	}
}

// The store directory and the state directory may be reached by symbolic links,
// and are guarded by both names.
func TestStoreBehindALink(t *testing.T) {
	h := newNixHost(t)
	real := h.store
	h.store = closure.Store{Dir: h.link(t, h.dir+"/host/nix", "short") + "/store", StateDir: h.dir + "/short/var/nix"}
	other := h.dir + "/elsewhere"
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mount specs.Mount
		want  Class
	}{
		{bind(h.store.Dir, h.store.Dir), Replaced},
		{bind(real.Dir, h.store.Dir), Replaced},
		{bind(h.dir+"/short", h.dir+"/short"), Replaced},
		{bind(h.dir+"/host/nix", h.dir+"/short"), Replaced},
		{bind(h.store.Dir, "/mnt"), Leaks},
		{bind(real.Dir, "/mnt"), Leaks},
		{bind(h.dir+"/host", "/mnt"), Leaks},
		{bind(h.dir+"/host/nix", "/mnt"), Leaks},
		{bind(real.StateDir+"/profiles/per-user", "/mnt"), Leaks},
		{bind(h.store.StateDir+"/profiles/per-user", "/mnt"), Leaks},
		{bind(real.Dir+"/.links", "/mnt"), Leaks},
		{bind(real.Path(named("a")), "/mnt"), NoneOfOurs},
		{bind(h.store.Path(named("a")), "/mnt"), NoneOfOurs},
		{bind(other, "/mnt"), NoneOfOurs},
	} {
		if got, err := h.look(t).Classify("/", c.mount); err != nil || got.Class != c.want {
			t.Errorf("%s on %s: %+v, %v; want %v", c.mount.Source, c.mount.Destination, got, err, c.want)
		}
	}
}

func TestLookAtHost(t *testing.T) {
	h := newNixHost(t)
	if _, err := LookAtHost(closure.Store{Dir: h.dir + "/nowhere", StateDir: h.store.StateDir}, "/run",
		nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a store: %v", err)
	}
	// Nix was never run here; what is asked for is not valid then, and that is
	// said elsewhere.
	host, err := LookAtHost(closure.Store{Dir: h.store.Dir, StateDir: h.dir + "/nowhere"}, h.dir+"/run",
		readFile(t, "/proc/self/mountinfo"))
	if err != nil {
		t.Fatalf("without a state directory: %v", err)
	}
	for source, want := range map[string]Class{h.store.Dir: Leaks, h.dir + "/data": NoneOfOurs} {
		if v, err := host.Classify("/", bind(source, "/mnt")); v.Class != want || err != nil {
			t.Errorf("without a state directory: %+v, %v", v, err)
		}
	}
}

func TestMountsInStore(t *testing.T) {
	h := newNixHost(t)
	if got := h.look(t).MountsInStore(); len(got) > 0 {
		t.Errorf("none: %q", got)
	}
	bindMount(t, h.store.Dir, h.store.Dir) // as NixOS does, read-only
	bindMount(t, h.dir+"/data", h.dir+"/host/nix/storeX")
	if got := h.look(t).MountsInStore(); len(got) > 0 {
		t.Errorf("beside it: %q", got)
	}
	want := []string{bindMount(t, h.dir+"/data", h.path("a")+"/bin"),
		bindMount(t, h.dir+"/data", h.store.Dir+"/.links")}
	if got := h.look(t).MountsInStore(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// points are the mount points of a mountinfo that is understood.
func points(t *testing.T, mountinfo []byte) []string {
	t.Helper()
	mounts, err := ParseMounts(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range mounts {
		all = append(all, m.point)
	}
	return all
}

func TestMountPoints(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 35 98:0 /mnt1 /mnt/with\040space\011tab\012line\134backslash rw,noatime master:1 shared:3 -` +
		` ext3 /dev/root rw,errors=continue
37 35 98:0 /root /mnt/\1341 rw future:1 - ext3 /dev/root rw
38 35 0:4 net:[4026531840] /run/netns/x rw shared:9 - nsfs nsfs rw
39 35 0:5 / /empty rw -  tmpfs  rw
40 35 0:1 / /last rw - tmpfs tmpfs rw`
	want := []string{"/proc", "/", "/mnt/with space\ttab\nline\\backslash", `/mnt/\1`, "/run/netns/x", "/empty",
		"/last"}
	if got := points(t, []byte(strings.Replace(text, "-  tmpfs  rw", "- tmpfs  rw", 1))); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := points(t, nil); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}

// A line that is not understood may be the one that shows the store.
func TestMountinfoRefused(t *testing.T) {
	const good = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
	for _, line := range []string{
		"", "short 1 2 3", "38 35 98:0 /cut /off rw", "38 35 98:0 / /x rw - ext3",
		"38 35 98:0 / /x rw - ext3 /dev/root",
		"x 35 98:0 / /x rw - ext3 /dev/root rw", "38 x 98:0 / /x rw - ext3 /dev/root rw",
		"38 35 98 / /x rw - ext3 /dev/root rw",
		"38 35 a:0 / /x rw - ext3 /dev/root rw", "38 35 98:0  /x rw - ext3 /dev/root rw",
		"38 35 98:0 / x rw - ext3 /dev/root rw",
		"38 35 98:0 / /x rw -  /dev/root rw", `38 35 98:0 / /x\9 rw - ext3 /dev/root rw`,
		`38 35 98:0 /\04 /x rw - ext3 /dev/root rw`,
	} {
		if got, err := ParseMounts([]byte(good + line + "\n" + good)); !errors.Is(err, ErrMountinfo) {
			t.Errorf("%q: %v, %v", line, got, err)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/plain": "/plain", `\040`: " ", `\040\040`: "  ", `a\134b`: `a\b`, `\134040`: `\040`, `\043`: "#",
		`\377`:   "\xff",
		`/a\040`: "/a ",
	} {
		if got, ok := unescape(in); !ok || got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{`\`, `\0`, `\04`, `\400`, `\999`, `\+40`, `\x20`, `\\040`, `\0 40`} {
		if got, ok := unescape(in); ok {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// The mounts of this process, by the kernel's own hand.
func TestMountPointsOfTheKernel(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "with space", "tab\tline\n", `back\slash`, `\040`, "ä#ü", "\xff\x01",
		"a - b", "shared:1"} {
		target := bindMount(t, dir, dir+"/"+name)
		if got := points(t, readFile(t, "/proc/self/mountinfo")); !slices.Contains(got, target) {
			t.Errorf("%q is missing in %q", target, got)
		}
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

// What the kernel escapes is what is read.
func FuzzMountPoints(f *testing.F) {
	for _, s := range []string{"/", "/a b", "/tab\t", "/line\n", `/\`, `/\040`, "/#", "/\xff", "/é", "shared:1 - x"} {
		f.Add(s, []byte("22 27 0:21 / "+s+" rw - proc proc rw\n"))
	}
	f.Fuzz(func(t *testing.T, point string, raw []byte) {
		if mounts, err := ParseMounts(raw); err == nil {
			for _, m := range mounts {
				if len(m.point) > len(raw) {
					t.Errorf("%q has %q", raw, m.point)
				}
			}
		}
		if strings.ContainsRune(point, 0) || !strings.HasPrefix(point, "/") {
			return
		}
		// seq_path_root in fs/seq_file.c.
		escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace(point)
		line := "36 35 98:0 / " + escaped + " rw,noatime shared:3 - ext3 /dev/root rw\n"
		if got := points(t, []byte(line+line)); !slices.Equal(got, []string{point, point}) {
			t.Errorf("%q: %q", point, got)
		}
	})
}
