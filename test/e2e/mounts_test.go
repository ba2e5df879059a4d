// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// hooksWith makes a directory of the hook files that are installed, and of those of
// examples/podman for these stages. All users can read it.
func hooksWith(t *testing.T, stages ...string) string {
	t.Helper()
	// Not t.TempDir(): podman splits the option at commas, which that may have,
	// and starts the container without the hooks of a directory that is not there.
	to, err := os.MkdirTemp("", "hooks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, to) })
	if err := os.Chmod(to, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(*bin, "hooks.d", "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("the hook files that are installed: %q %v", files, err)
	}
	for _, stage := range stages {
		files = append(files, "../../examples/podman/"+stage+"/nix-closure-"+stage+".json")
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin"), []byte(*bin))
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// bindMount mounts for the length of a test.
func bindMount(t *testing.T, source, target string) {
	t.Helper()
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("mounting %s on %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", target, err)
		}
	})
}

func daemonSocket(t *testing.T) string {
	t.Helper()
	dir := "/nix/var/nix/daemon-socket"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir + "/socket"
}

// Both ways on which a mount list is looked at: as it was mounted, by the hook files
// that are installed; and rewritten before there is a container, for those who add
// precreate's.
var mountStages = []struct {
	name  string
	added []string // stages
}{
	{"by createRuntime", nil},
	{"by precreate", []string{"precreate"}},
}

// underneath takes every mount off /nix/store, then off /nix, and prints what is
// there.
const underneath = `
import ctypes, os, sys
umount2 = ctypes.CDLL(None, use_errno=True).umount2
count = 0
for point in (b"/nix/store", b"/nix"):
    while umount2(point, 2) == 0:
        count += 1
def tree(top):
    return sorted(os.path.join(d, n) for d, names, files in os.walk(top) for n in names + files)
print(count, tree("/nix"))
`

// What takes the store's place in the mount list does not show, not even when a
// process with the power to do so takes the view off.
func TestReplacedMounts(t *testing.T) {
	empty := t.TempDir()
	other := t.TempDir()
	if err := os.Mkdir(other+"/store", 0o755); err != nil {
		t.Fatal(err)
	}
	alias := t.TempDir()
	bindMount(t, storeDir, alias)
	cases := []struct {
		name  string
		flags []string
		left  string // what underneath prints after the number of mounts
	}{
		{"the store", []string{"-v", "/nix/store:/nix/store"}, "['/nix/store']"},
		{"the store, read-only", []string{"-v", "/nix/store:/nix/store:ro"}, "['/nix/store']"},
		{"a bind alias of the store", []string{"-v", alias + ":/nix/store"}, "['/nix/store']"},
		{"/nix", []string{"-v", "/nix:/nix"}, "['/nix/store']"},
		{"/nix and the store", []string{"-v", "/nix:/nix", "-v", "/nix/store:/nix/store"}, "['/nix/store']"},
		{"an empty directory on the store", []string{"-v", empty + ":/nix/store"}, "['/nix/store']"},
		{"a tmpfs on the store", []string{"--tmpfs", "/nix/store"}, "['/nix/store']"},
		{"a harmless directory on /nix", []string{"-v", other + ":/nix"}, ""},
		{"a tmpfs on /nix", []string{"--tmpfs", "/nix"}, ""},
	}
	for _, runtime := range runtimes {
		for _, mode := range modes {
			for _, stage := range mountStages {
				for _, c := range cases {
					t.Run(strings.Join([]string{runtime, mode, stage.name, c.name}, "/"), func(t *testing.T) {
						run := container{
							runtime: runtime, mode: mode, root: "env", image: bareImage,
							flags: append([]string{"--cap-add", "SYS_ADMIN"}, c.flags...),
							hooks: hooksWith(t, stage.added...),
						}
						before := len(readLog(t))
						want := closureOf(t, store["env"])
						got := strings.Fields(run.python(t,
							"import os; print('\\n'.join(sorted(os.listdir('/nix/store'))))"))
						if !slices.Equal(got, want) {
							t.Errorf("the store has %q\nwant %q", got, want)
						}
						// From here on python runs without its files.
						out := run.python(t, underneath)
						count, left, _ := strings.Cut(strings.TrimSpace(out), " ")
						if count == "0" {
							t.Error("nothing could be unmounted: this test shows nothing")
						}
						// Of the host's store; the runtime made a mount point for a path.
						for _, n := range []string{"/secret", ".links", "db.sqlite", filepath.Base(store["env"])} {
							if strings.Contains(left, n) {
								t.Errorf("below the view is the host's store: %s", out)
							}
						}
						if c.left != "" && left != c.left {
							t.Errorf("below the view: %s, want %s", left, c.left)
						}
						nothingLeft(t)
						if stage.added != nil && c.left != "" &&
							!slices.ContainsFunc(readLog(t)[before:], func(l logLine) bool {
								return l.Stage == "precreate" && l.Msg == "mount removed from config.json"
							}) {
							t.Error("precreate took nothing out")
						}
					})
				}
			}
		}
	}
}

// A mount that shows the store at another place keeps the container from
// starting, and is named.
func TestLeakingMounts(t *testing.T) {
	socket := daemonSocket(t)
	alias, nested, links := t.TempDir(), t.TempDir(), t.TempDir()
	bindMount(t, storeDir, alias)
	if err := os.MkdirAll(nested+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	bindMount(t, "/nix", nested+"/a/b")
	stateAlias := t.TempDir()
	bindMount(t, "/nix/var/nix/db", stateAlias)
	if err := os.Symlink("/nix", links+"/nix"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(socket, links+"/socket"); err != nil {
		t.Fatal(err)
	}
	mounted := t.TempDir()
	if err := syscall.Mount("overlay", mounted, "overlay", syscall.MS_RDONLY,
		"lowerdir=/nix/store:"+t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mounted, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cases := []struct{ name, volume, shows string }{
		{"the host", "/:/host", "/"},
		{"/nix", "/nix:/x", "/nix"},
		{"the store", "/nix/store:/x", "/nix/store"},
		{"the store, read-only", "/nix/store:/x:ro", "/nix/store"},
		{"an overlay of the store", "/nix/store:/x:O", "/nix/store"},
		{"a bind alias of the store", alias + ":/x", "/nix/store"},
		{"a directory with a bind alias in it", nested + ":/x", "/nix/store"},
		{"a symbolic link to /nix", links + "/nix:/x", "/nix"},
		// /nix of this machine is a directory of that disk.
		{"the disk below /nix", testhost.Dir() + ":/x", "/nix/store"},
		{"the directory below /nix", testhost.Dir() + "/nix:/x", "/nix"},
		{"a directory above all of that", filepath.Dir(testhost.Dir()) + ":/x", "/nix/store"},
		{"the runtime directory", runtimeDir + "/closures:/x", runtimeDir + "/closures"},
		{"an overlay on the host with the store in it", mounted + ":/x", "/nix/store"},
		{"hard links of the store", "/nix/store/.links:/x", "/nix/store/.links"},
		{"the daemon's socket", socket + ":/x", socket},
		{"the daemon's socket where it is", socket + ":" + socket, socket},
		{"the daemon's socket by a symbolic link", links + "/socket:/x", socket},
		{"the state directory", "/nix/var/nix:/nix/var/nix", "/nix/var/nix"},
		{"the database", "/nix/var/nix/db:/x", "/nix/var/nix/db"},
		{"a bind alias of the database", stateAlias + ":/x", "/nix/var/nix/db"},
		{"the database's file", "/nix/var/nix/db/db.sqlite:/x", "/nix/var/nix/db/db.sqlite"},
	}
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			hooks := hooksWith(t, stage.added...)
			for _, c := range cases {
				t.Run(strings.Join([]string{runtime, stage.name, c.name}, "/"), func(t *testing.T) {
					run := container{runtime: runtime, root: "env", flags: []string{"-v", c.volume}, hooks: hooks}
					stdout, stderr, err := run.run(store["env"]+"/bin/echo", "it runs")
					if err == nil || stdout != "" {
						t.Fatalf("it started: %v %q", err, stdout)
					}
					said := lastError(t)
					source, rest, _ := strings.Cut(c.volume, ":")
					destination, _, _ := strings.Cut(rest, ":")
					want := "looking at the container's mounts: mount of "
					for _, part := range []string{want, " on " + destination + ": shows " + c.shows + " of the host"} {
						if !strings.Contains(said, part) {
							t.Errorf("the log says %q, want %q in it", said, part)
						}
					}
					if !strings.HasSuffix(c.volume, ":O") && !strings.Contains(said, want+source) {
						t.Errorf("the log says %q, want the source %s in it", said, source)
					}
					// runc shows what a createRuntime hook says.
					if runtime == "runc" && stage.added == nil && !strings.Contains(stderr, said) {
						t.Errorf("podman says %q, want %q in it", stderr, said)
					}
					nothingLeft(t)
				})
			}
		}
	}
}

// The view does not get out of the container where its root is asked to propagate
// mounts, and lies on a mount of the host that does.
func TestSharedPropagation(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, propagation := range []string{"shared", "rshared", "rslave"} {
			b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), "ls /nix/store | wc -l",
				"createRuntime", "poststop")
			bindMount(t, b.dir, b.dir)
			if err := syscall.Mount("", b.dir, "", syscall.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			b.linux()["rootfsPropagation"] = propagation
			_, stdout, stderr, err := b.run(t, runtime)
			if want := fmt.Sprintln(len(closureOf(t, store["env"]))); err != nil || stdout != want {
				t.Fatalf("%s: %v %q %s", propagation, err, stdout, stderr)
			}
			// What had propagated would outlive the container's namespace.
			nothingLeft(t)
		}
	})
}

