// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// Record and GC roots are there while a container runs, and gone after it,
// however often poststop is called.
func TestRecordAndRoots(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		id := container{runtime: runtime, mode: mode, root: "env"}.start(t)
		record, err := os.ReadFile(filepath.Join(runtimeDir, "containers", id+".json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{`"mode":"` + mode + `"`, filepath.Base(store["env"]), id} {
			if !strings.Contains(string(record), part) {
				t.Errorf("the record lacks %s: %s", part, record)
			}
		}
		link, err := os.Readlink(filepath.Join(gcRoots, id, filepath.Base(store["env"])))
		if err != nil || link != store["env"] {
			t.Errorf("GC root: %q %v", link, err)
		}
		bundleDir := strings.TrimSpace(must(t, "podman", "inspect", "--format", "{{.OCIConfigPath}}", id))
		remove(t, id)
		nothingLeft(t)
		for range 2 {
			_, stderr, err := callHook(state(id, 0, filepath.Dir(bundleDir),
				map[string]string{"nix-closure/roots": store["env"]}), "poststop")
			if err != nil || stderr != "" {
				t.Errorf("poststop again: %v %s", err, stderr)
			}
			nothingLeft(t)
		}
	})
}

// The garbage collector takes nothing that a running container needs, and all of
// it when the container is gone.
func TestGarbageCollector(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		rebuildStore(t)
		want := closureOf(t, store["tools"])
		id := container{runtime: runtime, mode: mode, root: "tools"}.start(t)
		// From here on, nothing but the container keeps it.
		if err := os.Remove(filepath.Join(storeRoots(), "tools")); err != nil {
			t.Fatal(err)
		}
		must(t, "nix-store", "--gc")
		if got := closureOf(t, store["tools"]); !slices.Equal(got, want) {
			t.Errorf("the closure is now %q", got)
		}
		got := strings.Fields(execute(t, id, store["tools"]+"/bin/ls", "/nix/store"))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("in the container: %q", got)
		}
		remove(t, id)
		must(t, "nix-store", "--gc")
		if _, err := os.Lstat(store["tools"]); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still there after the container: %v", err)
		}
		// A root that was collected is not valid any more, whatever is remembered.
		_, _, err := container{runtime: runtime, mode: mode, root: "tools"}.run(store["tools"] + "/bin/true")
		if said := lastError(t); err == nil || !strings.Contains(said, "is not valid") {
			t.Errorf("it started, or was refused for another reason: %v %s", err, said)
		}
		nothingLeft(t)
	})
	rebuildStore(t)
}

func rebuildStore(t *testing.T) {
	t.Helper()
	must(t, "../stores/real/build.sh", filepath.Join(testhost.Dir(), "store"))
}

// A container that starts while the garbage collector runs is told to the
// collector by Nix.
func TestStartWhileCollecting(t *testing.T) {
	for _, runtime := range runtimes {
		garbage(t, 3000)
		collector := exec.Command("nix-store", "--gc")
		if err := collector.Start(); err != nil {
			t.Fatal(err)
		}
		waitForCollector(t)
		before := len(readLog(t))
		out := container{runtime: runtime, root: "env"}.mustRun(t, store["env"]+"/bin/ls", "/nix/store")
		if got := len(strings.Fields(out)); got != len(closureOf(t, store["env"])) {
			t.Errorf("%s: %d paths", runtime, got)
		}
		if err := collector.Wait(); err != nil {
			t.Fatal(err)
		}
		told := slices.ContainsFunc(readLog(t)[before:], func(l logLine) bool {
			return strings.HasPrefix(l.Msg, "the garbage collector is running")
		})
		if !told {
			t.Errorf("%s: the collector was not running: this test shows nothing", runtime)
		}
		nothingLeft(t)
	}
}

