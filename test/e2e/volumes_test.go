// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// mountFUSE shows lower by fuse-overlayfs, for the length of a test.
func mountFUSE(t *testing.T, lower string) string {
	t.Helper()
	at := t.TempDir()
	must(t, "fuse-overlayfs", "-o", "lowerdir="+lower, at)
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// mustRefuse fails if a container starts, or if the log has not the reason.
func mustRefuse(t *testing.T, what string, c container, reason string) {
	t.Helper()
	stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
	if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, reason) {
		t.Errorf("%s, %s: %v %q; the log says %q, want %q", c.runtime, what, err, stdout, said, reason)
	}
	nothingLeft(t)
}

// A FUSE of the store shows the store, and no view is attached where a server can take
// it away.
func TestFUSE(t *testing.T) {
	ofStore, ofNix, data := mountFUSE(t, storeDir), mountFUSE(t, "/nix"), mountFUSE(t, t.TempDir())
	deep := t.TempDir()
	if err := os.Mkdir(deep+"/x", 0o755); err != nil {
		t.Fatal(err)
	}
	bindMount(t, ofNix, deep+"/x")
	root := t.TempDir()
	for _, dir := range []string{"/proc", "/dev", "/sys", "/etc", "/tmp", "/run"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	upper, work, fuseRoot := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, "fuse-overlayfs", "-o", "lowerdir="+root+",upperdir="+upper+",workdir="+work, fuseRoot)
	t.Cleanup(func() { _ = syscall.Unmount(fuseRoot, syscall.MNT_DETACH) })
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"-v", data + ":/x"}}
		mustRefuse(t, "any", c, "what a FUSE file system shows is what its program likes")
	}
	writeConfig(t, "fuse = true\n")
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			c := container{runtime: runtime, root: "env", hooks: hooksWith(t, stage.added...)}
			for _, source := range []string{ofStore, ofNix, deep, ofNix + "/store", ofNix + "/var/nix"} {
				c.flags = []string{"-v", source + ":/x"}
				mustRefuse(t, source, c, " of the host, and with it more than the closure")
			}
			c.flags = []string{"-v", data + ":/nix"}
			mustRefuse(t, "at /nix", c, "/nix of the container is on a fuse.fuse-overlayfs file system, whose server "+
				"can take away")
			c.flags = []string{"-v", data + ":/x"}
			c.mustRun(t, store["env"]+"/bin/true")
		}
		args := []string{"--hooks-dir", filepath.Join(*bin, "hooks.d"), "--runtime", runtime, "run", "--rm",
			"--annotation", "nix-closure/roots=" + store["env"], "--rootfs", fuseRoot, store["env"] + "/bin/echo",
			"it runs"}
		stdout, _, err := call("podman", args...)
		if said := lastError(t); err == nil || stdout != "" ||
			!strings.Contains(said, "/ of the container is on a fuse.fuse-overlayfs file system") {
			t.Errorf("%s: the root: %v %q; the log says %q", runtime, err, stdout, said)
		}
		nothingLeft(t)
	}
}

// podman's own overlays, with names that have to be escaped in an overlay's options.
func TestOverlayVolumes(t *testing.T) {
	for _, name := range []string{"with space", `back\slash`, "line\nbreak", "quote\"", "tab\there"} {
		alias := t.TempDir() + "/" + name
		if err := os.Mkdir(alias, 0o755); err != nil {
			t.Fatal(err)
		}
		bindMount(t, "/nix", alias)
		for _, runtime := range runtimes {
			for _, stage := range mountStages {
				c := container{runtime: runtime, root: "env", hooks: hooksWith(t, stage.added...),
					flags: []string{"-v", alias + ":/x:O"}}
				stdout, _, err := c.run(store["env"]+"/bin/ls", "/x/store")
				if err == nil || stdout != "" {
					t.Errorf("%s, %s, %q: it started: %q", runtime, stage.name, name, stdout)
				}
				nothingLeft(t)
			}
		}
	}
	data := t.TempDir()
	if err := os.WriteFile(data+"/file", []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"-v", data + ":/x:O"}}
		if got := c.mustRun(t, store["env"]+"/bin/cat", "/x/file"); got != "data" {
			t.Errorf("%s: %q", runtime, got)
		}
	}
}

