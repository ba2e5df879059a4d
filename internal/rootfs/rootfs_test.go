// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// The image is hostile: whatever is at the store directory's place in it, what is
// opened or made lies in the image, or it is an error.
func TestDirectory(t *testing.T) {
	const storeDir = "/nix/store"
	link := func(target, name string) func(root string) error {
		return func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(root+name), 0o755), os.Symlink(target, root+name))
		}
	}
	dir := func(names ...string) func(root string) error {
		return func(root string) error {
			for _, n := range names {
				if err := os.MkdirAll(root+n, 0o755); err != nil {
					return err
				}
			}
			return nil
		}
	}
	both := func(steps ...func(root string) error) func(root string) error {
		return func(root string) error {
			for _, s := range steps {
				if err := s(root); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for _, c := range []struct {
		name string
		make func(root string) error
		want string // below the root; empty: an error
	}{
		{"nothing", dir(), "/nix/store"},
		{"a part", dir("/nix"), "/nix/store"},
		{"all", dir("/nix/store"), "/nix/store"},
		{"absolute link", both(dir("/etc"), link("/etc", "/nix")), "/etc/store"},
		{"absolute link to what the host has and the image has not", link("/usr/lib", "/nix"), ""},
		{"relative link", both(dir("/etc"), link("etc", "/nix")), "/etc/store"},
		{"link up", link("..", "/nix"), "/store"},
		{"link far up", link("../../../../../../../../..", "/nix"), "/store"},
		{"link to the root", link("/", "/nix"), "/store"},
		{"link for the store", both(dir("/data"), link("/data", "/nix/store")), "/data"},
		{"link far up for the store", both(dir("/data"), link("../../../../../../data", "/nix/store")), "/data"},
		{"link to the root for the store", link("/", "/nix/store"), "/"},
		{"links of links", both(dir("/c"), link("/b", "/nix"), link("a/../a", "/b"), link("c", "/a")), "/c/store"},
		{"chain", both(dir("/c"), link("/b", "/nix"), link("c", "/b")), "/c/store"},
		{"loop", link("nix", "/nix"), ""},
		{"loop of two", both(link("/b", "/nix"), link("/nix", "/b")), ""},
		{"link that leads nowhere", link("/nowhere", "/nix/store"), ""},
		{"link to a process's root", link("/proc/self/root/etc", "/nix"), ""},
		{"link to this process's directory", link("/proc/self/cwd", "/nix/store"), ""},
		{"file", func(root string) error { return os.WriteFile(root+"/nix", nil, 0o644) }, ""},
		{"file for the store", both(dir("/nix"),
			func(root string) error { return os.WriteFile(root+"/nix/store", nil, 0o644) }), ""},
		{"FIFO for the store", both(dir("/nix"),
			func(root string) error { return syscall.Mkfifo(root+"/nix/store", 0o644) }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			outside, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			path := outside + "/root"
			must(t, os.Mkdir(path, 0o755), c.make(path))
			root, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
			must(t, err)
			defer root.Close()
			got, err := Directory(root, storeDir, nil)
			if err == nil {
				defer got.Close()
				real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(got.Fd())))
				if must(t, err); c.want == "" || real != strings.TrimSuffix(path+c.want, "/") {
					t.Errorf("opened %s, want %q", real, c.want)
				}
				if st, err := got.Stat(); err != nil || !st.IsDir() {
					t.Errorf("%v, %v", st.Mode(), err)
				}
			} else if c.want != "" {
				t.Error(err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Errorf("outside of the image there are %v, %v", entries, err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	outside, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	image := outside + "/root"
	must(t, os.MkdirAll(image+"/dir/sub", 0o755), os.WriteFile(outside+"/file", nil, 0o644),
		os.Symlink(outside, image+"/out"), os.Symlink(outside+"/file", image+"/file"),
		os.Symlink("../../file", image+"/dir/up"), os.Symlink("/dir", image+"/in"))
	for _, c := range []struct {
		root, path string
		want       string // below the root
		is         error
	}{
		{root: image, path: "/dir/sub", want: "/dir/sub"},
		{root: image, path: "dir/sub", want: "/dir/sub"},
		{root: image, path: "/in/sub", want: "/dir/sub"},
		{root: image, path: "/"},
		{root: image, path: "/.."},
		{root: image, path: "../../.."},
		{root: image, path: "/in/../../.."},
		{root: image, path: "/dir/../../../dir", want: "/dir"},
		// All of these are on the host.
		{root: image, path: "/proc/self", is: os.ErrNotExist},
		{root: image, path: outside, is: os.ErrNotExist},
		{root: image, path: outside + "/file", is: os.ErrNotExist},
		{root: image, path: "../file", is: os.ErrNotExist},
		{root: image, path: "/out", is: os.ErrNotExist},
		{root: image, path: "/out/file", is: os.ErrNotExist},
		{root: image, path: "/file", is: os.ErrNotExist},
		{root: image, path: "/dir/up", is: os.ErrNotExist},
		// A link of /proc leads anywhere.
		{root: "/", path: "/proc/self/cwd", is: unix.ELOOP},
		{root: "/", path: "/proc/self/root/proc", is: unix.ELOOP},
		{root: "/", path: "/proc/self/fd/0", is: unix.ELOOP},
	} {
		root, err := os.OpenFile(c.root, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		got, err := Open(root, c.path)
		root.Close()
		if !errors.Is(err, c.is) {
			t.Errorf("%s: %v, want %v", c.path, err, c.is)
		}
		if err != nil {
			continue
		}
		real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(got.Fd())))
		got.Close()
		if must(t, err); real != c.root+c.want {
			t.Errorf("%s: opened %s, want %s", c.path, real, c.root+c.want)
		}
	}
}