// garbage registers store paths that nothing needs.
func garbage(t *testing.T, count int) {
	t.Helper()
	var registration strings.Builder
	for i := range count {
		path := fmt.Sprintf("%s/%032d-garbage", storeDir, i)
		for j := range 10 {
			if err := os.MkdirAll(fmt.Sprintf("%s/%d", path, j), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprintf(&registration, "%s\n\n0\n", path)
	}
	cmd := exec.Command("nix-store", "--register-validity")
	cmd.Stdin = strings.NewReader(registration.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func waitForCollector(t *testing.T) {
	t.Helper()
	lock, err := os.Open("/nix/var/nix/gc.lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for range 1000 {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the garbage collector does not start")
}

// Without an annotation nothing is touched and nothing is logged.
func TestUnannotated(t *testing.T) {
	aside := runtimeDir + ".aside"
	if err := os.Rename(runtimeDir, aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Rename(aside, runtimeDir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}()
	before := len(readLog(t))
	for _, runtime := range runtimes {
		b := newBundle(t, map[string]string{"org.example/x": "y"}, "echo runs", "prestart", "createRuntime",
			"createContainer", "poststop")
		if _, out, stderr, err := b.run(t, runtime); err != nil || out != "runs\n" {
			t.Errorf("%s: %q %v %s", runtime, out, err, stderr)
		}
		// With the store bound whole, as before there was a hook.
		c := container{runtime: runtime, flags: []string{"-v", "/nix/store:/nix/store"}}
		if out := c.mustRun(t, store["foreign"]+"/bin/busybox", "echo", "runs"); out != "runs\n" {
			t.Errorf("%s: %q", runtime, out)
		}
	}
	for _, config := range []string{`{"root":{"path":"/x"}}`,
		`{"root":{"path":"/x"},"annotations":{"a":"b"},"unknown":[1]}`} {
		out, stderr, err := callHook(config, "precreate")
		if err != nil || out != config || stderr != "" {
			t.Errorf("precreate: %q %v %s", out, err, stderr)
		}
	}
	if _, err := os.Stat(runtimeDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime directory: %v", err)
	}
	if after := len(readLog(t)); after != before {
		t.Errorf("%d new lines in the log", after-before)
	}
}

// The same from the stages that other runtimes offer.
func TestStages(t *testing.T) {
	want := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, stage := range []string{"prestart", "createRuntime", "createContainer"} {
			annotations := map[string]string{"nix-closure/roots": store["env"], "nix-closure/mode": mode}
			b := newBundle(t, annotations, "ls /nix/store", stage, "poststop")
			_, out, stderr, err := b.run(t, runtime)
			got := strings.Fields(out)
			if slices.Sort(got); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %q %v %s", stage, got, err, stderr)
			}
			nothingLeft(t)
		}
	})
}

// Two engines, an engine and a runtime, or two stages may each have the hook called.
// The first attaches, and the others see that.
func TestCalledTwice(t *testing.T) {
	want := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), "ls -A /nix/store", "prestart",
			"createRuntime", "createContainer", "poststop")
		hooks := b.config["hooks"].(object)
		for stage, entries := range hooks {
			hooks[stage] = append(entries.([]object), entries.([]object)...)
		}
		_, out, stderr, err := b.run(t, runtime)
		got := strings.Fields(out)
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q %v %s", got, err, stderr)
		}
		nothingLeft(t)
	})
}

