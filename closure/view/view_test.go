// SPDX-License-Identifier: Apache-2.0

package view

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

var listed = Options{Listed: true}

// tree returns a line for each file below these names of a directory, with all metadata
// except the inode number.
func tree(t *testing.T, dir string, names []closure.BaseName) []string {
	t.Helper()
	var lines []string
	for _, n := range names {
		must(t, filepath.WalkDir(dir+"/"+string(n), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			var content string
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				content = fmt.Sprintf("%d bytes, %x", st.Size, sha256.Sum256(text))
			case unix.S_IFLNK:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				content = "to " + target
			}
			lines = append(lines, fmt.Sprintf("%q %o %d:%d %d.%d %s",
				strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, content))
			return nil
		}))
	}
	return lines
}

func list(t *testing.T, dir string) []closure.BaseName {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []closure.BaseName
	for _, e := range entries {
		all = append(all, closure.BaseName(e.Name()))
	}
	slices.Sort(all)
	return all
}

// mount is a mount as mountinfo describes it.
type mount struct{ point, options, optional, kind string }

// mountsAt lists the mounts on a directory and below it.
func mountsAt(t *testing.T, dir string) []mount {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	must(t, err)
	var all []mount
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if point := fields[4]; point == dir || strings.HasPrefix(point, dir+"/") {
			end := slices.Index(fields, "-")
			all = append(all, mount{point: point, options: fields[5], optional: strings.Join(fields[6:end], " "),
				kind: fields[end+1]})
		}
	}
	return all
}

// A view has exactly the names of the closure, and every file of every path is as in the
// store.
func TestExact(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		at, _ := attach(t, h, "target", newView, c, listed)
		if got := list(t, at); !slices.Equal(got, c.Names) {
			t.Errorf("has %q\nwant %q", got, c.Names)
		}
		want, got := tree(t, h.store.Dir, c.Names), tree(t, at, c.Names)
		for i := range max(len(want), len(got)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Fatalf("file %d of %d and %d: in the view\n%q\nin the store\n%q", i, len(got), len(want),
					got[min(i, len(got)-1)], want[min(i, len(want)-1)])
			}
		}
		st, err := os.Stat(at)
		must(t, err)
		if st.Mode() != fs.ModeDir|0o555 || st.ModTime() != built {
			t.Errorf("the store directory: %v, %v", st.Mode(), st.ModTime())
		}
	})
}

// Paths outside the closure do not exist in the view, even if the store gets them later.
func TestNothingElse(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		at, _ := attach(t, h, "target", newView, c, listed)
		h.file(t, string(named("later"))+"/file", "later", 0o444)
		h.file(t, string(named("later-file")), "later", 0o444)
		h.link(t, string(named("later-link")), "/")
		for _, name := range []string{
			string(named("later")), string(named("later")) + "/file", string(named("later-file")),
			string(named("later-link")),
			string(named("foreign")), string(named("foreign")) + "/secret", string(named("foreign-link")),
			string(named("file")) + ".lock",
			".links", ".links/0123", shown, shown + "/" + string(named("file")),
		} {
			if st, err := os.Lstat(at + "/" + name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v, %v", name, st, err)
			}
			if f, err := os.Open(at + "/" + name); !errors.Is(err, fs.ErrNotExist) {
				f.Close()
				t.Errorf("%s: opened: %v", name, err)
			}
		}
		if got := list(t, at); !slices.Equal(got, c.Names) {
			t.Errorf("has %q", got)
		}
	})
}

