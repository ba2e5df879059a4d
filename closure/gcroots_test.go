// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// stateStore is a store with an empty state directory.
func stateStore(t *testing.T) Store {
	t.Helper()
	dir := t.TempDir()
	mkdir(t, dir+"/var/gcroots")
	return Store{Dir: dir + "/store", StateDir: dir + "/var"}
}

// links returns what the symbolic links in a directory lead to, by name.
func links(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if e.Name() == BootLink {
			continue
		}
		if all[e.Name()], err = os.Readlink(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestGCRoots(t *testing.T) {
	store := stateStore(t)
	a, b, c := named("a"), named("b"), named("c")
	for _, pins := range [][]BaseName{{a, b}, {a, b}, {b, c}, {a}} {
		if err := store.GCRoots().Add(store, "web", pins); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for _, p := range pins {
			want[string(p)] = store.Path(p)
		}
		if got := links(t, store.GCRoots().Of("web")); !maps.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if err := store.GCRoots().Add(store, "db", []BaseName{c}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to remove
		if err := store.GCRoots().Remove("web"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(store.GCRoots().Of("web")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still there: %v", err)
		}
	}
	if got := links(t, store.GCRoots().Of("db")); len(got) != 1 {
		t.Errorf("another container has %q left", got)
	}
}

func TestRemoveGCRootsOfNobody(t *testing.T) {
	store := stateStore(t)
	if err := store.GCRoots().Remove("web"); err != nil {
		t.Errorf("without a directory for this program: %v", err)
	}
	if err := (Store{StateDir: store.StateDir + "/nowhere"}).GCRoots().Remove("web"); err != nil {
		t.Errorf("without a state directory: %v", err)
	}
}

func TestAddGCRootsWithoutNix(t *testing.T) {
	store := Store{Dir: "/nix/store", StateDir: t.TempDir()}
	if err := store.GCRoots().Add(store, "web", []BaseName{named("a")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without gcroots: %v", err)
	}
}

// What somebody left at a container's name is replaced, and what it leads to is
// left alone.
func TestGCRootsLeadNowhereElse(t *testing.T) {
	pin := named("a")
	for _, c := range []struct {
		name string
		make func(own, elsewhere string) error
	}{
		{"a symbolic link out", func(own, elsewhere string) error { return os.Symlink(elsewhere, own) }},
		{"a symbolic link to a container", func(own, _ string) error { return os.Symlink("other", own) }},
		{"a symbolic link up", func(own, _ string) error { return os.Symlink("..", own) }},
		{"a symbolic link to nothing", func(own, _ string) error { return os.Symlink("nothing", own) }},
		{"a file", func(own, _ string) error { return os.WriteFile(own, nil, 0o600) }},
		{"a directory with a symbolic link out", func(own, elsewhere string) error {
			return errors.Join(os.MkdirAll(own+"/deep", 0o755), os.Symlink(elsewhere, own+"/deep/link"),
				os.Symlink(elsewhere, own+"/"+string(pin)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			store, elsewhere := stateStore(t), t.TempDir()
			write(t, elsewhere+"/file", "")
			if err := store.GCRoots().Add(store, "other", []BaseName{named("other")}); err != nil {
				t.Fatal(err)
			}
			untouched := func(when string) {
				t.Helper()
				if _, err := os.Stat(elsewhere + "/file"); err != nil {
					t.Errorf("%s: %v", when, err)
				}
				if entries, _ := os.ReadDir(elsewhere); len(entries) != 1 {
					t.Errorf("%s: elsewhere there are %v", when, entries)
				}
				if got := links(t, store.GCRoots().Of("other")); !maps.Equal(got,
					map[string]string{string(named("other")): store.Path(named("other"))}) {
					t.Errorf("%s: another container has %q", when, got)
				}
			}
			own := store.GCRoots().Of("web")
			if err := c.make(own, elsewhere); err != nil {
				t.Fatal(err)
			}
			if err := store.GCRoots().Add(store, "web", []BaseName{pin}); err != nil {
				t.Fatal(err)
			}
			untouched("adding")
			if st, err := os.Lstat(own); err != nil || !st.IsDir() {
				t.Errorf("not a directory: %v, %v", st.Mode(), err)
			}
			if got := links(t, own); !maps.Equal(got, map[string]string{string(pin): store.Path(pin)}) {
				t.Errorf("%q", got)
			}

			if err := os.RemoveAll(own); err != nil {
				t.Fatal(err)
			}
			if err := c.make(own, elsewhere); err != nil {
				t.Fatal(err)
			}
			if err := store.GCRoots().Remove("web"); err != nil {
				t.Fatal(err)
			}
			untouched("removing")
			if _, err := os.Lstat(own); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
		})
	}
}

// Where the directory for this program is a symbolic link, roots made through it
// may be none: it is refused.
func TestGCRootsDirectoryIsALink(t *testing.T) {
	store, elsewhere := stateStore(t), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Dir(store.GCRoots().Of("web"))); err != nil {
		t.Fatal(err)
	}
	if err := store.GCRoots().Add(store, "web", []BaseName{named("a")}); err == nil {
		t.Error("no error")
	}
	if entries, _ := os.ReadDir(elsewhere); len(entries) > 0 {
		t.Errorf("made elsewhere: %v", entries)
	}
}

// flock takes a lock on gc.lock as another process would, and returns what gives
// it up.
func flock(t *testing.T, store Store, how int) (release func(), _ error) {
	t.Helper()
	f, err := os.OpenFile(store.StateDir+"/gc.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func() { f.Close() }, syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
}

func TestHoldCollector(t *testing.T) {
	store := stateStore(t)
	first, err := HoldCollector(store)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := first.Stat(); err != nil || st.Mode() != 0o600 {
		t.Errorf("gc.lock: %v, %v; Nix makes it with mode 0600", st.Mode(), err)
	}
	// As any number of containers that start do.
	second, err := HoldCollector(store)
	if err != nil {
		t.Fatalf("while another container starts: %v", err)
	}
	first.Close()
	if _, err := flock(t, store, syscall.LOCK_EX); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the collector gets the lock while a container starts: %v", err)
	}
	second.Close()
	release, err := flock(t, store, syscall.LOCK_EX)
	if err != nil {
		t.Fatalf("the lock stays taken: %v", err)
	}
	if f, err := HoldCollector(store); !errors.Is(err, ErrCollecting) || f != nil {
		t.Errorf("while the collector runs: %v, %v", f, err)
	}
	release()
	again, err := HoldCollector(store)
	if err != nil {
		t.Fatalf("after the collector: %v", err)
	}
	again.Close()
	if _, err := HoldCollector(Store{StateDir: store.StateDir + "/nowhere"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a state directory: %v", err)
	}
}

// GC roots say in which boot they were made, whatever the clock said.
func TestOfEarlierBoot(t *testing.T) {
	store := stateStore(t)
	roots := store.GCRoots()
	if err := roots.Add(store, "web", []BaseName{named("a")}); err != nil {
		t.Fatal(err)
	}
	if roots.OfEarlierBoot("web") {
		t.Error("those of now")
	}
	link := roots.Of("web") + "/" + BootLink
	if err := errors.Join(os.Remove(link), os.Symlink("another", link)); err != nil {
		t.Fatal(err)
	}
	if !roots.OfEarlierBoot("web") {
		t.Error("those of another boot")
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if roots.OfEarlierBoot("web") || roots.OfEarlierBoot("nobody") {
		t.Error("of those that do not say it, it is not known")
	}
}

// Without the boot's ID nobody knows which GC roots are from an earlier boot, and
// none are.
func TestOfEarlierBootUnknown(t *testing.T) {
	store := stateStore(t)
	roots := store.GCRoots()
	for _, id := range []string{"before", "another"} {
		if err := roots.Add(store, id, []BaseName{named("a")}); err != nil {
			t.Fatal(err)
		}
	}
	link := roots.Of("another") + "/" + BootLink
	if err := errors.Join(os.Remove(link), os.Symlink("another", link)); err != nil {
		t.Fatal(err)
	}
	readable, empty, none := bootFile, t.TempDir()+"/empty", t.TempDir()+"/none"
	defer func() { bootFile = readable }()
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.WriteFile(none, []byte("no ID\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, bootFile = range []string{"/nowhere/boot_id", t.TempDir(), empty, none} {
		if err := roots.Add(store, "unreadable", []BaseName{named("a")}); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"before", "another", "unreadable"} {
			if roots.OfEarlierBoot(id) {
				t.Errorf("%s: the GC roots of %s are taken for an earlier boot's", bootFile, id)
			}
		}
	}
	// Nor later, of those that were made meanwhile.
	bootFile = readable
	if roots.OfEarlierBoot("unreadable") || roots.OfEarlierBoot("before") || !roots.OfEarlierBoot("another") {
		t.Error("once it can be read")
	}
}