// From inside a user namespace nothing that the hook goes by can be believed: what
// belongs to root of the namespace may be an ordinary user's.
func TestInsideUserNamespace(t *testing.T) {
	const want = "looking at who runs the hook: createContainer hooks run in the container's user namespace, " +
		"where file owners cannot be trusted; register the hook as createRuntime"
	privateTmp(t)
	for _, runtime := range runtimes {
		b := newBundle(t, roots(store["env"]), "echo it runs", "createContainer", "poststop")
		linux := b.linux()
		linux["namespaces"] = append(linux["namespaces"].([]any), object{"type": "user"})
		for _, ids := range []string{"uidMappings", "gidMappings"} {
			linux[ids] = []object{{"containerID": 0, "hostID": 100000, "size": 65536}}
		}
		must(t, "chown", "-R", "100000:100000", b.dir+"/rootfs")
		must(t, "chmod", "0755", b.dir, filepath.Dir(b.dir))
		_, out, stderr, err := b.run(t, runtime)
		if err == nil || out != "" {
			t.Errorf("%s: it started: %q", runtime, out)
		}
		if runtime == "runc" && !strings.Contains(stderr, want) {
			t.Errorf("%s", stderr)
		}
		// The reason is in the log of the namespace's root, and nothing else is there.
		own := "/tmp/nix-closure-100000"
		log := readLogIn(t, own+"/nix-closure.log")
		if len(log) != 1 || log[0].Level != "error" || !strings.Contains(log[0].Msg, want) {
			t.Errorf("%s: the log has %+v", runtime, log)
		}
		if found, err := filepath.Glob(own + "/*"); err != nil || len(found) != 1 {
			t.Errorf("%s: it trusts a directory of the namespace's root: %q %v", runtime, found, err)
		}
		removeAll(t, own)
		nothingLeft(t)
	}
}