// Who has the volume that is at /nix too can rename what is in it, and the view stays.
func TestRenamedVolume(t *testing.T) {
	want := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, registration := range []string{"false", "true"} {
			volume := t.TempDir()
			for _, dir := range []string{"/store", "/var/nix", "/var/lib", "/other"} {
				if err := os.MkdirAll(volume+dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(volume+"/file", []byte("beside"), 0o644); err != nil {
				t.Fatal(err)
			}
			c := container{runtime: runtime, mode: mode, root: "env",
				flags: []string{"-v", volume + ":/nix", "--annotation", "nix-closure/registration=" + registration}}
			id := c.start(t)
			for _, dir := range []string{"/var/nix", "/var", "/store"} {
				if err := os.Rename(volume+dir, volume+"/moved-"+strings.ReplaceAll(dir, "/", "-")); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(volume+"/store/evil", 0o755); err != nil {
				t.Fatal(err)
			}
			got := strings.Fields(execute(t, id, store["env"]+"/bin/ls", "/nix/store"))
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("registration %s: the store has %q", registration, got)
			}
			// What was beside the store is there, and is the volume's.
			if out := execute(t, id, store["env"]+"/bin/cat", "/nix/file"); out != "beside" {
				t.Errorf("%q", out)
			}
			execute(t, id, store["env"]+"/bin/bash", "-c", "echo x >/nix/other/new; echo y >/nix/var/lib/new")
			// What is new beside it is in memory, as much as may be written to a store.
			execute(t, id, store["env"]+"/bin/bash", "-c", "printf %3000000s x >/nix/new")
			if _, err := os.Stat(volume + "/new"); !os.IsNotExist(err) {
				t.Errorf("/nix/new in the volume: %v", err)
			}
			if !slices.ContainsFunc(readLog(t), func(l logLine) bool {
				return l.Container == id && l.Level == "info" && strings.HasPrefix(l.Msg, "volume covered: ")
			}) {
				t.Error("the log does not say that the volume is covered")
			}
			for _, file := range []string{volume + "/other/new", volume + "/moved--var/lib/new"} {
				if _, err := os.Stat(file); err != nil {
					t.Error(err)
				}
			}
			if registration == "true" {
				if out := execute(t, id, store["env"]+"/bin/ls", "/nix/var/nix"); !strings.Contains(out, "db") {
					t.Errorf("the state directory has %q", out)
				}
			}
			remove(t, id)
			nothingLeft(t)
		}
	})
}

// Containers that start together with one volume do not mind that each makes the store
// directory in it.
func TestSharedVolumeAtOnce(t *testing.T) {
	for _, runtime := range runtimes {
		for range 5 {
			volume := t.TempDir()
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					c := container{runtime: runtime, root: "env", flags: []string{"-v", volume + ":/nix"}}
					if stdout, stderr, err := c.run(store["env"]+"/bin/echo", "it runs"); err != nil ||
						stdout != "it runs\n" {
						t.Errorf("%s: %v %s", runtime, err, stderr)
					}
				})
			}
			all.Wait()
		}
		nothingLeft(t)
	}
}

// What the host mounts after the start does not come into a volume that did not ask
// for it.
func TestMountedAfterTheStart(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, options := range [][]string{{"bind"}, {"rbind"}, {"bind", "ro"}} {
			volume := t.TempDir()
			if err := os.Mkdir(volume+"/later", 0o755); err != nil {
				t.Fatal(err)
			}
			bindMount(t, volume, volume)
			if err := syscall.Mount("", volume, "", syscall.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			fifo := t.TempDir() + "/go"
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode),
				"echo started; read x </go; ls /volume/later", "createRuntime", "poststop")
			b.addMount(object{"destination": "/volume", "type": "bind", "source": volume, "options": options})
			b.addMount(object{"destination": "/go", "type": "bind", "source": fifo, "options": []string{"bind"}})
			cmd := b.command(t, runtime, "later-"+runtime+"-"+mode+"-"+strings.Join(options, "-"))
			var out strings.Builder
			started, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			n, _ := started.Read(buf)
			if string(buf[:n]) != "started\n" {
				t.Fatalf("%q: %s", buf[:n], lastLog(t))
			}
			bindMount(t, "/nix", volume+"/later")
			if err := os.WriteFile(fifo, []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for n, err = started.Read(buf); err == nil; n, err = started.Read(buf) {
				out.Write(buf[:n])
			}
			if err := cmd.Wait(); err != nil || out.String() != "" {
				t.Errorf("%q: %v, the container sees %q", options, err, out.String())
			}
			nothingLeft(t)
		}
	})
}

