// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
)

func TestOpen(t *testing.T) {
	h := newHost(t)
	path := h.dir + "/run"
	for range 2 { // the second time it exists
		d, err := Open(config.Config{RuntimeDir: path})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		for _, d := range []string{"", "/containers", "/closures", "/views", "/registrations"} {
			if st, err := os.Lstat(path + d); err != nil || st.Mode() != fs.ModeDir|0o700 {
				t.Errorf("%q: %v, %v", d, st.Mode(), err)
			}
		}
	}
}

// The contents of the runtime directory decide what containers see: no other user may
// have had it.
func TestOpenRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make a directory of somebody else's")
	}
	dir := func(mode os.FileMode) func(path string) error {
		return func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)) }
	}
	others := func(mode string) string { return " can be entered or written by others (mode " + mode + ")" }
	for _, c := range []struct {
		name string
		make func(path string) error
		want string // text after the path
	}{
		{"another's", func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 1234, 0)) },
			" belongs to user 1234, not to user 0 who runs the hook"},
		{"0755", dir(0o755), others("0755")},
		{"0777 and sticky", dir(0o777 | fs.ModeSticky), others("0777")},
		{"the group may enter", dir(0o710), others("0710")},
		{"others may write", dir(0o702), others("0702")},
		{"others may read", dir(0o704), others("0704")},
		{"others may enter", dir(0o701), others("0701")},
		{"a link to another's", func(path string) error {
			return errors.Join(os.Mkdir(path+"2", 0o700), os.Chown(path+"2", 1234, 0), os.Symlink(path+"2", path))
		}, " is a symbolic link"},
		{"a link to this user's own", func(path string) error {
			return errors.Join(os.Mkdir(path+"4", 0o700),
				os.Symlink(path+"4", path))
		}, " is a symbolic link"},
		{"a link to an open one", func(path string) error {
			return errors.Join(os.Mkdir(path+"3", 0o755),
				os.Symlink(path+"3", path))
		}, " is a symbolic link"},
		{"a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, ""},
		{"a link that leads nowhere", func(path string) error { return os.Symlink("nowhere", path) }, ""},
		{"a file for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/closures", nil, 0o600))
		}, ""},
		{"a link out for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Symlink("/tmp", path+"/views"))
		}, ""},
		{"a link up for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Symlink("..", path+"/containers"))
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := t.TempDir() + "/run"
			must(t, c.make(path))
			_, err := Open(config.Config{RuntimeDir: path})
			if err == nil || c.want != "" && !strings.HasPrefix(err.Error(), path+c.want) {
				t.Errorf("error %v, want %s", err, path+c.want)
			}
		})
	}
}

// descriptors returns how many files this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// A long-lived process, such as the NRI plugin, keeps no file open after a check.
func TestNothingStaysOpen(t *testing.T) {
	h := newHost(t)
	newDir(t, h).Close()
	runtime.GC() // closes what an earlier test left
	record := runs(t, Record{ID: "other", Bundle: h.dir})
	d := newDir(t, h)
	must(t, d.writeRecord(record))
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"Sweep", func() error {
			d, err := Open(config.Config{RuntimeDir: h.dir + "/run", StoreDir: h.store.Dir, StateDir: h.store.StateDir})
			if err != nil {
				return err
			}
			defer d.Close()
			_, err = d.Sweep(t.Context(), 0, false)
			return err
		}},
		{"MakeRoom", func() error {
			_, err := d.MakeRoom(t.Context(), view.Cost{})
			return err
		}},
		{"HoldCache", func() error {
			release, err := d.HoldCache()
			if err == nil {
				release()
			}
			return err
		}},
		{"Claim, refused", func() error {
			_, _, err := d.Claim(t.Context(), ended(t, Record{ID: "other", Bundle: "/another"}), nil)
			if err == nil || !strings.Contains(err.Error(), "another container with this ID") {
				t.Errorf("claimed: %v", err)
			}
			return nil
		}},
		{"a runtime directory with a damaged part", func() error {
			must(t, os.Symlink("/tmp", h.dir+"/run/broken"), os.Rename(h.dir+"/run/registrations", h.dir+"/aside"),
				os.Rename(h.dir+"/run/broken", h.dir+"/run/registrations"))
			_, err := Open(config.Config{RuntimeDir: h.dir + "/run"})
			must(t, os.Remove(h.dir+"/run/registrations"), os.Rename(h.dir+"/aside", h.dir+"/run/registrations"))
			if err == nil {
				return errors.New("it was opened")
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, c.call()) // files that are opened only once may stay open
			before := descriptors(t)
			for range 50 {
				must(t, c.call())
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d files are open, and before 50 calls %d", after, before)
			}
		})
	}
}
