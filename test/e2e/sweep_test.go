// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sweep runs nix-closure gc, which must succeed and write nothing but data.
func sweep(t *testing.T, flags ...string) string {
	t.Helper()
	out, stderr, err := call(*bin+"/nix-closure", append([]string{"gc"}, flags...)...)
	if err != nil || stderr != "" {
		t.Errorf("gc %q: %v %s", flags, err, stderr)
	}
	return out
}

// everything is what is left of containers, be it unused or not.
func everything(t *testing.T) []string {
	t.Helper()
	all := leftovers(t)
	for _, dir := range []string{"views", "registrations", "closures"} {
		files, err := filepath.Glob(filepath.Join(runtimeDir, dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		hidden, _ := filepath.Glob(filepath.Join(runtimeDir, dir, ".*"))
		all = slices.Concat(all, files, hidden)
	}
	return all
}

// sweptClean sweeps once, and fails where that leaves something.
func sweptClean(t *testing.T, when string) {
	t.Helper()
	out := sweep(t, "--unused-for", "0s")
	if left := everything(t); len(left) > 0 {
		t.Errorf("%s: after a sweep of %q there are %q", when, out, left)
	}
}

// A hook that is killed, at any moment, leaves a container that did not start, of
// which there is a record if there is anything. The next start of the same id
// works, and one sweep removes all of it, whichever comes first.
func TestKilledHook(t *testing.T) {
	const id = "killed"
	want := fmt.Sprintln(len(closureOf(t, store["tools"])))
	moments := []struct {
		before string // this system call
		path   string // of it; empty: any
		times  int    // which of them; 0: the first
		mode   string // empty: both in turn
		made   bool   // views is there, so that what is made is the layer
		known  bool   // another container had the same closure, so that it is on record at once
	}{
		{before: "openat", path: configFile},
		{before: "mkdirat", path: runtimeDir + "/views"},
		{before: "flock"},
		{before: "openat", path: runtimeDir + "/containers"}, // sweeping
		{before: "openat", path: "/nix/var/nix/gc.lock"},
		{before: "renameat", path: runtimeDir + "/closures"}, // by the program that resolves
		{before: "fcntl", path: runtimeDir + "/locks"},       // claiming the ID
		{before: "openat", path: runtimeDir + "/containers/." + id + ".json"},
		{before: "write", path: runtimeDir + "/containers/." + id + ".json"},
		{before: "renameat", path: runtimeDir + "/containers/" + id + ".json"},
		{before: "mkdirat", path: id}, // for GC roots
		{before: "symlinkat"},
		{before: "mkdirat", path: runtimeDir + "/views", mode: "overlay", made: true},
		{before: "fsetxattr", mode: "overlay"},
		{before: "mkdirat", path: filepath.Base(store["tools"]), mode: "overlay"}, // half of the layer
		{before: "utimensat", path: runtimeDir + "/views", mode: "overlay"},       // all of it
		{before: "fsopen"},
		{before: "fsmount"},
		{before: "renameat", path: runtimeDir + "/registrations"}, // by the program that makes it
		{before: "openat", path: "db/schema"},                     // its copy
		{before: "unshare"},
		{before: "setns"},
		{before: "open_tree", mode: "overlay"},
		{before: "open_tree", times: 5, mode: "bind"},
		{before: "move_mount", mode: "overlay"},
		{before: "move_mount", mode: "bind"},
		{before: "move_mount", times: 2, mode: "overlay"},
		{before: "move_mount", times: 8, mode: "bind"},
		{before: "mount_setattr"},
		{before: "setns", times: 2}, // all is attached
		{before: "write", path: logFile},
		{before: "fcntl", path: runtimeDir + "/locks", known: true},
		{before: "openat", path: runtimeDir + "/containers/." + id + ".json", known: true},
		{before: "renameat", path: runtimeDir + "/containers/" + id + ".json", known: true},
		{before: "openat", path: gcRoots, known: true}, // all use marks are there
		{before: "mkdirat", path: id, known: true},
		{before: "symlinkat", path: id + "/.boot", known: true},
		{before: "symlinkat", path: id + "/" + filepath.Base(store["tools"]), known: true},
		{before: "newfstatat", path: "/proc/self/ns/user", known: true}, // all is reserved
		{before: "fsopen", mode: "overlay", known: true},
		{before: "move_mount", mode: "overlay", known: true},
		{before: "setns", times: 2, known: true},
	}
	program := filepath.Join(*bin, "nix-closure-hook")
	for i, m := range moments {
		mode, runtime := m.mode, runtimes[i/2%2]
		if mode == "" {
			mode = modes[i%2]
		}
		annotations := with(roots(store["tools"]), "nix-closure/mode", mode, "nix-closure/registration", "true")
		inject := fmt.Sprintf("inject=%s:signal=KILL:when=%d", m.before, max(m.times, 1))
		args := []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", inject}
		if m.path != "" {
			args = append(args, "-P", m.path)
		}
		for _, sweepFirst := range []bool{false, true} {
			when := fmt.Sprintf("%s %s %d, %s %s, known %v, sweep first %v", m.before, m.path, m.times, runtime, mode,
				m.known, sweepFirst)
			removeAll(t, runtimeDir)
			removeAll(t, gcRoots)
			if m.made {
				if err := os.MkdirAll(runtimeDir+"/views", 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if m.known {
				b := newBundle(t, annotations, "ls /nix/store | wc -l", "createRuntime", "poststop")
				if _, out, stderr, err := b.run(t, runtime); err != nil || out != want {
					t.Fatalf("%s: the start before: %v %q %s", when, err, out, stderr)
				}
			}
			killed := newBundle(t, annotations, "echo it runs")
			killed.config["hooks"] = object{"createRuntime": []object{{
				"path": "/usr/bin/strace", "args": append(args, program, "createRuntime"),
				"env": []string{"GOMAXPROCS=1"},
			}}}
			if out, err := killed.command(t, runtime, id).Output(); err == nil || len(out) > 0 {
				t.Fatalf("%s: it started: %q", when, out)
			}
			_, unrecorded := os.Lstat(filepath.Join(runtimeDir, "containers", id+".json"))
			has, err := filepath.Glob(runtimeDir + "/*/*@" + id)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(gcRoots, id)); err == nil {
				has = append(has, gcRoots)
			}
			if unrecorded != nil && len(has) > 0 {
				t.Errorf("%s: there is no record of %q", when, has)
			}
			if sweepFirst {
				sweptClean(t, when)
			}
			again := newBundle(t, annotations, "ls /nix/store | wc -l", "createRuntime", "poststop")
			if out, err := again.command(t, runtime, id).CombinedOutput(); err != nil || string(out) != want {
				t.Errorf("%s: the next start: %v %q", when, err, out)
			}
			sweptClean(t, when+", after the next start")
		}
	}
}

// lists are what nix-closure gc --json prints.
type lists struct{ Records, GCRoots, Views, Registrations, Closures, Cache []string }

func sweepJSON(t *testing.T, flags ...string) (l lists) {
	t.Helper()
	text := sweep(t, append([]string{"--json"}, flags...)...)
	if strings.Contains(text, "null") || strings.Count(text, "\n") != 1 {
		t.Errorf("a list is none, or there is more than a line: %q", text)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		t.Errorf("%v: %q", err, text)
	}
	return l
}

// held is a container that runs until it is let go.
type held struct {
	id    string
	b     *bundle
	out   bytes.Buffer
	ended chan struct{}
	err   error // after ended
}

// hold starts a container that has a tree, and says `whole` at its end.
func hold(t *testing.T, id, runtime string, one tree, annotations map[string]string) *held {
	t.Helper()
	h := &held{id: id, ended: make(chan struct{})}
	h.b = newBundle(t, annotations, one.check("touch /ready; until [ -e /go ]; do sleep 0.01; done"), "createRuntime",
		"poststop")
	cmd := h.b.command(t, runtime, id)
	cmd.Stdout, cmd.Stderr = &h.out, &h.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		h.err = cmd.Wait()
		close(h.ended)
	}()
	t.Cleanup(func() {
		_, _, _ = call(runtime, "delete", "--force", id) // mostly it has ended
		<-h.ended
	})
	for {
		select {
		case <-h.ended:
			t.Fatalf("%s: %v %s", id, h.err, &h.out)
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := os.Lstat(h.b.dir + "/rootfs/ready"); err == nil {
			return h
		}
	}
}

// letGo fails where the container does not have its whole tree to the end.
func (h *held) letGo(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(h.b.dir+"/rootfs/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if <-h.ended; h.err != nil || h.out.String() != "whole\n" {
		t.Errorf("%s: %v %s", h.id, h.err, &h.out)
	}
}

// has are the files that the host keeps for a container, with what it uses.
func (h *held) has(t *testing.T) (files []string) {
	t.Helper()
	files = []string{runtimeDir + "/containers/" + h.id + ".json", filepath.Join(gcRoots, h.id)}
	uses, err := filepath.Glob(runtimeDir + "/*/*@" + h.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, use := range uses {
		name, _, _ := strings.Cut(use, "@")
		files = append(files, use, name)
	}
	for _, f := range files {
		if _, err := os.Lstat(f); err != nil {
			t.Errorf("%s: %v", h.id, err)
		}
	}
	return files
}

func setAge(t *testing.T, by time.Duration, path string) {
	t.Helper()
	if err := os.Chtimes(path, time.Now().Add(-by), time.Now().Add(-by)); err != nil {
		t.Fatal(err)
	}
}

// create makes an empty file or, where the path ends in a slash, a directory.
func create(t *testing.T, path string) {
	t.Helper()
	var err error
	if strings.HasSuffix(path, "/") {
		err = os.MkdirAll(path, 0o755)
	} else {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dead makes what a container leaves whose process has ended: a record and GC
// roots.
func dead(t *testing.T, id, record string) {
	t.Helper()
	if err := os.WriteFile(runtimeDir+"/containers/"+id+".json", []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	create(t, filepath.Join(gcRoots, id)+"/")
	if err := os.Symlink(store["data"], filepath.Join(gcRoots, id, filepath.Base(store["data"]))); err != nil {
		t.Fatal(err)
	}
}

// What nix-closure gc removes is exactly what its dry run says, and nothing of it
// is a live container's.
func TestSweepCommand(t *testing.T) {
	one := buildTrees(t, []string{"swept"}, "--out-link", t.TempDir()+"/swept")[0]
	sweep(t, "--unused-for", "0s")
	live := []*held{
		hold(t, "live-overlay", "runc", one,
			with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true")),
		hold(t, "live-bind", "crun", one, with(roots(one.root), "nix-closure/mode", "bind")),
	}
	var kept []string
	for _, l := range live {
		kept = append(kept, l.has(t)...)
	}
	if len(kept) != 4+4 { // of bind mode, neither view nor registration
		t.Errorf("a container keeps other files than expected: %q", kept)
	}

	long := filepath.Join(runtimeDir, "%s", strings.Repeat("f", 64))
	view, registration, cache := fmt.Sprintf(long, "views"), fmt.Sprintf(long, "registrations"),
		fmt.Sprintf(long, "closures")
	forge := func() {
		dead(t, "ended", `{"id":"ended","pid":999999999,"pidStart":1}`)
		dead(t, "another-process", fmt.Sprintf(`{"id":"another-process","pid":%d,"pidStart":1}`, os.Getpid()))
		for _, id := range []string{"earlier-boot", "younger"} {
			create(t, filepath.Join(gcRoots, id)+"/")
		}
		if err := os.Symlink("another", filepath.Join(gcRoots, "earlier-boot", ".boot")); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{
			view + "/store/x/", view + "-links/", view + "-links.stale.X/", view + ".new/store/", registration,
			registration + "-young", cache, cache + "-young",
			runtimeDir + "/containers/.x.json.X", runtimeDir + "/registrations/.x.X", runtimeDir + "/closures/.x.X",
		} {
			create(t, path)
		}
	}
	// What lists a directory reads it, and it is no longer old.
	setAges := func() {
		for _, path := range []string{view, view + "-links.stale.X", registration, runtimeDir + "/containers/.x.json.X",
			runtimeDir + "/registrations/.x.X"} {
			setAge(t, 61*time.Minute, path)
		}
		setAge(t, 49*time.Hour, cache)
	}
	f := filepath.Base(view)
	caches := func() []string {
		return strings.Fields(must(t, "find", runtimeDir+"/closures", "-type", "f", "-printf", "%f\n"))
	}
	records := []string{"another-process", "ended"}
	for _, c := range []struct {
		flags []string
		want  func() lists
	}{
		{nil, func() lists {
			return lists{Records: records, GCRoots: []string{"earlier-boot"},
				Views:         []string{f, f + "-links.stale.X", f + ".new"},
				Registrations: []string{".x.X", f}, Closures: []string{f}}
		}},
		{[]string{"--unused-for", "0s"}, func() lists {
			return lists{Records: records, GCRoots: []string{"earlier-boot"},
				Views:         []string{f, f + "-links", f + "-links.stale.X", f + ".new"},
				Registrations: []string{".x.X", f, f + "-young"}, Closures: caches()}
		}},
	} {
		for _, asJSON := range []bool{false, true} {
			forge()
			want := c.want()
			var text []string
			for kind, names := range map[string][]string{
				"record": want.Records, "GC roots": want.GCRoots, "view": want.Views,
				"registration": want.Registrations,
				"closure":      want.Closures, "cache": want.Cache,
			} {
				for _, name := range names {
					text = append(text, kind+" "+name+"\n")
				}
			}
			slices.Sort(text)
			before := must(t, "find", runtimeDir, gcRoots)
			setAges()
			planned := sweep(t, append([]string{"--dry-run"}, c.flags...)...)
			if after := must(t, "find", runtimeDir, gcRoots); after != before {
				t.Errorf("%q: the dry run changed\n%sto\n%s", c.flags, before, after)
			}
			setAges()
			if lines := slices.Sorted(strings.Lines(planned)); !slices.Equal(lines, text) {
				t.Errorf("%q: the dry run says %q\nwant %q", c.flags, lines, text)
			}
			if asJSON {
				got := sweepJSON(t, c.flags...)
				for _, l := range []*lists{&got, &want} {
					all := [][]string{l.Records, l.GCRoots, l.Views, l.Registrations, l.Closures, l.Cache}
					for _, names := range all {
						slices.Sort(names)
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%q: removed %+v\nwant %+v", c.flags, got, want)
				}
			} else if out := sweep(t, c.flags...); out != planned {
				t.Errorf("%q: removed\n%safter the dry run said\n%s", c.flags, out, planned)
			}
			for _, l := range live {
				l.has(t)
			}
			if _, err := os.Lstat(filepath.Join(gcRoots, "younger")); err != nil {
				t.Errorf("GC roots of this boot: %v", err)
			}
			removeAll(t, filepath.Join(gcRoots, "younger"))
			if got := sweepJSON(t, append(c.flags, "--dry-run")...); fmt.Sprint(got) != fmt.Sprint(lists{}) {
				t.Errorf("%q: and then there is %+v", c.flags, got)
			}
			if left := slices.DeleteFunc(everything(t),
				func(path string) bool { return slices.Contains(kept, path) }); len(c.flags) > 0 && len(left) > 0 {
				t.Errorf("%q: left %q", c.flags, left)
			}
		}
	}
	for _, l := range live {
		l.letGo(t)
	}
	nothingLeft(t)
	sweptClean(t, "at the end")

	// Mistakes are one line on standard error, and nothing is removed.
	create(t, view+"/")
	for _, args := range [][]string{
		{"gc", "--unused-for", "-1s"}, {"gc", "--unused-for", "soon"}, {"gc", "--unused-for"}, {"gc", "x"},
		{"gc", "--force"},
		{"gc", "--config", "/nowhere.toml"}, {"gc", "--unused-for=0s", "--config", "/etc/passwd"},
	} {
		var exit *exec.ExitError
		want := 2 // a wrong command line
		if slices.Contains(args, "--config") {
			want = 1
		}
		out, stderr, err := call(*bin+"/nix-closure", args...)
		if !errors.As(err, &exit) || exit.ExitCode() != want || out != "" ||
			!strings.HasPrefix(stderr, "nix-closure: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %v %q %q", args, err, out, stderr)
		}
	}
	if _, err := os.Lstat(view); err != nil {
		t.Error(err)
	}
	sweptClean(t, "after mistakes")
}

// A record that cannot be understood may be a container's that runs: it is kept,
// everybody says so, and nothing else is kept with it.
func TestSweepDamaged(t *testing.T) {
	b := newBundle(t, roots(store["tools"]), "true", "createRuntime", "poststop")
	if _, _, stderr, err := b.run(t, "runc"); err != nil { // makes the directories
		t.Fatalf("%v %s", err, stderr)
	}
	file := runtimeDir + "/containers/damaged.json"
	want := "damaged record " + file + ": unexpected end of JSON input; "
	dead(t, "damaged", `{"id":"damaged","pid":`)
	dead(t, "ended", `{"id":"ended","pid":999999999,"pidStart":1}`)
	out, stderr, err := call(*bin+"/nix-closure", "gc")
	if err == nil || out != "record ended\n" ||
		stderr != "nix-closure: record kept: "+want+"remove "+file+" when no container with this ID runs\n" {
		t.Errorf("%v %q %q", err, out, stderr)
	}
	for _, runtime := range runtimes {
		before := len(readLog(t))
		if out, err := b.command(t, runtime, "damaged").CombinedOutput(); err == nil {
			t.Errorf("%s: it started: %s", runtime, out)
		}
		said := slices.ContainsFunc(readLog(t)[before:], func(l logLine) bool {
			return strings.HasPrefix(l.Msg, "nix-closure: container damaged: claiming the container ID: "+want) &&
				strings.HasSuffix(l.Msg, "remove "+file+" when no container with this ID runs")
		})
		if !said {
			t.Errorf("%s: not in the log: %+v", runtime, readLog(t)[before:])
		}
		// Another container is in nobody's way.
		if _, _, stderr, err := b.run(t, runtime); err != nil {
			t.Errorf("%s: %v %s", runtime, err, stderr)
		}
	}
	for _, path := range []string{file, filepath.Join(gcRoots, "damaged", filepath.Base(store["data"]))} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	removeAll(t, file)
	removeAll(t, filepath.Join(gcRoots, "damaged"))
	nothingLeft(t)
}

// What a container used stays for an hour after its end.
func TestSweepAfterAnHour(t *testing.T) {
	one := buildTrees(t, []string{"hour"}, "--out-link", t.TempDir()+"/hour")[0]
	sweep(t, "--unused-for", "0s")
	b := newBundle(t, with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true"),
		one.check("true"), "createRuntime", "poststop")
	if _, out, stderr, err := b.run(t, "crun"); err != nil || out != "whole\n" {
		t.Fatalf("%v %q %s", err, out, stderr)
	}
	nothingLeft(t)
	files := everything(t) // a view, a registration, the closure and how it was asked for
	if out := sweep(t); out != "" || len(files) != 4 {
		t.Errorf("at once: %q of %q", out, files)
	}
	for _, c := range []struct {
		age  time.Duration
		left int
	}{{59 * time.Minute, 4}, {61 * time.Minute, 2}, {47 * time.Hour, 2}, {49 * time.Hour, 0}} {
		for _, f := range everything(t) {
			setAge(t, c.age, f)
		}
		sweep(t)
		if left := everything(t); len(left) != c.left {
			t.Errorf("after %s: left %q", c.age, left)
		}
	}
}

// A sweep over and over is in nobody's way.
func TestSweepLoop(t *testing.T) {
	const count = 60
	one := buildTrees(t, []string{"beside"}, "--out-link", t.TempDir()+"/beside")[0]
	cmds := make([]*exec.Cmd, count)
	for i := range cmds {
		annotations := with(roots(one.root), "nix-closure/mode", modes[i%2], "nix-closure/registration",
			fmt.Sprint(i/4%2 == 0))
		b := newBundle(t, annotations, one.check("sleep 0.1"), "createRuntime", "poststop")
		cmds[i] = b.command(t, runtimes[i/2%2], fmt.Sprintf("beside-%d", i))
	}
	before := len(readLog(t))
	live := hold(t, "beside", "runc", one,
		with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true"))
	sweeps := over(t, *bin+"/nix-closure", "gc", "--unused-for", "0s")
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < count; i = next.Add(1) - 1 {
				if out, err := cmds[i].CombinedOutput(); err != nil || string(out) != "whole\n" {
					t.Errorf("%d: %v %s", i, err, out)
				}
			}
		})
	}
	wg.Wait()
	times, failed := sweeps()
	if times < 5 || len(failed) > 0 {
		t.Errorf("%d sweeps, %q", times, failed)
	}
	live.has(t)
	live.letGo(t)
	for _, l := range readLog(t)[before:] {
		if l.Level == "error" {
			t.Errorf("log: %s", l.Msg)
		}
	}
	nothingLeft(t)
	sweptClean(t, "at the end")
}

// sweptInLog is how many records each stage of a container removed that removed
// any.
func sweptInLog(t *testing.T, id string) (counts []int) {
	t.Helper()
	for _, l := range readLog(t) {
		if l.Msg == "swept" && l.Container == id && len(l.Records) > 0 {
			counts = append(counts, len(l.Records))
		}
	}
	return counts
}

// Each start and each end of a container removes some of what others left, and
// together they remove all of it.
func TestSweepInPassing(t *testing.T) {
	sweep(t, "--unused-for", "0s")
	left := func() int { return len(leftovers(t)) / 2 } // record and GC roots
	annotations := roots(store["tools"])
	b := newBundle(t, annotations, "true", "createRuntime", "poststop")
	// One is gone when another started, and when another ended.
	for _, stage := range []string{"createRuntime", "poststop"} {
		dead(t, "dead", `{"id":"dead","pid":999999999}`)
		if stage == "createRuntime" {
			if _, _, stderr, err := newBundle(t, annotations, "true", stage).run(t, "runc"); err != nil {
				t.Fatalf("%v %s", err, stderr)
			}
		} else if _, stderr, err := callHook(state("other", 0, b.dir, annotations), stage); err != nil || stderr != "" {
			t.Errorf("%v %s", err, stderr)
		}
		if _, err := os.Lstat(filepath.Join(gcRoots, "dead")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: GC roots of another stay: %v", stage, err)
		}
		sweep(t)
		nothingLeft(t)
	}

	const many = 500
	for i := range many {
		dead(t, fmt.Sprintf("dead-%d", i), `{"pid":999999999}`)
	}
	n := many
	for start := 0; n > 0; start++ {
		if start > many/64 {
			t.Fatalf("after %d starts %d are left", start, n)
		}
		id, _, stderr, err := b.run(t, runtimes[start%2])
		if err != nil {
			t.Fatalf("%v %s", err, stderr)
		}
		counts := sweptInLog(t, id)
		for _, c := range counts {
			if n -= c; c > 64 {
				t.Errorf("%d at once", c)
			}
		}
		if len(counts) == 0 || len(counts) > 2 || left() != n {
			t.Fatalf("removed %d: %d are left, not %d", counts, left(), n)
		}
	}
	nothingLeft(t)
}

// The end of a container whose id is another's by now, or that was started again,
// leaves that one alone.
func TestPoststopTooLate(t *testing.T) {
	one := buildTrees(t, []string{"late"}, "--no-out-link")[0]
	annotations := with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true")
	for _, runtime := range runtimes {
		first := newBundle(t, annotations, one.check("true"), "createRuntime") // its poststop comes late
		if out, err := first.command(t, runtime, "late").CombinedOutput(); err != nil || string(out) != "whole\n" {
			t.Fatalf("%v %s", err, out)
		}
		again := hold(t, "late", runtime, one, annotations)
		before := again.has(t)
		for _, dir := range []string{first.dir, again.b.dir} {
			if _, stderr, err := callHook(state("late", 0, dir, annotations), "poststop"); err != nil || stderr != "" {
				t.Errorf("%v %s", err, stderr)
			}
			if after := again.has(t); !slices.Equal(after, before) || len(after) != 6 {
				t.Errorf("%s: of %q there is %q", runtime, before, after)
			}
			must(t, "nix-store", "--gc")
			sweep(t, "--unused-for", "0s")
		}
		again.letGo(t)
		nothingLeft(t)
	}
}

// Where the ID of the boot cannot be read, nobody knows which GC roots are of an earlier
// one: all stay, and containers start.
func TestUnreadableBoot(t *testing.T) {
	const bootID = "/proc/sys/kernel/random/boot_id"
	empty := t.TempDir() + "/empty"
	create(t, empty)
	id := filepath.Join(gcRoots, "of-which-boot")
	create(t, id+"/")
	if err := os.Symlink("another", id+"/.boot"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, id) })
	none := t.TempDir() + "/none"
	if err := os.WriteFile(none, []byte("no ID of a boot\n"), 0); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, none} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			bindMount(t, file, bootID)
			for _, runtime := range runtimes {
				started := container{runtime: runtime, root: "env"}.start(t)
				if got := sweepJSON(t); len(got.GCRoots) > 0 || len(got.Records) > 0 {
					t.Errorf("of what nobody can judge was removed: %+v", got)
				}
				must(t, "ls", filepath.Join(gcRoots, started, filepath.Base(store["env"])), id)
				remove(t, started)
			}
		})
	}
}