// What the runtime makes empty after the hooks may not be where the view is.
func TestMaskedPaths(t *testing.T) {
	for _, runtime := range runtimes {
		for _, masked := range []string{"/nix/store", "/nix", "/", "/nix/store/x", "//nix/./store/", "nix/store"} {
			b := newBundle(t, roots(store["env"]), "echo it runs", "createRuntime", "poststop")
			b.linux()["maskedPaths"] = []string{"/proc/kcore", masked}
			_, stdout, _, err := b.run(t, runtime)
			if said := lastError(t); err == nil || stdout != "" ||
				!strings.Contains(said, "linux.maskedPaths of config.json has "+masked+", which would hide") {
				t.Errorf("%s, %s: %v %q %s", runtime, masked, err, stdout, said)
			}
			nothingLeft(t)
		}
	}
}

// Nothing is made in the host's store for a container whose root is a store path.
func TestRootInStore(t *testing.T) {
	foreign := store["foreign"]
	before, err := os.ReadDir(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, runtime := range runtimes {
		b := newBundle(t, roots(store["env"]), "echo it runs")
		b.config["root"] = object{"path": foreign}
		b.config["mounts"] = []any{}
		check := func(way string, err error, stdout string) {
			t.Helper()
			if said := lastError(t); err == nil || stdout != "" ||
				!strings.Contains(said, "the container's root is "+foreign) {
				t.Errorf("%s, %s: %v %q %s", runtime, way, err, stdout, said)
			}
			nothingLeft(t)
		}
		become(t, runtime)
		_, stdout, _, err := b.run(t, wrapper())
		check("by the wrapper", err, stdout)
		after, err := os.ReadDir(foreign)
		if err != nil || len(after) != len(before) {
			t.Errorf("%s: in the store path are %v, were %v", runtime, after, before)
		}
		// The runtime makes what it mounts on before it calls a hook; the hook makes nothing.
		b.from("podman", "createRuntime", "poststop")
		_, stdout, _, err = b.run(t, runtime)
		check("by the hook", err, stdout)
		if _, err := os.Lstat(foreign + "/nix"); !os.IsNotExist(err) {
			t.Errorf("%s: /nix in the store path: %v", runtime, err)
		}
		removeAll(t, foreign+"/dev")
	}
}

// A container in the PID namespace of the host, or of a container that sees more, reads
// the store by /proc/PID/root.
func TestSharedPIDs(t *testing.T) {
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"--pid", "host"}}
		mustRefuse(t, "the host's", c, "the container has the host's PID namespace")
		c.flags = []string{"-v", "/proc:/x"}
		mustRefuse(t, "/proc of the host", c, "mount of /proc on /x: shows the processes of the host")

		same := container{runtime: runtime, root: "env"}.start(t)
		c.flags = []string{"--pid", "container:" + same}
		c.mustRun(t, store["env"]+"/bin/true") // the same closure shows no more

		other := container{runtime: runtime, root: "foreign", flags: []string{"-v", store["env"] + ":" + store["env"]}}
		other.flags = append(other.flags, "--detach")
		id := strings.TrimSpace(must(t, "podman", other.args(store["env"]+"/bin/sleep", "600")...))
		t.Cleanup(func() { remove(t, id) })
		c.flags = []string{"--pid", "container:" + id}
		stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, "which has another closure") {
			t.Errorf("%s: another closure's: %v %q %s", runtime, err, stdout, said)
		}

		// One without an annotation, which has the store whole.
		whole := strings.TrimSpace(must(t, "podman", "--runtime", runtime, "run", "--detach", "-v", "/nix:/nix",
			bareImage, store["env"]+"/bin/sleep", "600"))
		t.Cleanup(func() { remove(t, whole) })
		c.flags = []string{"--pid", "container:" + whole}
		stdout, _, err = c.run(store["env"]+"/bin/echo", "it runs")
		if said := lastError(t); err == nil || stdout != "" ||
			!strings.Contains(said, "and would see what it sees (/proc/PID/root)") {
			t.Errorf("%s: one with the store: %v %q %s", runtime, err, stdout, said)
		}
		for _, id := range []string{same, id, whole} {
			remove(t, id)
		}
		nothingLeft(t)
	}
	writeConfig(t, "shared-pid = true\n")
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"--pid", "host", "-v", "/proc:/x"}}
		c.mustRun(t, store["env"]+"/bin/true")
		nothingLeft(t)
	}
}