func TestReadOnly(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		before := tree(t, h.store.Dir, c.Names)
		at, _ := attach(t, h, "target", newView, c, listed)
		dir, file, link := at+"/"+string(named("a-directory")), at+"/"+string(named("file")),
			at+"/"+string(named("link"))
		open := func(path string, flags int) error {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
		for what, err := range map[string]error{
			"a file in the store directory":      open(at+"/new", unix.O_CREAT|unix.O_WRONLY),
			"a directory in the store directory": unix.Mkdir(at+"/new", 0o700),
			"a link in the store directory":      unix.Symlink("x", at+"/new"),
			"a device in the store directory":    unix.Mknod(at+"/new", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
			"a file in a store path":             open(dir+"/new", unix.O_CREAT|unix.O_WRONLY),
			"a directory in a store path":        unix.Mkdir(dir+"/new", 0o700),
			"writing to a file":                  open(dir+"/bin/run", unix.O_WRONLY),
			"writing to a store path":            open(file, unix.O_WRONLY),
			"writing to a program":               open(at+"/"+string(named("program")), unix.O_RDWR),
			"cutting off a file":                 unix.Truncate(dir+"/owned", 0),
			"cutting off a store path":           unix.Truncate(file, 0),
			"the mode of the store directory":    unix.Chmod(at, 0o777),
			"the mode of a directory":            unix.Chmod(dir, 0o777),
			"the mode of a store path":           unix.Chmod(file, 0o777),
			"the owner of a file":                unix.Chown(dir+"/bin/run", 1, 1),
			"the owner of a link":                unix.Lchown(link, 1, 1),
			"the time of a store path":           unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{{}, {}}, 0),
			"an attribute":                       unix.Setxattr(dir+"/owned", "user.x", []byte("x"), 0),
			"removing a file":                    unix.Unlink(dir + "/owned"),
			"removing a link":                    unix.Unlink(link),
			"renaming a link":                    unix.Rename(link, at+"/new"),
			"renaming a file":                    unix.Rename(dir+"/owned", dir+"/new"),
			"a hard link":                        unix.Link(dir+"/owned", dir+"/new"),
		} {
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: %v, want EROFS", what, err)
			}
		}
		// The mount points of a bind view fail as busy before they fail as read-only.
		for what, err := range map[string]error{
			"removing a store path": unix.Unlink(file),
			"removing a directory":  unix.Rmdir(at + "/" + string(named("empty-directory"))),
			"renaming a store path": unix.Rename(dir, at+"/new"),
		} {
			if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if after := tree(t, h.store.Dir, c.Names); !slices.Equal(after, before) {
			t.Error("the store changed")
		}
	})
}

func TestMounts(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		at, _ := attach(t, h, "target", newView, c, listed)
		// Attaching leaves nothing behind, and a view that is not attached is not
		// visible.
		unused, err := newView(h, c, listed)
		must(t, err)
		defer func() { _ = unused.Close() }()
		all := mountsAt(t, h.dir)
		want, kind := 1, "overlay"
		if mode == "bind" {
			want, kind = 1, "tmpfs"
			for _, n := range c.Names {
				if st, err := os.Lstat(h.store.Dir + "/" + string(n)); err != nil {
					t.Fatal(err)
				} else if st.Mode()&fs.ModeSymlink == 0 {
					want++
				}
			}
		}
		if len(all) != want || all[0].point != at || all[0].kind != kind {
			t.Errorf("%d mounts, want %d: %q", len(all), want, all)
		}
		for _, m := range all {
			options := strings.Split(m.options, ",")
			for _, o := range []string{"ro", "nosuid", "nodev"} {
				if !slices.Contains(options, o) {
					t.Errorf("%s is mounted %s, without %s", m.point, m.options, o)
				}
			}
			if m.optional != "" {
				t.Errorf("%s propagates: %s", m.point, m.optional)
			}
		}
	})
}

// The view's mounts are private, even if the host's are shared, as systemd makes them.
func TestPrivate(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		must(t, unix.Mount(h.dir, h.dir, "", unix.MS_BIND, ""), unix.Mount("", h.dir, "", unix.MS_SHARED, ""))
		defer func() { _ = unix.Unmount(h.dir, unix.MNT_DETACH) }()
		c := h.fill(t)
		at, _ := attach(t, h, "target", newView, c, listed)
		for _, m := range mountsAt(t, at) {
			if m.optional != "" {
				t.Errorf("%s propagates: %s", m.point, m.optional)
			}
		}
	})
}

// Attach works in the mount namespace of a container: a mount can be cloned in one
// namespace only, and attached in the other.
func TestAttachInAnotherNamespace(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		want := tree(t, h.store.Dir, c.Names)
		v, err := newView(h, c, listed)
		must(t, err)
		defer func() { _ = v.Close() }()
		target := h.target(t, "target").Name()
		var names []closure.BaseName
		var lines []string
		err = inOwnNamespace(func() error {
			f, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := v.Attach(f); err != nil {
				return err
			}
			names, lines = list(t, target), tree(t, target, c.Names)
			return nil
		})
		if err != nil || !slices.Equal(names, c.Names) || !slices.Equal(lines, want) {
			t.Errorf("%d names, %d files, %v", len(names), len(lines), err)
		}
		if all := mountsAt(t, target); len(all) > 0 {
			t.Errorf("in this namespace too: %v", all)
		}
	})
}