// From inside the container, the record still has the process as the host numbers
// it: the state that the hook gets may not.
func TestRecordFromInside(t *testing.T) {
	for _, runtime := range runtimes {
		b := newBundle(t, roots(store["env"]), "sleep 60", "createContainer", "poststop")
		id := "inside-" + runtime
		cmd := b.command(t, runtime, id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var state, record struct{ Pid int }
		var text []byte
		for range 200 {
			out, err := exec.Command(runtime, "state", id).Output()
			if err == nil && strings.Contains(string(out), `"running"`) {
				text = out
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := json.Unmarshal(text, &state); err != nil {
			t.Fatalf("%s: %v %s", runtime, err, text)
		}
		if text, err := os.ReadFile(runtimeDir + "/containers/" + id + ".json"); err != nil ||
			json.Unmarshal(text, &record) != nil || record != state {
			t.Errorf("%s: %v: the record has %+v and the runtime %+v", runtime, err, record, state)
		}
		must(t, runtime, "kill", id, "KILL")
		_ = cmd.Wait()
		nothingLeft(t)
	}
}

// Fifty containers of one closure that start at the same time share one layer,
// and all see the whole closure.
func TestManyAtOnce(t *testing.T) {
	for _, runtime := range runtimes {
		if err := errors.Join(os.RemoveAll(runtimeDir+"/views"), os.RemoveAll(runtimeDir+"/closures")); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintln(len(closureOf(t, store["env"])))
		var wg sync.WaitGroup
		for i := range 50 {
			b := newBundle(t, map[string]string{"nix-closure/roots": store["env"], "nix-closure/mode": "overlay"},
				"ls /nix/store | wc -l", "createRuntime", "poststop")
			cmd := b.command(t, runtime, fmt.Sprintf("many-%s-%d", runtime, i))
			wg.Go(func() {
				out, err := cmd.CombinedOutput()
				if err != nil || string(out) != want {
					t.Errorf("%s: %q %v", runtime, out, err)
				}
			})
		}
		wg.Wait()
		views, err := os.ReadDir(runtimeDir + "/views")
		if err != nil || len(views) != 1 {
			t.Errorf("%s: views: %v %v", runtime, views, err)
		}
		nothingLeft(t)
	}
}

// A second container with the id of one that runs, of another runtime root, is
// refused, and the first keeps what it has.
func TestSameID(t *testing.T) {
	annotations := map[string]string{"nix-closure/roots": store["env"]}
	first := newBundle(t, annotations, "sleep 60", "createRuntime", "poststop")
	cmd := first.command(t, "runc", "twin")
	cmd.Args = slices.Insert(cmd.Args, 1, "--root", t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	record := runtimeDir + "/containers/twin.json"
	for range 200 {
		if text, err := os.ReadFile(record); err == nil && strings.Contains(string(text), `"attached":true`) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	before, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}

	second := newBundle(t, annotations, "echo runs", "createRuntime", "poststop")
	cmd2 := second.command(t, "runc", "twin")
	cmd2.Args = slices.Insert(cmd2.Args, 1, "--root", t.TempDir())
	out, err := cmd2.CombinedOutput()
	if err == nil || !strings.Contains(string(out),
		"of another container with this ID is running (bundle "+first.dir+")") {
		t.Errorf("%v %s", err, out)
	}
	after, err := os.ReadFile(record)
	if err != nil || string(after) != string(before) {
		t.Errorf("the record of the first changed: %s %v", after, err)
	}
	if _, err := os.Readlink(filepath.Join(gcRoots, "twin", filepath.Base(store["env"]))); err != nil {
		t.Error(err)
	}
	must(t, "runc", append(cmd.Args[1:3], "kill", "twin", "KILL")...)
	_ = cmd.Wait()
	nothingLeft(t)
}

// Where an overlay cannot be had, auto takes the bind mode and says why, and
// overlay is refused.
func TestOverlayUnsupported(t *testing.T) {
	inside := store["plus"]
	ramfs := t.TempDir()
	if err := syscall.Mount("ramfs", ramfs, "ramfs", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(ramfs, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	cases := []struct {
		name    string
		prepare func(t *testing.T)
		why     string
	}{
		{"no extended attributes", func(t *testing.T) { writeConfig(t, fmt.Sprintf("runtime-dir = %q\n", ramfs)) },
			"an overlay cannot show the closure here: the file system of the runtime directory keeps no trusted " +
				"extended attributes"},
		{"a mount in the store", func(t *testing.T) { bindMount(t, store["foreign"], inside) },
			"an overlay cannot show the closure here: " + inside +
				" is a mount inside the store, and an overlay would show what is underneath"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.prepare(t)
			for _, runtime := range runtimes {
				run := container{runtime: runtime, root: "env"}
				out := run.mustRun(t, store["env"]+"/bin/ls", "/nix/store")
				if got := len(strings.Fields(out)); got != len(closureOf(t, store["env"])) {
					t.Errorf("%s: %d paths", runtime, got)
				}
				attached := false
				for _, l := range readLog(t) {
					if l.Msg == "attached" && l.Mode == "bind" && strings.HasPrefix(l.Why, "auto: "+c.why) {
						attached = true
					}
				}
				if !attached {
					t.Errorf("%s: the log does not say why: %s", runtime, lastLog(t))
				}
				run.mode = "overlay"
				if _, _, err := run.run(store["env"] + "/bin/true"); err == nil {
					t.Errorf("%s: it started", runtime)
				}
				if said := lastError(t); !strings.Contains(said, "making the view: "+c.why) ||
					!strings.HasSuffix(said, "; ask for mode bind or auto") {
					t.Errorf("%s: %s", runtime, said)
				}
				nothingLeft(t)
			}
		})
	}
}

// What the README warns of first: podman starts a container without a hook whose
// program is missing. Should podman refuse one day, this says so, and the README
// can be mended. And the README's canary sees it.
func TestMissingHookFailsOpen(t *testing.T) {
	broken := hooksWith(t)
	files, err := filepath.Glob(broken + "/*.json")
	if err != nil || len(files) != 2 {
		t.Fatalf("%q %v", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(strings.ReplaceAll(string(text), *bin, "/nowhere")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	canary := []string{"--annotation", "nix-closure/roots=/nix/store/canary", "-v", store["foreign"] + ":/f"}
	for _, runtime := range runtimes {
		c := container{runtime: runtime, hooks: broken, flags: canary}
		if _, stderr, err := c.run("/f/bin/busybox", "true"); err != nil {
			t.Errorf("%s: podman refuses a hook that is missing: %v %s", runtime, err, stderr)
		}
		c.hooks = ""
		if _, _, err := c.run("/f/bin/busybox", "true"); err == nil {
			t.Errorf("%s: the canary started with the hook in place", runtime)
		}
	}
}

// Where the database cannot be read, Nix's own program answers.
func TestWithoutDatabase(t *testing.T) {
	makeState(t, "/nix/var/unreadable")
	program := t.TempDir() + "/nix-store"
	// Only the hook has the other state directory.
	script := "#!/bin/sh\nNIX_STATE_DIR=/nix/var/nix exec /usr/bin/nix-store \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, fmt.Sprintf("state-dir = \"/nix/var/unreadable\"\nnix-store = %q\n", program))
	want := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, annotation := range []string{"nix-closure/roots=" + store["env"],
			"nix-closure/closure-info=" + store["closureInfo"]} {
			c := container{runtime: runtime, mode: mode, flags: []string{"--annotation", annotation}}
			got := strings.Fields(c.mustRun(t, store["env"]+"/bin/ls", "/nix/store"))
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s: the store has %q\nwant %q", annotation, got, want)
			}
		}
		_, _, err := container{runtime: runtime, mode: mode,
			flags: []string{"--annotation", "nix-closure/roots=" + unknown}}.run("/x")
		if said := lastError(t); err == nil || !strings.Contains(said, unknown+" is not valid") {
			t.Errorf("%v %s", err, said)
		}
	})
}

// A second start asks neither Nix nor the program that reads its database.
func TestRemembered(t *testing.T) {
	// The hook, and not what it would ask.
	alone := t.TempDir()
	text, err := os.ReadFile(filepath.Join(*bin, "nix-closure-hook"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(alone+"/nix-closure-hook", text, 0o755); err != nil {
		t.Fatal(err)
	}
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		annotations := with(roots(store["env"]), "nix-closure/mode", mode)
		first := newBundle(t, annotations, "true", "createRuntime", "poststop")
		if _, _, stderr, err := first.run(t, runtime); err != nil {
			t.Fatalf("%v %s", err, stderr)
		}
		// What was written a moment ago is not trusted, see closure.Cache.
		time.Sleep(1100 * time.Millisecond)
		if _, _, stderr, err := first.run(t, runtime); err != nil {
			t.Fatalf("%v %s", err, stderr)
		}
		second := newBundle(t, annotations, "ls /nix/store | wc -l", "createRuntime", "poststop")
		for _, stage := range []string{"createRuntime", "poststop"} {
			hook := second.hook("nix-closure-hook", stage)
			hook["path"] = alone + "/nix-closure-hook"
			second.config["hooks"].(object)[stage] = []object{hook}
		}
		_, out, stderr, err := second.run(t, runtime)
		if err != nil || out != fmt.Sprintln(len(closureOf(t, store["env"]))) {
			t.Errorf("%v %q %s", err, out, stderr)
		}
		// And without it, what is not remembered is not had.
		second.config["annotations"] = with(roots(store["foreign"]), "nix-closure/listing", "false")
		if err := os.RemoveAll(runtimeDir + "/closures"); err != nil {
			t.Fatal(err)
		}
		if _, out, _, err := second.run(t, runtime); err == nil {
			t.Errorf("started without the program that resolves: %q", out)
		}
		nothingLeft(t)
	})
}

// Which annotations podman calls the hook for.
func TestWhen(t *testing.T) {
	for annotation, called := range map[string]bool{
		"nix-closure/roots=x": true, "nix-closure/x=": true, "app.nix-closure/roots=x": true,
		"my-nix-closure/roots=x": false, "nix-closure=x": false, "example.com/nix-closure/roots=x": false,
	} {
		c := container{runtime: "runc", flags: []string{"--annotation", annotation, "-v", store["foreign"] + ":/f"}}
		if _, stderr, err := c.run("/f/bin/busybox", "true"); (err != nil) != called {
			t.Errorf("%s: called %v: %v %s", annotation, !called, err, stderr)
		}
	}
}
