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
		{"the store", bind(store, store), Replaced, ""},
		{"slash at the end", bind(store, store+"/"), Replaced, ""},
		{"slashes", bind(store, strings.ReplaceAll(store, "/", "//")+"//"), Replaced, ""},
		{"dots", bind(store, nix+"/./var/../store/."), Replaced, ""},
		{"no slash at the beginning", bind(store, store[1:]), Replaced, ""},
		{"dots at the beginning", bind(store, "../.."+store), Replaced, ""},
		{"the root of the host on the store", bind("/", store), Replaced, ""},
		{"something else on the store", bind(h.dir+"/data", store), Replaced, ""},
		{"what does not exist, on the store", bind(h.dir+"/nowhere", store), Replaced, ""},
		{"what cannot be looked at, on the store", bind(links+"/loop", store), Replaced, ""},
		{"a tmpfs on the store", kind("tmpfs", store, "tmpfs"), Replaced, ""},
		{"an overlay on the store", kind("overlay", store, "overlay", "lowerdir="+store+`:/a\:b`), Replaced, ""},

		// Inside it: a store path on its own place, or nothing.
		{"inside the store", bind(h.path("a"), h.path("a")), Admitted, ""},
		{"a file inside the store", bind(h.path("file"), h.path("file")), Admitted, ""},
		{"below a store path, on its own place", bind(h.path("a")+"/bin/run", h.path("a")+"/bin/run"), Admitted, ""},
		{"inside the store by an alias", bind(alias+"store/"+string(named("a")), h.path("a")), Admitted, ""},
		{"inside the store by a symbolic link", bind(links+"/path", h.path("a")), Admitted, ""},
		{"one store path on another's place", bind(h.path("a"), h.path("file")), 0, "error"},
		{"below a store path on another's place", bind(h.path("a")+"/bin/run", h.path("a")+"/run"), 0, "error"},
		{"a store path that is not there", bind(h.path("nowhere"), h.path("nowhere")), 0, "error"},
		{"an overlay on a store path", kind("overlay", h.path("a"), "overlay", "lowerdir="+h.path("a")), 0, "error"},
		{"a tmpfs on a store path", kind("tmpfs", h.path("a"), "tmpfs"), 0, "error"},
		{"inside the store, no store path", kind("tmpfs", store+"/.links", "tmpfs"), 0, "error"},
		{"the links on their own place", bind(store+"/.links", store+"/.links"), 0, "error"},
		{"deep inside the store", bind(h.dir+"/data/file", h.path("a")+"/etc/x"), 0, "error"},

		// Above it, and it shows the store there.
		{"the parent", bind(nix, nix), Replaced, ""},
		{"the parent with a slash", bind(nix+"/", nix+"/"), Replaced, ""},
		{"the parent without its mounts", kind("bind", nix, nix, "bind"), Replaced, ""},
		{"the parent by an alias", bind(alias+"nix", nix), Replaced, ""},
		{"the parent by a symbolic link", bind(links+"/nix", nix), Replaced, ""},
		{"the parent's parent", bind(h.dir+"/host", h.dir+"/host"), Replaced, ""},
		{"the parent's parent by an alias", bind(alias+"host", h.dir+"/host"), Replaced, ""},
		{"the parent as a layer", kind("overlay", nix, "overlay", "lowerdir="+h.dir+"/data:"+nix), Replaced, ""},

		// Elsewhere.
		{"the root of the host", bind("/", "/host"), Leaks, "/"},
		{"the root of the host as root", bind("/", "/"), Leaks, "/"},
		{"the root of the host without its mounts", kind("bind", "/host", "/", "bind"), Leaks, "/"},
		{"store elsewhere", bind(store, "/mnt/store"), Leaks, store},
		{"store on a path that begins the same", bind(store, store+"X"), Leaks, store},
		{"store below the parent", bind(store, nix+"/stor"), Leaks, store},
		{"parent elsewhere", bind(nix, "/mnt"), Leaks, nix},
		{"parent's parent on the parent", bind(h.dir+"/host", nix), Leaks, h.dir + "/host"},
		{"store on the parent", bind(store, nix), Leaks, store},
		{"an ancestor far above", bind(filepath.Dir(h.dir), "/mnt"), Leaks, filepath.Dir(h.dir)},
		{"type none", kind("none", "/mnt", store, "rbind"), Leaks, store},
		{"no type", kind("", "/mnt", store, "ro", "bind"), Leaks, store},
		{"type bind and no option", kind("bind", "/mnt", store), Leaks, store},
		{"slashes in the source", bind(store+"//", "/mnt"), Leaks, store},
		{"dots in the source", bind(state+"/../../store/.", "/mnt"), Leaks, store},
		{"a symbolic link", bind(links+"/store", "/mnt"), Leaks, store},
		{"a chain of symbolic links", bind(links+"/chain", "/mnt"), Leaks, store},
		{"a symbolic link to an ancestor", bind(links+"/host", "/mnt"), Leaks, h.dir + "/host"},
		{"by way of a symbolic link", bind(links+"/host/nix/store", "/mnt"), Leaks, store},
		{"relative to the bundle", bind("../host/nix/store", "/mnt"), Leaks, store},
		{"relative to the bundle, by way of a symbolic link", bind("../links/nix", "/mnt"), Leaks, nix},
		{"an alias of the store", bind(alias+"store", "/mnt"), Leaks, store},
		{"an alias of the parent", bind(alias+"nix", "/mnt"), Leaks, nix},
		{"an alias of the parent's parent", bind(alias+"host", "/mnt"), Leaks, h.dir + "/host"},
		{"by way of an alias", bind(alias+"host/nix/store", "/mnt"), Leaks, store},
		{"the links", bind(store+"/.links", "/mnt"), Leaks, store + "/.links"},
		{"one of the links", bind(store+"/.links/0123", "/mnt"), Leaks, store + "/.links/0123"},
		{"an alias of the links", bind(alias+"links", "/mnt"), Leaks, store + "/.links"},
		{"the links by an alias of the store", bind(alias+"store/.links", "/mnt"), Leaks, store + "/.links"},
		{"a lock in the store", bind(h.path("a")+".lock/../.links", "/mnt"), 0, "error"},
		{"the state directory", bind(state, "/mnt"), Leaks, state},
		{"above the state directory", bind(filepath.Dir(state), "/mnt"), Leaks, filepath.Dir(state)},
		{"the state directory on the store's parent", bind(filepath.Dir(state), nix), Leaks, filepath.Dir(state)},
		{"an alias of the state directory", bind(alias+"state", "/mnt"), Leaks, state},
		{"a directory in the state directory", bind(state+"/profiles", "/mnt"), Leaks, state + "/profiles"},
		{"deep in the state directory", bind(state+"/profiles/per-user/root", "/mnt"), Leaks,
			state + "/profiles/per-user/root"},
		{"a directory in an alias of the state directory", bind(alias+"state/gcroots", "/mnt"), Leaks,
			state + "/gcroots"},
		{"the database", bind(state+"/db/db.sqlite", "/mnt"), Leaks, state + "/db/db.sqlite"},
		{"the database's directory by an alias", bind(alias+"db", "/mnt"), Leaks, state + "/db"},
		{"the database by an alias of its directory", bind(alias+"db/db.sqlite", "/mnt"), Leaks,
			state + "/db/db.sqlite"},
		{"the database by an alias of the file", bind(alias+"database", "/mnt"), Leaks, state + "/db/db.sqlite"},
		{"the daemon's socket", bind(state+"/daemon-socket/socket", "/run/nix"), Leaks,
			state + "/daemon-socket/socket"},
		{"the daemon's socket by a symbolic link", bind(links+"/socket", "/run/nix"), Leaks,
			state + "/daemon-socket/socket"},
		{"the daemon's socket by an alias", bind(alias+"socket", "/run/nix"), Leaks, state + "/daemon-socket/socket"},
		{"the daemon's directory", bind(state+"/daemon-socket", "/run/nix"), Leaks, state + "/daemon-socket"},
		{"an alias below the source", bind(h.dir+"/nested", "/mnt"), Leaks, store},
		{"an alias far below the source", kind("bind", "/mnt", h.dir+"/nested"), Leaks, store},
		{"an alias of the daemon's directory below the source", bind(h.dir+"/nested-socket", "/mnt"), Leaks,
			state + "/daemon-socket"},
		{"a layer", kind("overlay", "/mnt", "overlay", "lowerdir="+store, "ro"), Leaks, store},
		{"one of the layers", kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:"+alias+"store:/nowhere"),
			Leaks, store},
		{"the data of a layer", kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data::"+nix), Leaks, nix},
		{"a layer of its own option", kind("overlay", "/mnt", "overlay", "lowerdir+="+h.dir+"/data",
			"lowerdir+="+store), Leaks, store},
		{"data of its own option", kind("overlay", "/mnt", "overlay", "datadir+="+store), Leaks, store},
		{"the upper layer", kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data", "upperdir="+links+"/store",
			"workdir="+h.dir+"/data"), Leaks, store},
		{"the work directory", kind("overlay", "/mnt", "overlay", "workdir="+state), Leaks, state},
		{"the disk", kind("ext4", "/mnt", disk, "ro"), Leaks, store},
		{"the disk by a symbolic link", kind("btrfs", "/mnt", links+"/by-uuid"), Leaks, store},

		// None of our business.
		{"proc", kind("proc", "/proc", "proc", "nosuid"), NoneOfOurs, ""},
		{"sysfs", kind("sysfs", "/sys", "sysfs"), NoneOfOurs, ""},
		{"cgroup", kind("cgroup", "/sys/fs/cgroup", "cgroup", "ro"), NoneOfOurs, ""},
		{"a tmpfs", kind("tmpfs", "/tmp", "tmpfs"), NoneOfOurs, ""},
		{"a tmpfs on the parent", kind("tmpfs", nix, "tmpfs"), NoneOfOurs, ""},
		{"a tmpfs named after the store", kind("tmpfs", "/mnt", store), NoneOfOurs, ""},
		{"an empty directory on the parent", bind(h.dir+"/data/sub", nix), NoneOfOurs, ""},
		{"another store's parent on the parent", bind(h.dir+"/othernix", nix), NoneOfOurs, ""},
		{"a directory", bind(h.dir+"/data", "/data"), NoneOfOurs, ""},
		{"a file", bind(h.dir+"/data/file", "/etc/hostname"), NoneOfOurs, ""},
		{"a directory relative to the bundle", bind("rootfs/etc", "/mnt"), NoneOfOurs, ""},
		{"a directory with a mount of another", bind(h.dir+"/nested-data", "/mnt"), NoneOfOurs, ""},
		{"a store path", bind(h.path("a"), "/app"), NoneOfOurs, ""},
		{"a store path that is a file", bind(h.path("file"), "/app"), NoneOfOurs, ""},
		{"below a store path", bind(h.path("a")+"/bin/run", "/bin/run"), NoneOfOurs, ""},
		{"a store path by a symbolic link", bind(links+"/path", "/app"), NoneOfOurs, ""},
		{"a store path by an alias of the store", bind(alias+"store/"+string(named("a")), "/app"), NoneOfOurs, ""},
		{"an alias of a store path", bind(alias+"path", "/app"), NoneOfOurs, ""},
		{"a directory with an alias of a store path", bind(h.dir+"/nested-path", "/app"), NoneOfOurs, ""},
		{"a directory without the alias below it", kind("bind", "/mnt", h.dir+"/nested", "bind"), NoneOfOurs, ""},
		{"symbolic links", bind(links, "/mnt"), NoneOfOurs, ""},
		{"what does not exist", bind(h.dir+"/nowhere", "/mnt"), NoneOfOurs, ""},
		{"a symbolic link that leads nowhere", bind(links+"/dangling", "/mnt"), NoneOfOurs, ""},
		{"an overlay of others", kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:"+links,
			"upperdir="+h.dir+"/data/sub", "index=off"), NoneOfOurs, ""},
		{"another disk", kind("ext4", "/mnt", otherDisk), NoneOfOurs, ""},
		{"a device", bind("/dev/null", "/dev/null"), NoneOfOurs, ""},
		{"nothing", specs.Mount{}, NoneOfOurs, ""},

		// What cannot be found out.
		{"a loop", bind(links+"/loop", "/mnt"), 0, "error"},
		{"below a file", bind(h.dir+"/data/file/x", "/mnt"), 0, "error"},
		{"NUL", bind(h.dir+"/data\x00", "/mnt"), 0, "error"},
		{"a name too long", bind(h.dir+"/"+strings.Repeat("x", 300), "/mnt"), 0, "error"},
		{"a layer relative to the bundle", kind("overlay", "/mnt", "overlay", "lowerdir=../host/nix"), 0, "error"},
		{"a harmless layer relative to the bundle",
			kind("overlay", "/mnt", "overlay", "lowerdir="+h.dir+"/data:../data"), 0, "error"},
		{"a backslash in a layer", kind("overlay", "/mnt", "overlay", `lowerdir=/a\:b`), 0, "error"},
		{"a backslash in the upper layer", kind("overlay", "/mnt", "overlay", "upperdir=/a\\,b"), 0, "error"},
		{"a loop as a layer", kind("overlay", "/mnt", "overlay", "lowerdir="+links+"/loop"), 0, "error"},
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
	//nolint:lll // a line is one mount
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 35 98:0 /mnt1 /mnt/with\040space\011tab\012line\134backslash rw,noatime master:1 shared:3 - ext3 /dev/root rw,errors=continue
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