// inOwnNamespace calls f on a thread that is in a mount namespace of its own.
func inOwnNamespace(f func() error) error {
	return mntns.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		return f()
	})
}

// If the container's namespace has another store directory, it is never shown as the
// host's.
func TestBindOfAnotherStore(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	v, err := NewBind(h.store, c, listed)
	must(t, err)
	defer func() { _ = v.Close() }()
	target := h.target(t, "target").Name()
	h.file(t, "../other/"+string(named("file")), "of another", 0o444)
	must(t, inOwnNamespace(func() error {
		if err := unix.Mount(h.dir+"/other", h.store.Dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		f, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := v.Attach(f); err == nil || !strings.Contains(err.Error(), h.store.Dir+" is another directory") {
			return fmt.Errorf("attached: %v", err) //nolint:errorlint // may be nil
		}
		if mounts := mountsAt(t, target); len(mounts) > 0 {
			return fmt.Errorf("there are %v", mounts)
		}
		return nil
	}))
}

func TestNotListed(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		at, _ := attach(t, h, "target", newView, c, Options{})
		if st, err := os.Stat(at); err != nil || st.Mode() != fs.ModeDir|0o111 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		both, _ := attach(t, h, "both", newView, c, listed)
		if st, err := os.Stat(both); err != nil || st.Mode() != fs.ModeDir|0o555 {
			t.Errorf("with a list beside it: %v, %v", st.Mode(), err)
		}
		must(t, os.Chmod(h.dir, 0o755), os.Chmod(filepath.Dir(h.dir), 0o755))
		must(t, mntns.OnOwnThread(func() error {
			// Not through package syscall, which would change every thread.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 1000, 1000, 1000); errno != 0 {
				return errno
			}
			if _, err := os.ReadFile(at + "/" + string(named("file"))); err != nil {
				return err
			}
			if _, err := os.ReadDir(at); !errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("listed: %v", err) //nolint:errorlint // may be nil
			}
			return nil
		}))
	})
}

func TestShows(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		c := h.fill(t)
		shows := func(v View, path string) bool {
			t.Helper()
			f, err := os.OpenFile(path, unix.O_PATH, 0)
			must(t, err)
			defer f.Close()
			ok, err := v.Shows(f)
			must(t, err)
			return ok
		}
		before, err := newView(h, c, listed)
		must(t, err)
		defer func() { _ = before.Close() }()
		at, v := attach(t, h, "target", newView, c, listed)
		other, w := attach(t, h, "other", newView, c, listed)
		for _, s := range []struct {
			name string
			view View
			path string
			want bool
		}{
			{name: "itself", view: v, path: at, want: true},
			{name: "the other", view: w, path: other, want: true},
			{name: "another of the same closure", view: v, path: other},
			{name: "another of the same closure", view: w, path: at},
			{name: "one that is not attached", view: before, path: at},
			{name: "a path in it", view: v, path: at + "/" + string(named("a-directory"))},
			{name: "the store", view: v, path: h.store.Dir},
			{name: "the directory above", view: v, path: h.dir},
		} {
			if got := shows(s.view, s.path); got != s.want {
				t.Errorf("%s: %v", s.name, got)
			}
		}
		must(t, unix.Unmount(at, unix.MNT_DETACH))
		if shows(v, at) {
			t.Error("what is underneath")
		}
	})
}

// Two containers with one closure must not detect each other by inotify or file locks,
// which depend on the inode. With bind mounts they can.
func TestInodesOfTheirOwn(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	inode := func(path string) [2]uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return [2]uint64{st.Dev, st.Ino}
	}
	a, _ := attach(t, h, "a", modes[0].make, c, listed)
	b, _ := attach(t, h, "b", modes[0].make, c, listed)
	for _, name := range []string{"", string(named("file")), string(named("a-directory")),
		string(named("a-directory")) + "/bin"} {
		all := [][2]uint64{inode(a + "/" + name), inode(b + "/" + name), inode(h.store.Dir + "/" + name)}
		if all[0] == all[1] || all[0] == all[2] || all[1] == all[2] {
			t.Errorf("%q: %v", name, all)
		}
	}
	// The device of a file is the lower layer's, but the lock is the overlay's.
	var locks [2]*os.File
	for i, dir := range []string{a, b} {
		f, err := os.Open(dir + "/" + string(named("a-directory")) + "/bin/run")
		must(t, err)
		defer f.Close()
		locks[i] = f
		if err := unix.Flock(int(locks[i].Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("a lock in one container keeps another from it: %v", err)
		}
	}
}