// Taking a mount off in the container leaves the host's alone, and the view does
// not come out, also where the container's mounts propagate to the host.
func TestPropagatingMounts(t *testing.T) {
	share := func(path string) {
		t.Helper()
		if err := syscall.Mount("", path, "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
	bindMount(t, storeDir, storeDir) // as NixOS does
	share("/nix")
	t.Cleanup(func() {
		if err := syscall.Mount("", "/nix", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
			t.Error(err)
		}
	})
	volume := t.TempDir()
	bindMount(t, volume, volume)
	share(volume)
	storeMounts := func() int {
		t.Helper()
		mountinfo, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(mountinfo), " /nix/store ")
	}
	before := storeMounts()
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, stage := range mountStages {
			c := container{runtime: runtime, mode: mode, root: "env", hooks: hooksWith(t, stage.added...)}
			c.flags = []string{"-v", "/nix:/nix:rshared"}
			if out := c.mustRun(t, store["env"]+"/bin/ls",
				"/nix/store"); len(strings.Fields(out)) != len(closureOf(t, store["env"])) {
				t.Errorf("%s: the store has %s", stage.name, out)
			}
			if after := storeMounts(); after != before {
				t.Errorf("%s: %d mounts on the host's store, %d before", stage.name, after, before)
			}
			c.flags = []string{"-v", volume + ":/nix:rshared"}
			_, _, err := c.run(store["env"] + "/bin/true")
			if said := lastError(t); err == nil ||
				!strings.HasSuffix(said,
					"what is mounted in /nix of the container propagates to the host; mount it without shared "+
						"propagation") {
				t.Errorf("%s: %v %s", stage.name, err, said)
			}
			mountinfo, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mountinfo), volume+"/store") {
				t.Errorf("%s: %v, on the host is\n%s", stage.name, err, mountinfo)
			}
			nothingLeft(t)
		}
	})
}

