// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallRuntimeDir puts the runtime directory on a tmpfs of its own.
func smallRuntimeDir(t *testing.T, options string) {
	t.Helper()
	if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", runtimeDir, "tmpfs", 0, "mode=0700,"+options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(runtimeDir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func usedInodes(t *testing.T) int {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(runtimeDir, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Files - st.Ffree)
}

// Any number of closures that come and go leaves room for what others write to the
// runtime directory's file system.
func TestRoom(t *testing.T) {
	smallRuntimeDir(t, "nr_inodes=320") // of which 80 may be taken
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprint("room-", i))
	}
	for i, one := range buildTrees(t, names, "--out-link", t.TempDir()+"/room") {
		annotations := with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true")
		b := newBundle(t, annotations, one.check("true"), "createRuntime", "poststop")
		if _, out, stderr, err := b.run(t, runtimes[i%2]); err != nil || out != "whole\n" {
			t.Fatalf("%s: %v %q %s", one.name, err, out, stderr)
		}
		// The directories, the locks, and what one start makes in addition.
		if used := usedInodes(t); used > 80+20 {
			t.Errorf("%s: %d inodes are used", one.name, used)
		}
	}
	if views, err := filepath.Glob(runtimeDir + "/views/*"); err != nil || len(views) < 3 || len(views) > 10 {
		t.Errorf("%d views: %v", len(views), err)
	}
}

// Where what runs takes all of it, a container that asks for no mode gets the one
// that needs no room.
func TestNoRoom(t *testing.T) {
	smallRuntimeDir(t, "nr_inodes=320")
	writeConfig(t, "runtime-inodes = 18\n")
	trees := buildTrees(t, []string{"first", "second"}, "--out-link", t.TempDir()+"/full")
	first := hold(t, "first", "runc", trees[0], with(roots(trees[0].root), "nix-closure/mode", "overlay"))
	const why = "an overlay cannot show the closure here: no room in /run/nix-closure: entries in use take "
	for _, runtime := range runtimes {
		second := newBundle(t, roots(trees[1].root), trees[1].check("true"), "createRuntime", "poststop")
		id, out, stderr, err := second.run(t, runtime)
		if err != nil || out != "whole\n" {
			t.Errorf("%s: %v %q %s", runtime, err, out, stderr)
		}
		attached := false
		for _, l := range readLog(t) {
			attached = attached || l.Container == id && l.Msg == "attached" && l.Mode == "bind" &&
				strings.HasPrefix(l.Why, "auto: "+why)
		}
		if !attached {
			t.Errorf("%s: the log does not say why: %s", runtime, lastLog(t))
		}
		second.config["annotations"] = with(roots(trees[1].root), "nix-closure/mode", "overlay")
		_, out, _, err = second.run(t, runtime)
		const what = "; raise runtime-inodes or runtime-size in the configuration, or end containers; ask for mode " +
			"bind or auto"
		if said := lastError(t); err == nil || out != "" || !strings.Contains(said, "making the view: "+why) ||
			!strings.HasSuffix(said, what) {
			t.Errorf("%s: %v %q %s", runtime, err, out, said)
		}
		second.config["annotations"] = with(roots(trees[1].root), "nix-closure/registration", "true")
		writeConfig(t, "runtime-inodes = 10\nmode = \"bind\"\n")
		_, out, _, err = second.run(t, runtime)
		if said := lastError(t); err == nil || out != "" ||
			!strings.Contains(said, "making the registration: no room in /run/nix-closure: ") {
			t.Errorf("%s: %v %q %s", runtime, err, out, said)
		}
		writeConfig(t, "runtime-inodes = 18\n")
	}
	first.letGo(t)
	// And then there is room.
	second := newBundle(t, with(roots(trees[1].root), "nix-closure/mode", "overlay"), trees[1].check("true"),
		"createRuntime", "poststop")
	if _, out, stderr, err := second.run(t, "crun"); err != nil || out != "whole\n" {
		t.Errorf("%v %q %s", err, out, stderr)
	}
	nothingLeft(t)
}