// A store path may have a mount inside. A bind view shows it.
func TestNestedMount(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	inside := h.store.Dir + "/" + string(named("a-directory")) + "/etc"
	must(t, unix.Mount("tmpfs", inside, "tmpfs", 0, ""), os.WriteFile(inside+"/mounted", []byte("here"), 0o444))
	defer func() { _ = unix.Unmount(inside, unix.MNT_DETACH) }()
	at, _ := attach(t, h, "target", modes[1].make, c, listed)
	got, err := os.ReadFile(at + "/" + string(named("a-directory")) + "/etc/mounted")
	if err != nil || string(got) != "here" {
		t.Errorf("%q, %v", got, err)
	}
	// Everything below is read-only.
	if err := os.WriteFile(at+"/"+string(named("a-directory"))+"/etc/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("written to: %v", err)
	}
}

// A store path that cannot be shown is an error that names it, in both modes.
func TestRefused(t *testing.T) {
	fifo := func(h host) error { return unix.Mkfifo(h.store.Dir+"/"+string(named("odd")), 0o644) }
	for _, r := range []struct {
		name string
		make func(h host) error
		is   error
	}{
		{"missing", func(host) error { return nil }, ErrMissing},
		{"FIFO", fifo, nil},
		{"device", func(h host) error {
			return unix.Mknod(h.store.Dir+"/"+string(named("odd")), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3)))
		}, nil},
		{"whiteout", func(h host) error { return unix.Mknod(h.store.Dir+"/"+string(named("odd")), unix.S_IFCHR, 0) },
			nil},
		{"socket", func(h host) error {
			return unix.Mknod(h.store.Dir+"/"+string(named("odd")), unix.S_IFSOCK|0o644,
				0)
		}, nil},
	} {
		eachMode(t, func(t *testing.T, mode string, newView func(host, closure.Closure, Options) (View, error)) {
			t.Run(r.name, func(t *testing.T) {
				h := newHost(t)
				h.directory(t, string(named("a")), 0o555)
				must(t, r.make(h))
				c := closure.New(h.store, []closure.BaseName{named("a"), named("odd"), named("z")})
				h.directory(t, string(named("z")), 0o555)
				target := h.target(t, "target")
				v, err := newView(h, c, listed)
				if err == nil {
					err = v.Attach(target)
					_ = v.Close()
				}
				if err == nil || !strings.Contains(err.Error(), h.store.Dir+"/"+string(named("odd"))) ||
					r.is != nil && !errors.Is(err, r.is) {
					t.Errorf("error %v", err)
				}
				if errors.Is(err, ErrUnsupported) {
					t.Errorf("another mode is tried: %v", err)
				}
				if left := list(t, h.dir+"/views"); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			})
		})
	}
}

// An error in the middle of a large closure leaves no descriptor open.
func TestBindFailsInTheMiddle(t *testing.T) {
	h := newHost(t)
	var names []closure.BaseName
	for i := range 300 {
		name := named(fmt.Sprintf("p%03d", i))
		if i != 250 {
			h.directory(t, string(name), 0o555)
		}
		names = append(names, name)
	}
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	c := closure.New(h.store, names)
	target := h.target(t, "target")
	before := open()
	v, err := NewBind(h.store, c, listed)
	must(t, err)
	if err := v.Attach(target); !errors.Is(err, ErrMissing) {
		t.Errorf("error %v", err)
	}
	must(t, v.Close())
	// The target is already read-only, so that the first path cannot be attached.
	full, err := NewBind(h.store, closure.New(h.store, names[:200]), listed)
	must(t, err, seal(full.(*bind).tmpfs))
	if err := full.Attach(h.target(t, "full")); !errors.Is(err, unix.EROFS) {
		t.Errorf("error %v", err)
	}
	must(t, full.Close())
	if after := open(); after != before+1 { // the second target
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}

func TestEmptyClosure(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		h.fill(t)
		at, _ := attach(t, h, "target", newView, closure.New(h.store, nil), listed)
		if got := list(t, at); len(got) > 0 {
			t.Errorf("has %q", got)
		}
	})
}

