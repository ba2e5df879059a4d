// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The owners of a closure's files in a container with a user namespace: host root has no
// number there, and its files belong to nobody, 65534.
func TestOwners(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, u := range []struct{ flag, want string }{
			{"--uidmap=0:0:65536", "0:0"},
			{"--uidmap=0:100000:65536", "65534:65534"},
		} {
			c := container{runtime: runtime, mode: mode, root: "env", flags: []string{u.flag}}
			got := c.mustRun(t, store["env"]+"/bin/stat", "--format=%u:%g", store["env"], store["data"])
			if want := u.want + "\n" + u.want + "\n"; got != want {
				t.Errorf("%s: %q, want %q", u.flag, got, want)
			}
		}
		nothingLeft(t)
	})
	// An ordinary user is root of the container, and not of the host.
	nixDaemon(t)
	alice := user(t, "alice")
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env"}
		if got := alice.mustRun(t, c, store["env"]+"/bin/stat", "--format=%u:%g",
			store["env"]); got != "65534:65534\n" {
			t.Errorf("rootless, %s: %q", runtime, got)
		}
		alice.nothingLeft(t)
	}
}

// podman looks for the working directory before any hook is called. With the store path
// mounted on its own place it finds it.
func TestWorkingDirectory(t *testing.T) {
	dir := store["env"] + "/share"
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		c := container{runtime: runtime, mode: mode, root: "env", flags: []string{"--workdir", dir}}
		_, stderr, err := c.run(store["env"]+"/bin/bash", "-c", "pwd")
		if want := fmt.Sprintf("workdir %q does not exist on container", dir); err == nil ||
			!strings.Contains(stderr, want) {
			t.Errorf("%v %s, want %q", err, stderr, want)
		}
		c.flags = append(c.flags, "-v", store["env"]+":"+store["env"])
		if got := c.mustRun(t, store["env"]+"/bin/bash", "-c", "pwd"); got != dir+"\n" {
			t.Errorf("it runs in %q", got)
		}
		c.flags = nil
		if got := c.mustRun(t, store["env"]+"/bin/env", "-C", dir, store["env"]+"/bin/bash", "-c", "pwd"); got != dir+
			"\n" {
			t.Errorf("it runs in %q", got)
		}
		nothingLeft(t)
	})
}

// imageOfStore makes an image whose entry point is a program in its own /nix/store, as
// Nix's dockerTools do.
func imageOfStore(t *testing.T, path string) string {
	t.Helper()
	const name = "localhost/of-its-store:latest"
	dir := t.TempDir()
	must(t, "cp", "/bin/busybox", dir)
	text := "FROM scratch\nCOPY busybox " + path + "/bin/echo\nENTRYPOINT [\"" + path + "/bin/echo\", \"it runs\"]\n"
	if err := os.WriteFile(dir+"/Containerfile", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "podman", "build", "--quiet", "--isolation=chroot", "--tag", name, dir)
	return name
}

// The view takes the place of the image's own store: a program there is not found, unless
// the host has its store path, and it is asked for.
func TestEntryPointInImagesStore(t *testing.T) {
	own := storeDir + "/" + strings.Repeat("z", 32) + "-own"
	image := imageOfStore(t, own)
	const it = "it runs\n"
	for _, runtime := range runtimes {
		if out := must(t, "podman", "--runtime", runtime, "run", "--rm", image); out != it {
			t.Fatalf("%s: without an annotation: %q", runtime, out)
		}
		c := container{runtime: runtime, root: "env", image: image}
		_, stderr, err := c.run()
		if err == nil || !strings.Contains(strings.ToLower(stderr), "no such file or directory") {
			t.Errorf("%s: %v %s", runtime, err, stderr)
		}
		c.root = ""
		c.flags = flags(roots(store["env"] + ":" + own))
		_, _, err = c.run()
		if said := lastError(t); err == nil || !strings.Contains(said, own+" is not valid") {
			t.Errorf("%s: %v %s", runtime, err, said)
		}
	}
	register(t, own)
	for _, runtime := range runtimes {
		c := container{runtime: runtime, image: image, flags: flags(roots(store["env"] + ":" + own))}
		if out := c.mustRun(t); out != it {
			t.Errorf("%s: %q", runtime, out)
		}
	}
	nothingLeft(t)
}

// register makes a store path that has a program, for the length of a test.
func register(t *testing.T, path string) {
	t.Helper()
	must(t, "install", "-D", "/bin/busybox", path+"/bin/echo")
	must(t, "/bin/sh", "-c", `printf '%s\n\n0\n' "$0" | nix-store --register-validity`, path)
	t.Cleanup(func() { must(t, "nix-store", "--delete", path) })
}

// A container that is stopped holds nothing. Once the collector has taken its closure, it
// does not start again, until the closure is there again.
func TestStoppedAndCollected(t *testing.T) {
	for _, runtime := range runtimes {
		install(t)
		kept := filepath.Join(storeRoots(), "tools")
		create := func() string {
			args := append([]string{"--runtime", runtime, "create"}, flags(roots(store["tools"]))...)
			return strings.TrimSpace(must(t, "podman", append(args, bareImage, store["tools"]+"/bin/sleep", "600")...))
		}
		id := create()
		t.Cleanup(func() { remove(t, id) })
		must(t, "podman", "start", id)
		must(t, "podman", "stop", "--time", "0", id)
		nothingLeft(t)
		// With a GC root of the host's own, it starts again.
		must(t, "nix-store", "--gc")
		must(t, "podman", "start", id)
		must(t, "podman", "stop", "--time", "0", id)
		nothingLeft(t)

		if err := os.Remove(kept); err != nil {
			t.Fatal(err)
		}
		must(t, "nix-store", "--gc")
		if _, err := os.Lstat(store["tools"]); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a stopped container keeps its closure: %v", err)
		}
		_, _, err := call("podman", "start", id)
		if said := lastError(t); err == nil || !strings.Contains(said, store["tools"]+" is not valid") {
			t.Errorf("%s: %v %s", runtime, err, said)
		}
		rebuildStore(t)
		must(t, "podman", "start", id)
		got := strings.Fields(execute(t, id, store["tools"]+"/bin/ls", storeDir))
		if want := closureOf(t, store["tools"]); !slices.Equal(got, want) {
			t.Errorf("%s: the store has %q, want %q", runtime, got, want)
		}
		remove(t, id)
		nothingLeft(t)
	}
}
