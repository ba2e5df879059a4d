// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	_ "embed"
)

// hostStore is all that can be told of the closure on the host, the names beside
// it, and what Nix knows.
func hostStore(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, "\n") + closureTree(t) + must(t, "nix-store", "--dump-db")
}

// closureTree has a line for each file of env's closure on the host.
func closureTree(t *testing.T) string {
	t.Helper()
	return must(t, "/usr/bin/python3", slices.Concat([]string{"-B", "-c", treeScript, "owners"},
		pathsOf(t, store["env"]))...)
}

// script runs a script with the python3 of the closure, in a container that runs.
func script(t *testing.T, id, text string, args ...string) string {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command("podman", append([]string{"exec", "--interactive", id, store["env"] + "/bin/python3", "-B",
		"-"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	return out.String()
}

// noneUsed fails if a container left that it uses a view or a registration, or
// a part of one.
func noneUsed(t *testing.T) {
	t.Helper()
	nothingLeft(t)
	for _, dir := range []string{"views", "registrations"} {
		entries, err := os.ReadDir(filepath.Join(runtimeDir, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.ContainsAny(e.Name(), "@.") {
				t.Errorf("left behind: %s/%s", dir, e.Name())
			}
		}
	}
}

// Nix builds in a writable store, without a network. What it builds, and what its
// garbage collector removes, is in this container alone.
func TestWritableBuild(t *testing.T) {
	before := hostStore(t)
	for _, who := range []struct {
		runtime  string
		flags    []string
		collects bool // whether the garbage collector can remove what is the host's
	}{
		{"runc", nil, true},
		// Nix keeps logs beside its state directory.
		{"crun", []string{"--read-only", "-e", "NIX_LOG_DIR=/tmp", "--user", "1000:1000"}, false},
		{"crun", userns, false},
	} {
		t.Run(fmt.Sprint(who.runtime, who.flags), func(t *testing.T) {
			c := container{runtime: who.runtime, root: "env"}.nix(writable).plus(who.flags...)
			one, other := c.start(t), c.start(t)
			built := strings.TrimSpace(execute(t, one, "/usr/bin/nix-build", "--no-out-link", "-E", `derivation {
				name = "built"; system = builtins.currentSystem;
				builder = "${builtins.storePath "`+store["env"]+`"}/bin/bash";
				args = [ "-c" "echo ${builtins.storePath "`+store["data"]+`"} > $out" ];
			}`))
			if got := execute(t, one, "/bin/cat", built); got != store["data"]+"\n" {
				t.Errorf("it built %q", got)
			}
			if got := execute(t, one, "/usr/bin/nix-store", "--query", "--references", built); got != store["data"]+
				"\n" {
				t.Errorf("it references %q", got)
			}
			if out, _, err := call("podman", "exec", other, "/bin/ls", "-d", built); err == nil {
				t.Errorf("in the other container is %s", out)
			}
			if _, err := os.Lstat(built); !os.IsNotExist(err) {
				t.Errorf("on the host: %v", err)
			}
			_, stderr, err := call("podman", "exec", one, "/usr/bin/nix-store", "--gc")
			if (err == nil) != who.collects || !who.collects && !strings.Contains(stderr, "Operation not permitted") {
				t.Errorf("nix-store --gc: %v %s", err, stderr)
			}
			if _, _, err := call("podman", "exec", one, "/bin/ls", store["env"]); (err != nil) != who.collects {
				t.Errorf("the root, after nix-store --gc: %v", err)
			}
			if hostStore(t) != before {
				t.Error("the host's store or database changed")
			}
			const whole = "ls /nix/store; nix-store -qR $1; nix-store --verify --check-contents 2>&1 | grep -v " +
				"'\\.\\.\\.$'"
			names := closureOf(t, store["env"])
			got := strings.Fields(execute(t, other, "/bin/sh", "-c", whole+"; :", "sh", store["env"]))
			if len(got) != 2*len(names) || !slices.Equal(got[:len(names)], names) {
				t.Errorf("the other container has or knows %q", got)
			}
			remove(t, one)
			remove(t, other)
			noneUsed(t)
		})
	}
}

//go:embed testdata/change.py
var changeScript string

// What a container changes in a writable store is there for it alone, and until it ends.
func TestWritable(t *testing.T) {
	all := []string{
		"a new file", "a new directory", "a new file in it", "change a file", "remove a file", "a new file in a path",
		"rename a path", "rename it back", "remove a path",
	}
	// What belongs to host root, only those can change who have power over its files.
	others := map[string]string{"change a file": "EACCES", "a new file in a path": "EACCES", "remove a path": "EACCES"}
	before := hostStore(t)
	for _, who := range []struct {
		name    string
		runtime string
		flags   []string
		refused map[string]string
	}{
		{name: "root", runtime: "crun"},
		{name: "user", runtime: "runc", flags: []string{"--user", "1000:1000"}, refused: others},
		{name: "root of a user namespace", runtime: "runc", flags: userns, refused: others},
	} {
		want := map[string]string{}
		for _, what := range all {
			want[what] = "done"
		}
		maps.Copy(want, who.refused)
		t.Run(who.name, func(t *testing.T) {
			c := container{runtime: who.runtime, root: "env"}.plus(writable).plus(who.flags...)
			one, other := c.start(t), c.start(t)
			var got map[string]string
			if err := json.Unmarshal([]byte(script(t, one, changeScript, store["data"], store["script"],
				store["plus"])), &got); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
			const tree = "import os,sys; print(sorted(os.path.join(d, n) for d, names, files in " +
				"os.walk('/nix/store') for n in names + files), open(sys.argv[1]).read())"
			untouched := script(t, other, tree, store["data"])
			if strings.Contains(untouched, "new") || untouched == script(t, one, tree, store["data"]) {
				t.Error("the other container changed too")
			}
			// The hooks are those of the command.
			must(t, "podman", "--hooks-dir", filepath.Join(*bin, "hooks.d"), "restart", "--time", "0", one)
			if script(t, one, tree, store["data"]) != untouched {
				t.Error("after it was started again, the store is not as at first")
			}
			remove(t, one)
			remove(t, other)
			noneUsed(t)
		})
	}
	if hostStore(t) != before {
		t.Error("the host's store changed")
	}
}

var (
	//go:embed testdata/attack.py
	attackScript string
	//go:embed testdata/everything.py
	everythingScript string
)

// add makes a store path on the host that is in no closure, and returns it.
func add(t *testing.T, name string, fill func(path string) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := fill(path); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(must(t, "nix-store", "--add", path))
}

// Whatever a container does in a writable store, with full power over its own mounts, it
// sees no path that is not of its closure: not at once, not when the kernel forgot
// what it had looked up, and not underneath.
func TestWritableAttacks(t *testing.T) {
	// In a file, the target of a link, and the store path foreign.
	const tenant = "another tenant\n"
	file := add(t, "foreign-file", func(path string) error { return os.WriteFile(path, []byte(tenant), 0o644) })
	link := add(t, "foreign-link", func(path string) error { return os.Symlink(tenant, path) })
	control := container{runtime: "runc",
		flags: []string{"--annotation", "nix-closure/roots=" + store["env"] + " " + store["foreign"]}}
	if out := control.python(t, everythingScript); !strings.Contains(out, store["foreign"]+"/secret") {
		t.Fatalf("a container that may see another's path sees %s", out)
	}
	capable := []string{"--cap-add", "all", "--security-opt", "seccomp=unconfined"}
	before := closureTree(t)
	for _, who := range []struct {
		name     string
		runtimes []string
		flags    []string
		mounts   bool // whether it can mount what it likes
	}{
		{name: "all capabilities", runtimes: runtimes, flags: capable, mounts: true},
		{name: "privileged", runtimes: []string{"runc"}, flags: []string{"--privileged"}, mounts: true},
		{name: "all capabilities, userns", runtimes: []string{"crun"}, flags: append(capable, userns...), mounts: true},
		// crun 1.8 tells the hook of such a container that its bundle is /.
		{name: "privileged, userns", runtimes: []string{"runc"}, flags: append([]string{"--privileged"}, userns...),
			mounts: true},
		{name: "user", runtimes: []string{"crun"}, flags: []string{"--user", "1000:1000"}},
	} {
		for _, runtime := range who.runtimes {
			t.Run(who.name+"/"+runtime, func(t *testing.T) {
				id := container{runtime: runtime, root: "env"}.plus(writable, registered).plus(who.flags...).start(t)
				var got struct {
					Tried map[string]string
					Seen  []string
				}
				if err := json.Unmarshal([]byte(script(t, id, attackScript, store["foreign"], file, link, store["plus"],
					store["data"])), &got); err != nil {
					t.Fatal(err)
				}
				if len(got.Seen) > 0 {
					t.Errorf("the container saw %q", got.Seen)
				}
				// Without these this test shows nothing.
				done := []string{"mkdir", "file", "rename", "exchange", "rename of a file", "user attributes"}
				if who.mounts {
					done = append(done, "bind")
				}
				if who.mounts && !slices.Contains(who.flags, "--uidmap") {
					done = append(done, "rename of what is below", "attributes only", "trusted attributes", "hard link",
						"an overlay over the store", "remount")
				}
				for _, what := range done {
					if got.Tried[what] != "done" {
						t.Errorf("%s: %s", what, got.Tried[what])
					}
				}
				for what, how := range got.Tried {
					if (strings.HasPrefix(what, "whiteout ") || what == "by handle" || what == "the same overlay") &&
						how == "done" {
						t.Errorf("%s: %s", what, how)
					}
				}
				// To be looked up again, with what came later.
				add(t, "later-"+id, func(path string) error { return os.WriteFile(path, []byte(tenant), 0o644) })
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2\n"), 0); err != nil {
					t.Fatal(err)
				}
				want := "0 []\n"
				if who.mounts {
					want = "2 []\n"
				}
				if got := script(t, id, everythingScript); got != want {
					t.Errorf("in the end, the mounts that were taken off and what was found: %s, want %s", got, want)
				}
				remove(t, id)
				noneUsed(t)
			})
		}
	}
	if closureTree(t) != before {
		t.Error("the closure changed on the host")
	}
}

// How much can be written: what the configuration says, half of the memory that the
// container may have, or a gibibyte.
func TestWritableSize(t *testing.T) {
	for i, s := range []struct {
		name, config string
		flags        []string
		size         int64
	}{
		{name: "default", size: 1 << 30},
		{name: "a memory limit", flags: []string{"--memory", "64m"}, size: 32 << 20},
		{name: "a large memory limit", flags: []string{"--memory", "4g"}, size: 2 << 30},
		{name: "a small memory limit", flags: []string{"--memory", "32m"}, size: 16 << 20},
		{name: "configured", config: "writable-size = \"8M\"\n", size: 8 << 20},
		{name: "configured, and a memory limit", config: "writable-size = \"8M\"\n", flags: []string{"--memory", "64m"},
			size: 8 << 20},
	} {
		t.Run(s.name, func(t *testing.T) {
			if s.config != "" {
				writeConfig(t, s.config)
			}
			c := container{runtime: runtimes[i%2], root: "env"}.plus(writable).plus(s.flags...)
			var size, written int64
			var how string
			if s.size > 64<<20 {
				_, err := fmt.Sscan(c.python(t,
					"import os; s = os.statvfs('/nix/store'); print(s.f_blocks * s.f_frsize)"), &size)
				if err != nil || size != s.size {
					t.Errorf("%d bytes, want %d: %v", size, s.size, err)
				}
				return
			}
			_, err := fmt.Sscan(c.python(t, fillScript, "/nix/store"), &size, &written, &how)
			if err != nil || size != s.size || how != "ENOSPC" || written < s.size-64<<10 || written > s.size {
				t.Errorf("%d of %d bytes written, then %s, want %d: %v", written, size, how, s.size, err)
			}
			noneUsed(t)
		})
	}
}

// A writable store that cannot be had is refused: nothing less takes its place.
func TestWritableRefused(t *testing.T) {
	ramfs := t.TempDir()
	if err := syscall.Mount("ramfs", ramfs, "ramfs", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(ramfs, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	inside := store["plus"]
	for _, c := range []struct {
		name    string
		modes   []string // with runc and crun
		prepare func(t *testing.T)
		want    string // the end of the message
	}{
		{name: "asked for in bind mode", modes: []string{"bind", "bind"}, prepare: func(*testing.T) {},
			want: ": reading the annotations: annotations: nix-closure/writable is true, which one overlay with a " +
				"layer in " +
				"memory does, and nix-closure/mode is bind; ask for mode overlay or auto"},
		{name: "configured to bind", modes: []string{"", ""},
			prepare: func(t *testing.T) { writeConfig(t, "mode = \"bind\"\n") },
			want: ": making the view: a writable store needs an overlay, and the configuration says mode bind; " +
				"ask for " +
				"mode overlay with an annotation"},
		{name: "no extended attributes", modes: []string{"", "overlay"},
			prepare: func(t *testing.T) { writeConfig(t, fmt.Sprintf("runtime-dir = %q\n", ramfs)) },
			want: ": making the view: a writable store needs an overlay: an overlay cannot show the closure here: " +
				"the file " +
				"system of the runtime directory keeps no trusted extended attributes: operation not supported"},
		{name: "a mount in the store", modes: []string{"overlay", "auto"},
			prepare: func(t *testing.T) { bindMount(t, store["foreign"], inside) },
			want: ": making the view: a writable store needs an overlay: an overlay cannot show the closure here: " +
				"" + inside +
				" is a mount inside the store, and an overlay would show what is underneath"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.prepare(t)
			for i, mode := range c.modes {
				run := container{runtime: runtimes[i], mode: mode, root: "env"}.plus(writable, registered)
				stdout, _, err := run.run(store["env"]+"/bin/echo", "it runs")
				if said := lastError(t); err == nil || stdout != "" || !strings.HasSuffix(said, c.want) {
					t.Errorf("%s, mode %q: %v %q %s, want %s", run.runtime, mode, err, stdout, said, c.want)
				}
				noneUsed(t)
			}
		})
	}
	if left := must(t, "find", ramfs+"/containers", ramfs+"/views", ramfs+"/registrations", "-mindepth",
		"1"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	// Who says that it is to be an overlay gets one.
	writeConfig(t, "mode = \"bind\"\n")
	container{runtime: "runc", mode: "overlay", root: "env"}.plus(writable).mustRun(t, store["env"]+"/bin/touch",
		"/nix/store/new")
	noneUsed(t)
}

// The store is one mount, writable also where the root is read-only. On it, and on
// the state directory, device nodes and set-user-ID programs are nothing special.
func TestWritableMounts(t *testing.T) {
	const make = `
import os, shutil, stat, sys
for directory in "/nix/store", "/nix/var/nix", "/elsewhere":
    try:
        os.makedirs(directory, exist_ok=True)
        os.mknod(directory + "/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        try:
            print(directory, open(directory + "/zero", "rb").read(1))
        except PermissionError:
            print(directory, "nothing special")
        shutil.copyfile(os.path.realpath(sys.argv[1] + "/bin/id"), directory + "/id")
        os.chmod(directory + "/id", 0o4755)
    except OSError as e:
        print(directory, e.strerror)
`
	for _, c := range []struct {
		runtime   string
		flags     []string
		elsewhere string // of a device there
		users     string // as whom the programs run
	}{
		{runtime: "runc", elsewhere: "b'\\x00'", users: "1000\n1000\n0\n"},
		{runtime: "crun", flags: []string{"--read-only"}, elsewhere: "Read-only file system", users: "1000\n1000\n"},
	} {
		id := container{runtime: c.runtime, root: "env"}.plus(writable, registered, "--cap-add",
			"all").plus(c.flags...).start(t)
		want := "/nix/store nothing special\n/nix/var/nix nothing special\n/elsewhere " + c.elsewhere + "\n"
		if got := script(t, id, make, store["env"]); got != want {
			t.Errorf("%s: %s, want %s", c.runtime, got, want)
		}
		const run = "for d in /nix/store /nix/var/nix /elsewhere; do [ ! -e $d/id ] || $d/id -u; done"
		if got := must(t, "podman", "exec", "--user", "1000", id, store["env"]+"/bin/sh", "-c", run); got != c.users {
			t.Errorf("%s: set-user-ID programs run as %q, want %q", c.runtime, got, c.users)
		}
		var mounts []string
		for line := range strings.Lines(execute(t, id, store["env"]+"/bin/cat", "/proc/self/mountinfo")) {
			if fields := strings.Fields(line); strings.HasPrefix(fields[4], "/nix") {
				mounts = append(mounts, strings.Join(fields[4:7], " "))
			}
		}
		slices.Sort(mounts)
		if want := []string{"/nix/store rw,nosuid,nodev,relatime -",
			"/nix/var/nix rw,nosuid,nodev,relatime -"}; !slices.Equal(mounts, want) {
			t.Errorf("%s: mounts %q, want %q", c.runtime, mounts, want)
		}
		remove(t, id)
		noneUsed(t)
	}
}