func TestStoreIsMissing(t *testing.T) {
	eachMode(t, func(t *testing.T, _ string, newView func(host, closure.Closure, Options) (View, error)) {
		h := newHost(t)
		h.store.Dir += "2"
		if v, err := newView(h, closure.New(h.store, nil), listed); !errors.Is(err, fs.ErrNotExist) {
			_ = v.Close()
			t.Errorf("error %v", err)
		}
	})
}

func TestDetach(t *testing.T) {
	h := newHost(t)
	dir := h.target(t, "target").Name()
	open := func() *os.File {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	if err := Detach(open()); !errors.Is(err, ErrNotMounted) {
		t.Errorf("no mount: %v", err)
	}
	must(t, unix.Mount("first", dir, "tmpfs", 0, ""), os.Mkdir(dir+"/sub", 0o755))
	must(t, unix.Mount("below", dir+"/sub", "tmpfs", 0, ""))
	must(t, unix.Mount("second", dir, "tmpfs", 0, ""), os.Mkdir(dir+"/plain", 0o755))
	plain, err := os.OpenFile(dir+"/plain", unix.O_PATH, 0)
	must(t, err)
	defer plain.Close()
	if err := Detach(plain); !errors.Is(err, ErrNotMounted) {
		t.Errorf("a directory in a mount: %v", err)
	}
	if got := len(mountsAt(t, dir)); got != 3 {
		t.Fatalf("%d mounts, want 3", got)
	}
	must(t, Detach(open()))
	if got := mountsAt(t, dir); len(got) != 2 {
		t.Fatalf("after the first: %v", got)
	}
	must(t, Detach(open()))
	if got := mountsAt(t, dir); len(got) != 0 {
		t.Errorf("the mount below stays: %v", got)
	}
	if err := Detach(open()); !errors.Is(err, ErrNotMounted) {
		t.Errorf("after the last: %v", err)
	}
}

// Detach follows the descriptor and not its name, which may lead elsewhere by now.
func TestDetachByDescriptor(t *testing.T) {
	h := newHost(t)
	a, b := h.target(t, "a"), h.target(t, "b")
	must(t, unix.Mount("a", a.Name(), "tmpfs", 0, ""), unix.Mount("b", b.Name(), "tmpfs", 0, ""))
	f, err := os.OpenFile(a.Name(), unix.O_PATH, 0)
	must(t, err)
	defer f.Close()
	// This mount stands for the image's: another mount now has the name that was opened.
	must(t, unix.Mount(b.Name(), a.Name(), "", unix.MS_BIND, ""))
	must(t, Detach(f))
	if got := mountsAt(t, b.Name()); len(got) != 1 {
		t.Errorf("the other: %v", got)
	}
}

func TestOptionTooLong(t *testing.T) {
	h := newHost(t)
	c := h.fill(t)
	deep := h.dir + "/" + strings.Repeat("d", 200)
	must(t, os.Mkdir(deep, 0o700))
	h.views = owndir.At(deep)
	defer h.views.Close()
	if _, err := modes[0].make(h, c, listed); !errors.Is(err, ErrUnsupported) ||
		!strings.Contains(err.Error(), "lowerdir is longer than 255 bytes: "+deep) {
		t.Errorf("overlay: %v", err)
	}
	v, err := modes[1].make(h, c, listed)
	must(t, err)
	_ = v.Close()
	// This is the longest allowed value.
	_, err = newMount("tmpfs", []option{{"source", strings.Repeat("s", maxOption+1)}})
	if err == nil || !strings.Contains(err.Error(), "longer than 255 bytes") {
		t.Errorf("256 bytes: %v", err)
	}
	f, err := newMount("tmpfs", []option{{"source", strings.Repeat("s", maxOption)}})
	must(t, err)
	f.Close()
}

// The message includes the kernel's text about an option.
func TestKernelMessage(t *testing.T) {
	if _, err := newMount("tmpfs", []option{{"no-such-option", "x"}}); err == nil ||
		!strings.Contains(err.Error(), "tmpfs option no-such-option=x: invalid argument; kernel: ") {
		t.Errorf("error %v", err)
	}
	if _, err := newMount("no-such-fs", nil); !errors.Is(err, unix.ENODEV) {
		t.Errorf("error %v", err)
	}
	h := newHost(t)
	if _, err := NewOverlay(h.store, Layer{h.dir + "/nowhere"}, listed); errors.Is(err, ErrUnsupported) ||
		!errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
