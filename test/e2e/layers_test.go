// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// What is in a guarded directory shows by an overlay of that part too, whether the engine
// mounts it (`-v DIR:/x:O`) or the host has: it is refused, and a store path is asked for.
func TestVolumesOfParts(t *testing.T) {
	if err := errors.Join(
		os.MkdirAll("/nix/var/log/nix/drvs/ab", 0o755),
		os.WriteFile("/nix/var/log/nix/drvs/ab/x.drv", []byte("log"), 0o644),
		os.MkdirAll("/nix/var/nix/profiles/per-user/alice", 0o755),
		os.Symlink(store["foreign"], "/nix/var/nix/profiles/per-user/alice/profile-1-link"),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, "/nix/var/nix/profiles/per-user/alice") })
	another := container{runtime: "runc", root: "env"}.start(t)
	parts := []string{
		"/nix/var/log/nix", "/nix/var/log/nix/drvs/ab", "/nix/var/nix/profiles", "/nix/var/nix/profiles/per-user/alice",
		gcRoots, "/nix/var/nix/temproots", "/nix/store/.links",
	}
	for _, kind := range []string{"containers", "views"} {
		entries, err := os.ReadDir(runtimeDir + "/" + kind)
		if err != nil || len(entries) == 0 {
			t.Fatalf("%v %v", entries, err)
		}
		parts = append(parts, runtimeDir+"/"+kind)
		if kind == "views" {
			parts = append(parts, runtimeDir+"/views/"+entries[0].Name())
		}
	}
	started := func(t *testing.T, runtime, what string, flags []string, reason string) {
		t.Helper()
		c := container{runtime: runtime, root: "env", flags: flags}
		stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, reason) {
			t.Errorf("%s, %s: %v %q; the log says %q", runtime, what, err, stdout, said)
		}
	}
	for i, part := range parts {
		empty, at := t.TempDir(), t.TempDir()
		if err := syscall.Mount("overlay", at, "overlay", 0, "lowerdir="+part+":"+empty); err != nil {
			t.Fatal(err)
		}
		volume := []string{part + ":/x:O", at + ":/x"}[i%2]
		started(t, runtimes[i/2%2], volume, []string{"-v", volume}, "of the host, and with it more than the closure")
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	remove(t, another)
	for i, allowed := range []bool{true, false, true, false} {
		policy := "[[allow]]\nroots = [\"" + store["env"] + "\"]\n"
		if allowed {
			policy = "[[allow]]\nroots = [\"" + store["env"] + "\", \"" + store["foreign"] + "\"]\n"
		}
		writeConfig(t, policy)
		runtime, volume := runtimes[i/2], []string{store["foreign"] + ":/x:O", store["foreign"] + "/bin:/x:O"}[i/2]
		c := container{runtime: runtime, root: "env", flags: []string{"-v", volume}}
		if allowed {
			c.mustRun(t, store["env"]+"/bin/true")
		} else {
			mustRefuse(t, volume, c, store["foreign"]+" is not allowed here")
		}
		args := []string{"--hooks-dir", *bin + "/hooks.d", "--runtime", runtime, "run", "--rm", "--annotation",
			"nix-closure/roots=" + store["env"], "--rootfs", store["foreign"] + ":O", store["env"] + "/bin/true"}
		_, stderr, err := call("podman", args...)
		said := lastError(t)
		if allowed && err != nil || !allowed &&
			(err == nil || !strings.Contains(said, store["foreign"]+" is not allowed here")) {
			t.Errorf("%s: a store path as the root, allowed %v: %v %s; the log says %q", runtime, allowed, err, stderr,
				said)
		}
		nothingLeft(t)
	}
}

// Every mount of /proc is a file system of its own, and shows the processes of a PID
// namespace.
func TestOtherProc(t *testing.T) {
	at := t.TempDir()
	if err := syscall.Mount("proc", at, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	for _, runtime := range runtimes {
		id := strings.TrimSpace(must(t, "podman", "--runtime", runtime, "run", "--detach", "-v", "/nix:/nix",
			bareImage, store["env"]+"/bin/sleep", "600"))
		t.Cleanup(func() { remove(t, id) })
		pid, err := strconv.Atoi(strings.TrimSpace(must(t, "podman", "inspect", "--format", "{{.State.Pid}}", id)))
		if err != nil {
			t.Fatal(err)
		}
		others := t.TempDir()
		must(t, "nsenter", "--target", strconv.Itoa(pid), "--pid", "mount", "-t", "proc", "proc", others)
		t.Cleanup(func() { _ = syscall.Unmount(others, syscall.MNT_DETACH) })
		for _, source := range []string{at, at + "/1", others} {
			c := container{runtime: runtime, root: "env", flags: []string{"-v", source + ":/x"}}
			stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
			if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, "shows the processes") {
				t.Errorf("%s: %s: %v %q; the log says %q", runtime, source, err, stdout, said)
			}
		}
		remove(t, id)
		nothingLeft(t)
	}
}

// An overlay over a FUSE file system shows what that shows.
func TestOverlayOfFUSE(t *testing.T) {
	data, upper, work := mountFUSE(t, t.TempDir()), t.TempDir(), t.TempDir()
	at := t.TempDir()
	if err := syscall.Mount("overlay", at, "overlay", 0,
		"lowerdir="+data+",upperdir="+upper+",workdir="+work); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	for _, runtime := range runtimes {
		for _, volume := range []string{data + ":/x:O", at + ":/x"} {
			c := container{runtime: runtime, root: "env", flags: []string{"-v", volume}}
			mustRefuse(t, volume, c, "what a FUSE file system shows is what its program likes")
		}
	}
	writeConfig(t, "fuse = true\n")
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"-v", at + ":/x"}}
		c.mustRun(t, store["env"]+"/bin/true")
		c.flags = []string{"-v", at + ":/nix"}
		mustRefuse(t, "at /nix", c, "whose server can take away what is mounted there")
		nothingLeft(t)
	}
}

// The neighbour has an image's overlay for its root, and the container a plain directory.
func TestNeighbourOnOverlay(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"/proc", "/dev", "/sys", "/etc", "/tmp", "/run"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, runtime := range runtimes {
		id := container{runtime: runtime, root: "env"}.start(t)
		must(t, "podman", "--hooks-dir", *bin+"/hooks.d", "--runtime", runtime, "run", "--rm", "--pid", "container:"+id,
			"--annotation", "nix-closure/roots="+store["env"], "--rootfs", root, store["env"]+"/bin/true")
		remove(t, id)
	}
	nothingLeft(t)
}
