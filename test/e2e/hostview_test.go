// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// cli calls nix-closure.
func cli(args ...string) (stdout, stderr string, err error) {
	return call(filepath.Join(*bin, "nix-closure"), args...)
}

func mustCLI(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, filepath.Join(*bin, "nix-closure"), args...)
}

// viewList is what view list --json prints.
func viewList(t *testing.T) (views []struct {
	Dir, State, Mode string
	Roots            []string
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(mustCLI(t, "view", "list", "--json")), &views); err != nil {
		t.Fatal(err)
	}
	return views
}

// hostView mounts a view of an attribute on a directory of the host, for the length of a
// test.
func hostView(t *testing.T, mode, attribute string) string {
	t.Helper()
	dir := t.TempDir()
	mustCLI(t, "view", "mount", "--mode", mode, store[attribute], dir)
	t.Cleanup(func() {
		if len(viewList(t)) > 0 {
			mustCLI(t, "view", "umount", dir)
		}
		nothingLeft(t)
	})
	return dir
}

// namesIn are those in a directory, sorted.
func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// addStorePath adds a store path to the host's store, and returns it.
func addStorePath(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	write(t, file, []byte("added later"))
	return strings.TrimSpace(must(t, "nix-store", "--add", file))
}

func eachMode(t *testing.T, f func(t *testing.T, mode string)) {
	for _, m := range modes {
		t.Run(m, func(t *testing.T) { f(t, m) })
	}
}

// A view on a directory of the host has exactly the closure, read-only, is pinned while
// it is there, and leaves nothing.
func TestHostView(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := hostView(t, mode, "env")
		want := closureOf(t, store["env"])
		if got := namesIn(t, dir); !slices.Equal(got, want) {
			t.Errorf("the view has %q\nwant %q", got, want)
		}
		added := addStorePath(t, "later-"+mode)
		if _, err := os.Stat(dir + "/" + filepath.Base(added)); !os.IsNotExist(err) {
			t.Errorf("a store path that was added later: %v", err)
		}
		for _, path := range []string{dir + "/new", dir + "/" + filepath.Base(store["bash"]) + "/new"} {
			if err := os.WriteFile(path, nil, 0o644); err == nil || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("writing %s: %v", path, err)
			}
		}
		views := viewList(t)
		if len(views) != 1 || views[0].Dir != dir || views[0].State != "mounted" || views[0].Mode != mode ||
			!slices.Equal(views[0].Roots, []string{store["env"]}) {
			t.Errorf("view list says %+v", views)
		}
		if text := mustCLI(t, "view", "list"); !strings.Contains(text, dir) || !strings.Contains(text, "mounted") {
			t.Errorf("view list says %s", text)
		}
		pins, err := filepath.Glob(gcRoots + "/*/" + filepath.Base(store["env"]))
		if err != nil || len(pins) != 1 {
			t.Errorf("GC roots %q, %v", pins, err)
		}
		mustCLI(t, "gc", "--unused-for", "0s")
		if views := viewList(t); len(views) != 1 || views[0].State != "mounted" {
			t.Errorf("after a sweep, view list says %+v", views)
		}
		if _, stderr, err := cli("view", "mount", store["env"], dir); err == nil ||
			!strings.Contains(stderr, "a view is mounted on "+dir) {
			t.Errorf("a second view on the same directory: %v %s", err, stderr)
		}
		if _, err := os.Stat(dir + "/" + filepath.Base(store["bash"]) + "/bin/bash"); err != nil {
			t.Errorf("after a sweep and a second mount: %v", err)
		}
		mustCLI(t, "view", "umount", dir)
		if got := namesIn(t, dir); len(got) > 0 {
			t.Errorf("after umount the directory has %q", got)
		}
		nothingLeft(t)
		if _, stderr, err := cli("view", "umount", dir); err == nil ||
			!strings.Contains(stderr, "no view was mounted here") {
			t.Errorf("umount again: %v %s", err, stderr)
		}
	})
}

// newRoot makes a directory for chroot with a view on its store directory.
func newRoot(t *testing.T, mode, attribute string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(root+storeDir, 0o755); err != nil {
		t.Fatal(err)
	}
	mustCLI(t, "view", "mount", "--mode", mode, store[attribute], root+storeDir)
	t.Cleanup(func() {
		mustCLI(t, "view", "umount", root+storeDir)
		nothingLeft(t)
	})
	return root
}

func TestHostViewChroot(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		root := newRoot(t, mode, "env")
		got := strings.Fields(must(t, "chroot", root, store["env"]+"/bin/python3", "-B", "-c",
			"import os; print(*sorted(os.listdir('/nix/store')))"))
		if want := closureOf(t, store["env"]); !slices.Equal(got, want) {
			t.Errorf("the store has %q\nwant %q", got, want)
		}
	})
}

// bubblewrap hands a view on by --ro-bind, also to an ordinary user.
func TestHostViewBubblewrap(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := hostView(t, mode, "env")
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		args := []string{
			"--ro-bind", dir, storeDir, "--proc", "/proc", "--dev", "/dev", "--unshare-all",
			store["env"] + "/bin/python3", "-B", "-c", "import os; print(*sorted(os.listdir('/nix/store')))",
		}
		want := closureOf(t, store["env"])
		for who, out := range map[string]string{
			"root": must(t, "bwrap", args...), "a user": userWithoutLogin(t, "erin").must(t, "bwrap", args...),
		} {
			if got := strings.Fields(out); !slices.Equal(got, want) {
				t.Errorf("for %s the store has %q\nwant %q", who, got, want)
			}
		}
	})
}