// An image cannot have the hook write in a directory of the host that its user
// mounts.
func TestImageCannotWriteInVolumes(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), "echo it runs", "createRuntime",
			"poststop")
		if err := os.Symlink("/volume", b.dir+"/rootfs/nix"); err != nil {
			t.Fatal(err)
		}
		volume := t.TempDir()
		b.addMount(object{"destination": "/volume", "type": "bind", "source": volume, "options": []string{"rbind"}})
		id, stdout, _, err := b.run(t, runtime)
		want := "nix-closure: container " + id +
			": attaching the view: /nix/store in the container: a symbolic link in the image leads to a mount that " +
			"has no such directory; the image must have a directory there, or nothing"
		if said := lastError(t); err == nil || stdout != "" || said != want {
			t.Errorf("%v %q %s", err, stdout, said)
		}
		if entries, err := os.ReadDir(volume); err != nil || len(entries) > 0 {
			t.Errorf("in the volume are %v %v", entries, err)
		}
		nothingLeft(t)
	})
}

// The root of a container that is an overlay of the host is not a way around.
func TestHostAsRoot(t *testing.T) {
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			for _, root := range []string{"/", "/:O"} {
				args := []string{"--hooks-dir", hooksWith(t, stage.added...), "--runtime", runtime, "run", "--rm",
					"--annotation", "nix-closure/roots=" + store["env"], "--rootfs", root, "/bin/echo", "it runs"}
				stdout, _, err := call("podman", args...)
				if err == nil || stdout != "" {
					t.Errorf("%s, %s, %s: it started: %q", runtime, stage.name, root, stdout)
				}
				nothingLeft(t)
			}
		}
	}
}

// A single store path at another place is what was asked for by name.
func TestHarmlessMounts(t *testing.T) {
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			c := container{runtime: runtime, root: "env", hooks: hooksWith(t, stage.added...), flags: []string{
				"-v", store["data"] + ":/data:ro", "-v", store["plus"] + ":/plus:ro", "-v", t.TempDir() + ":/tmp/x",
			}}
			if got := c.mustRun(t, store["env"]+"/bin/head", "-n", "1", "/data"); got == "" {
				t.Errorf("%s, %s: nothing in /data", runtime, stage.name)
			}
		}
	}
}
