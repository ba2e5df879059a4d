// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// database makes a file that stands for a database, and opens it read-only.
func database(t *testing.T, size int) (*os.File, string) {
	t.Helper()
	path := t.TempDir() + "/database"
	text := strings.Repeat("0123456789abcde\n", size/16)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f, text
}

var stateStore = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

// attachState makes a state directory and attaches it.
func attachState(t *testing.T, h host, name string, db *os.File, size int64) string {
	t.Helper()
	at, _ := attach(t, h, name, func(host, closure.Closure, Options) (View, error) {
		return NewStateDir(stateStore, db, Options{}, size, container)
	}, closure.Closure{}, Options{})
	return at
}

// The container owns everything, and there is nothing except what Nix needs.
func TestStateDirectory(t *testing.T) {
	h := newHost(t)
	db, text := database(t, 1<<20)
	// The copy starts at the beginning wherever the file offset is, because another
	// container's hook has the same file.
	_, err := db.Seek(100, 0)
	must(t, err)
	at := attachState(t, h, "target", db, 1<<20)
	var got []string
	must(t, filepath.WalkDir(at, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Uid != 1234 || st.Gid != 4321 {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0
		}
		got = append(got, fmt.Sprintf("%s %o %d", strings.TrimPrefix(path, at), st.Mode, size))
		return nil
	}))
	if want := []string{
		" 40755 0",
		"/db 40755 0", "/db/big-lock 100600 0", "/db/db.sqlite 100644 1048576", "/db/reserved 100600 8388608",
		"/db/schema 100644 2",
		"/gc.lock 100600 0",
		"/gcroots 40755 0", "/gcroots/auto 40755 0", "/gcroots/per-user 40755 0", "/gcroots/profiles 120777 21",
		"/profiles 40755 0", "/profiles/per-user 40755 0", "/temproots 40755 0", "/userpool 40755 0",
	}; !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	for name, want := range map[string]string{"db/db.sqlite": text, "db/schema": "10"} {
		if got, err := os.ReadFile(at + "/" + name); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if got, err := os.Readlink(at + "/gcroots/profiles"); err != nil || got != "/nix/var/nix/profiles" {
		t.Errorf("profiles: %q, %v", got, err)
	}
	// The file that Nix sets aside takes no memory.
	var st unix.Stat_t
	must(t, unix.Stat(at+"/db/reserved", &st))
	if st.Blocks != 0 {
		t.Errorf("reserved takes %d blocks", st.Blocks)
	}
}

// Each container has its own copy: a write is in no other copy and not in the source
// file.
func TestStateDirectoryIsACopy(t *testing.T) {
	h := newHost(t)
	db, text := database(t, 1<<16)
	one, other := attachState(t, h, "one", db, 1<<20), attachState(t, h, "other", db, 1<<20)
	must(t, os.WriteFile(one+"/db/db.sqlite", []byte("changed"), 0), os.WriteFile(one+"/db/new", nil, 0o600))
	later := attachState(t, h, "later", db, 1<<20)
	for _, path := range []string{other + "/db/db.sqlite", later + "/db/db.sqlite", db.Name()} {
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	for _, dir := range []string{other, later} {
		if got := list(t, dir+"/db"); !slices.Equal(got,
			[]closure.BaseName{"big-lock", "db.sqlite", "reserved", "schema"}) {
			t.Errorf("%s: %q", dir, got)
		}
	}
}

// The writable size comes on top of the database, however large that is.
func TestStateDirectorySize(t *testing.T) {
	h := newHost(t)
	db, _ := database(t, 3<<20)
	at := attachState(t, h, "target", db, 1<<20)
	checkSize(t, at, 4<<20)
	var st unix.Statfs_t
	must(t, unix.Statfs(at, &st))
	if free := int64(st.Bfree) * st.Bsize; free > 1<<20 || free < 1<<20-64<<10 {
		t.Errorf("%d bytes are free", free)
	}
}

// On a shared mount too, the state directory is in no other namespace, and allows no
// device and no set-user-ID program.
func TestStateDirectoryMount(t *testing.T) {
	h := newHost(t)
	must(t, unix.Mount(h.dir, h.dir, "", unix.MS_BIND, ""), unix.Mount("", h.dir, "", unix.MS_SHARED, ""))
	defer func() { _ = unix.Unmount(h.dir, unix.MNT_DETACH) }()
	db, _ := database(t, 1<<16)
	v, err := NewStateDir(stateStore, db, Options{}, 1<<20, container)
	must(t, err)
	defer func() { _ = v.Close() }()
	target := h.target(t, "target")
	if ok, err := v.Shows(target); ok || err != nil {
		t.Errorf("before it is attached: %v, %v", ok, err)
	}
	must(t, v.Attach(target))
	at := target.Name()
	if all, want := mountsAt(t, at), (mount{point: at, options: "rw,nosuid,nodev,relatime",
		kind: "tmpfs"}); len(all) != 1 ||
		all[0] != want {
		t.Errorf("mounts %q, want %q", all, want)
	}
	for path, want := range map[string]bool{at: true, at + "/db": false, h.dir: false} {
		f, err := os.Open(path)
		must(t, err)
		if ok, err := v.Shows(f); ok != want || err != nil {
			t.Errorf("%s: %v, %v", path, ok, err)
		}
		f.Close()
	}
}

// An error leaves no descriptor and no mount.
func TestStateDirectoryFails(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	before := open()
	db, _ := database(t, 1<<16)
	must(t, db.Close())
	for what, f := range map[string]func() *os.File{
		"closed": func() *os.File { return db },
		"a directory": func() *os.File {
			f, err := os.Open(t.TempDir())
			must(t, err)
			return f
		},
	} {
		f := f()
		if v, err := NewStateDir(stateStore, f, Options{}, 1<<20, container); err == nil {
			t.Errorf("%s: %v", what, v)
		}
		f.Close()
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}