// A view whose mount was taken off by hand is gone, and so is its GC root after a sweep;
// one in a mount namespace of its own ends with that.
func TestHostViewSwept(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := hostView(t, mode, "env")
		must(t, "umount", "--lazy", dir)
		if views := viewList(t); len(views) != 1 || views[0].State != "gone" {
			t.Errorf("view list says %+v", views)
		}
		if out := mustCLI(t, "gc"); !strings.Contains(out, "record view:") {
			t.Errorf("gc says %q", out)
		}
		nothingLeft(t)

		script := `"$0" view mount --mode "$1" "$2" "$3" && echo mounted && read -r _`
		cmd := exec.Command("unshare", "--mount", "sh", "-c", script, filepath.Join(*bin, "nix-closure"), mode,
			store["env"], dir)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		if out := mustCLI(t, "gc"); out != "" {
			t.Errorf("gc removes %q of another mount namespace", out)
		}
		if views := viewList(t); len(views) != 1 || views[0].State != "mounted" {
			t.Errorf("of another mount namespace, view list says %+v", views)
		}
		_ = in.Close()
		_ = cmd.Wait()
		mustCLI(t, "gc")
		nothingLeft(t)
	})
}

// On a shared mount, the kernel copies what is mounted there. A copy is whole and
// read-only.
func TestHostViewShared(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		base := t.TempDir()
		must(t, "mount", "-t", "tmpfs", "tmpfs", base)
		defer must(t, "umount", "--recursive", "--lazy", base)
		must(t, "mount", "--make-shared", base)
		if err := os.MkdirAll(base+"/view", 0o755); err != nil {
			t.Fatal(err)
		}
		peer := t.TempDir()
		must(t, "mount", "--bind", base, peer)
		defer must(t, "umount", "--recursive", "--lazy", peer)
		mustCLI(t, "view", "mount", "--mode", mode, store["env"], base+"/view")
		want := closureOf(t, store["env"])
		if got := namesIn(t, peer+"/view"); !slices.Equal(got, want) {
			t.Errorf("the copy has %q\nwant %q", got, want)
		}
		for _, path := range []string{peer + "/view/new", peer + "/view/" + filepath.Base(store["bash"]) + "/new"} {
			if err := os.WriteFile(path, nil, 0o644); err == nil || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("writing %s: %v", path, err)
			}
		}
		mustCLI(t, "view", "umount", base+"/view")
		nothingLeft(t)
	})
}

func TestHostViewRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", nil)
	link := dir + "/result"
	if err := os.Symlink(store["env"], link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{unknown, dir}, 3, "is not valid"},
		{[]string{link, "/nix/store"}, 1, "has that in it"},
		{[]string{link, "/nix"}, 1, "has that in it"},
		{[]string{link, store["env"]}, 1, "is a part of /nix/store"},
		{[]string{link, runtimeDir}, 1, "is a part of " + runtimeDir},
		{[]string{link, dir + "/file"}, 1, "not a directory"},
		{[]string{link, dir + "/none"}, 1, "no such file or directory"},
		{[]string{"/etc/passwd", dir}, 1, "/etc/passwd is not below the store directory /nix/store"},
		{[]string{"--mode", "writable", link, dir}, 2, "not one of auto, overlay, bind"},
		{[]string{"--print", "json", link, dir}, 2, "neither systemd nor commands"},
	} {
		_, stderr, err := cli(append([]string{"view", "mount"}, c.args...)...)
		if status(err) != c.status || !strings.Contains(stderr, c.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %v %s\nwant %d and %s", c.args, err, stderr, c.status, c.says)
		}
	}
	nothingLeft(t)
}

// status is the exit status of a program that was called.
func status(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec returns it
		return exit.ExitCode()
	}
	return -1
}

// What --print prints makes the same view.
func TestHostViewPrinted(t *testing.T) {
	dir := t.TempDir()
	script := mustCLI(t, "view", "mount", "--mode", "bind", "--print=commands", store["env"], dir)
	must(t, "sh", "-c", script)
	defer must(t, "umount", "--recursive", "--lazy", dir)
	if got, want := namesIn(t, dir), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("the view has %q\nwant %q", got, want)
	}
	for _, path := range []string{dir + "/new", dir + "/" + filepath.Base(store["bash"]) + "/new"} {
		if err := os.WriteFile(path, nil, 0o644); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("writing %s: %v", path, err)
		}
	}

	unit := t.TempDir() + "/web-view.service"
	text := mustCLI(t, "view", "mount", "--print=systemd", store["env"], "/srv/web views")
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemd-analyze", "verify", "--man=no", unit)
	for _, line := range []string{
		"ExecStart=" + *bin + "/nix-closure view mount " + store["env"] + ` "/srv/web views"`,
		"ExecStop=" + *bin + `/nix-closure view umount "/srv/web views"`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the unit has no line %s:\n%s", line, text)
		}
	}
}

// machineProgram is nix-closure where every user can run it.
func machineProgram() string { return testhost.Dir() + "/local/bin/nix-closure" }
