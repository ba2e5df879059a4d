// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const nixConfFile = "/etc/nix/nix.conf"

// useCache makes Nix fetch from a binary cache for the length of a test.
func useCache(t *testing.T, url string, more ...string) {
	t.Helper()
	before, err := os.ReadFile(nixConfFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(nixConfFile, before, 0o644); err != nil {
			t.Error(err)
		}
	})
	text := fmt.Sprintf("%ssubstituters = %s\n%s\n", before, url, strings.Join(more, "\n"))
	if err := os.WriteFile(nixConfFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const unsigned = "require-sigs = false"

// newCache makes a binary cache of paths, and returns its directory.
func newCache(t *testing.T, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, "nix", append([]string{"--extra-experimental-features", "nix-command", "copy", "--to", "file://" + dir},
		paths...)...)
	return dir
}

// collect removes what nothing keeps, and fails where something of it is left.
func collect(t *testing.T, paths ...string) {
	t.Helper()
	must(t, "nix-store", "--gc")
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			t.Fatalf("%s is still there", p)
		}
	}
}

// fetched are the lines of the log about fetching for a container.
func fetched(t *testing.T, id string) (lines []string) {
	t.Helper()
	for _, l := range readLog(t) {
		if l.Msg == "fetching" && l.Container == id {
			lines = append(lines, l.NixStore)
		}
	}
	return lines
}

// halfMade are files in the store that are neither valid paths nor Nix's own.
func halfMade(t *testing.T) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--check-validity", "--print-invalid"}
	for _, e := range entries {
		path := storeDir + "/" + e.Name()
		switch {
		case e.Name() == ".links":
		case strings.HasSuffix(path, ".lock"):
			all = append(all, path)
		default:
			args = append(args, path)
		}
	}
	return append(all, strings.Fields(must(t, "nix-store", args...))...)
}

// A root that is not on the host is fetched with its closure, seen exactly, and
// kept from the garbage collector as long as the container runs.
func TestFetch(t *testing.T) {
	one := buildTrees(t, []string{"fetched"}, "--no-out-link")[0]
	useCache(t, "file://"+newCache(t, one.root), unsigned)
	writeConfig(t, "substitute = true\n")
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		collect(t, one.closure...)
		b := newBundle(t, with(roots(one.root+"/content"), "nix-closure/mode", mode),
			one.check("touch /ready; until [ -e /go ]; do sleep 0.01; done"), "createRuntime", "poststop")
		bundles++
		id := fmt.Sprintf("fetch-%d", bundles)
		cmd := b.command(t, runtime, id)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- cmd.Wait() }()
		waitFor(t, b.dir+"/rootfs/ready")
		if link, err := os.Readlink(filepath.Join(gcRoots, id, filepath.Base(one.root))); err != nil ||
			link != one.root {
			t.Errorf("GC root: %q %v", link, err)
		}
		must(t, "nix-store", "--gc")
		if err := os.WriteFile(b.dir+"/rootfs/go", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil || out.String() != "whole\n" {
			t.Errorf("%v %s", err, &out)
		}
		lines := fetched(t, id)
		if len(lines) == 0 || !strings.HasPrefix(lines[0],
			fmt.Sprintf("these %d paths will be fetched", len(one.closure))) {
			t.Errorf("the log does not say that it is being fetched: %q", lines)
		}
		for _, p := range one.closure {
			if !slices.ContainsFunc(lines,
				func(l string) bool { return strings.HasPrefix(l, "copying path '"+p+"' from") }) {
				t.Errorf("the log does not say that %s is being fetched: %q", p, lines)
			}
		}
		nothingLeft(t)
	})
	collect(t, one.closure...)
}

func waitFor(t *testing.T, path string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not appear", path)
}

// Who looks on a terminal sees what is being fetched; a runtime, which takes
// what the hook writes for its error, does not.
func TestFetchOnTerminal(t *testing.T) {
	one := buildTrees(t, []string{"terminal"}, "--no-out-link")[0]
	useCache(t, "file://"+newCache(t, one.root), unsigned)
	writeConfig(t, "substitute = true\n")
	for _, terminal := range []bool{true, false} {
		collect(t, one.closure...)
		b := newBundle(t, roots(one.root), "true")
		b.command(t, "runc", "by-hand")
		process := exec.Command("unshare", "--mount", "sh", "-c",
			`mount --bind "$1" "$1" && touch "$1/ready" && exec sleep 60`, "sh", b.dir+"/rootfs")
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, b.dir+"/rootfs/ready")
		in := state("by-hand", process.Process.Pid, b.dir, roots(one.root))
		var out string
		var err error
		if terminal {
			file := b.dir + "/state.json"
			if err := os.WriteFile(file, []byte(in), 0o600); err != nil {
				t.Fatal(err)
			}
			out, _, err = call("script", "--quiet", "--return", "--command",
				*bin+"/nix-closure-hook createRuntime <"+file, "/dev/null")
		} else {
			_, out, err = callHook(in, "createRuntime")
		}
		if err != nil {
			t.Errorf("%v %s", err, out)
		}
		said := strings.Split(strings.ReplaceAll(out, "\r", ""), "\n")
		for _, p := range one.closure {
			seen := slices.ContainsFunc(said,
				func(l string) bool { return strings.HasPrefix(l, "copying path '"+p+"' from") })
			if seen != terminal {
				t.Errorf("on a terminal %v: %s seen: %v", terminal, p, seen)
			}
		}
		_ = process.Process.Kill()
		_ = process.Wait()
		if _, stderr, err := callHook(in, "poststop"); err != nil || stderr != "" {
			t.Errorf("%v %s", err, stderr)
		}
		nothingLeft(t)
	}
}

// Nothing is fetched where the configuration does not say so.
func TestFetchOff(t *testing.T) {
	one := buildTrees(t, []string{"off"}, "--no-out-link")[0]
	useCache(t, "file://"+newCache(t, one.root), unsigned)
	for _, text := range []string{"", "substitute = false\n"} {
		collect(t, one.closure...)
		writeConfig(t, text)
		for _, runtime := range runtimes {
			b := newBundle(t, roots(one.root), one.check("true"), "createRuntime", "poststop")
			id, out, _, err := b.run(t, runtime)
			if want := "nix-closure: container " + id + ": resolving " + one.root + ": " +
				notValid(one.root); err == nil || out != "" || lastError(t) != want {
				t.Errorf("%v %q %s\nwant %s", err, out, lastError(t), want)
			}
		}
		if left := halfMade(t); len(left) > 0 ||
			len(must(t, "nix-store", "--check-validity", "--print-invalid", one.root)) == 0 {
			t.Errorf("something was fetched: %q", left)
		}
	}
	// The message says what to do, and that works.
	must(t, "nix-store", "--realise", one.root)
	b := newBundle(t, roots(one.root), one.check("true"), "createRuntime", "poststop")
	if _, out, stderr, err := b.run(t, "runc"); err != nil || out != "whole\n" {
		t.Errorf("%v %q %s", err, out, stderr)
	}
	nothingLeft(t)
}

// hanging is a server that takes connections and says nothing.
func hanging(t *testing.T) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
		}
		for _, c := range open {
			_ = c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

// serve serves a cache, and lets handle do it where it says so.
func serve(t *testing.T, cache string, handle func(w http.ResponseWriter, r *http.Request) bool) (url string) {
	t.Helper()
	files := http.FileServer(http.Dir(cache))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !handle(w, r) {
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// hangIn answers requests for a file with the first half of what is good.
func hangIn(good []byte, suffix string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, suffix) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(good)))
		_, _ = w.Write(good[:len(good)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
}

// A container whose closure cannot be fetched, or not in time, is refused with
// the reason, and nothing half-made is left.
func TestFetchFails(t *testing.T) {
	// Half an archive is more than is looked at before there is something to write.
	one := buildTrees(t, []string{"broken"}, "--no-out-link", "--arg", "size", "100000")[0]
	cache := newCache(t, one.root)
	leaf := one.closure[slices.IndexFunc(one.closure, func(p string) bool { return strings.Contains(p, "-leaf-") })]
	leafNar := narOf(t, cache, leaf)
	good, err := os.ReadFile(leafNar)
	if err != nil {
		t.Fatal(err)
	}
	byHand := "; fetch it by hand with `nix-store --realise " + one.root +
		"`, or raise substitute-timeout in the configuration"
	const failed = "fetching: /usr/bin/nix-store: exit status 1: "
	nobodyHas := func(path, why string) string {
		return "no substituter has " + path + why +
			"; build it here, copy it to one of them, or correct `substituters` in nix.conf"
	}
	for i, c := range []struct {
		name string
		nar  func(good []byte) []byte
		url  func(t *testing.T) string
		conf string
		slow bool     // one runtime is enough
		want []string // in the message
	}{
		{name: "hangs", url: hanging, conf: unsigned, slow: true,
			want: []string{"fetching: the time for it is over: no substituter has answered" + byHand}},
		{name: "hangs in a narinfo", url: func(t *testing.T) string {
			return serve(t, cache,
				hangIn(good, filepath.Base(leaf)[:32]+".narinfo"))
		}, conf: unsigned, slow: true,
			want: []string{"fetching: the time for it is over: no substituter has answered" + byHand}},
		{name: "hangs in an archive", url: func(t *testing.T) string {
			return serve(t, cache,
				hangIn(good, filepath.Base(leafNar)))
		}, conf: unsigned, slow: true,
			want: []string{"fetching: the time for it is over: these 5 paths will be fetched (",
				" begun, the last /nix/store/", byHand}},
		{name: "truncated archive", nar: func(good []byte) []byte { return good[:len(good)/2] }, conf: unsigned,
			want: []string{failed}},
		{name: "changed archive", nar: changed(t), conf: unsigned,
			want: []string{failed + "hash mismatch importing path '" + leaf + "'"}},
		{name: "not signed", want: []string{failed,
			"the substitute for '" + one.root + "' from 'file://" + cache +
				"' is not signed by any of the keys in 'trusted-public-keys'"}},
		{name: "no cache", url: func(*testing.T) string { return "" }, want: []string{failed, nobodyHas(one.root, "")}},
		{name: "an empty cache", url: func(t *testing.T) string { return "file://" + t.TempDir() },
			want: []string{failed, nobodyHas(one.root, "")}},
		{name: "a cache without what the root references", url: func(t *testing.T) string {
			return serve(t, cache, func(w http.ResponseWriter, r *http.Request) bool {
				absent := strings.HasSuffix(r.URL.Path, filepath.Base(leaf)[:32]+".narinfo")
				if absent {
					http.NotFound(w, r)
				}
				return absent
			})
		}, conf: unsigned, want: []string{failed, nobodyHas(leaf, "")}},
		{name: "no such server", url: func(*testing.T) string { return "http://127.0.0.1:1" },
			conf: "download-attempts = 1",
			want: []string{failed, nobodyHas(one.root,
				" (unable to download 'http://127.0.0.1:1/nix-cache-info': Couldn't connect to server (7))")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.nar != nil {
				if err := os.WriteFile(leafNar, c.nar(good), 0o644); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := os.WriteFile(leafNar, good, 0o644); err != nil {
						t.Error(err)
					}
				}()
			}
			url := "file://" + cache
			if c.url != nil {
				url = c.url(t)
			}
			useCache(t, url, c.conf)
			writeConfig(t, "substitute = true\nsubstitute-timeout = \"2s\"\n")
			with := runtimes
			if c.slow {
				with = runtimes[i%2:][:1]
			}
			for _, runtime := range with {
				collect(t, one.closure...)
				b := newBundle(t, roots(one.root), one.check("true"), "createRuntime", "poststop")
				began := time.Now()
				id, out, _, err := b.run(t, runtime)
				took := time.Since(began)
				said := lastError(t)
				if err == nil || out != "" || took > 10*time.Second {
					t.Errorf("%s: %v %q after %s", runtime, err, out, took)
				}
				if !strings.HasPrefix(said, "nix-closure: container "+id+": resolving "+one.root+": ") {
					t.Errorf("%s: %s", runtime, said)
				}
				for _, want := range c.want {
					if !strings.Contains(said, want) {
						t.Errorf("%s: %s\nlacks %s", runtime, said, want)
					}
				}
				if left := halfMade(t); len(left) > 0 {
					t.Errorf("%s: left in the store: %q", runtime, left)
				}
				nothingLeft(t)
			}
		})
	}
}

// A container that was refused because no cache has its root starts when one has.
func TestFetchLater(t *testing.T) {
	one := buildTrees(t, []string{"later"}, "--no-out-link")[0]
	var there atomic.Bool
	url := serve(t, newCache(t, one.root), func(w http.ResponseWriter, r *http.Request) bool {
		if there.Load() || !strings.HasSuffix(r.URL.Path, ".narinfo") {
			return false
		}
		http.NotFound(w, r)
		return true
	})
	collect(t, one.closure...)
	useCache(t, url, unsigned)
	writeConfig(t, "substitute = true\n")
	b := newBundle(t, roots(one.root), one.check("true"), "createRuntime", "poststop")
	if _, out, _, err := b.run(t, "runc"); err == nil || out != "" {
		t.Errorf("it started: %q", out)
	}
	nothingLeft(t)
	there.Store(true)
	if _, out, stderr, err := b.run(t, "runc"); err != nil || out != "whole\n" {
		t.Errorf("%v %q %s", err, out, stderr)
	}
	nothingLeft(t)
}

// A hook that is killed while it fetches is in the way of nobody who fetches next.
func TestFetchKilled(t *testing.T) {
	one := buildTrees(t, []string{"killed"}, "--no-out-link", "--arg", "size", "100000")[0]
	cache := newCache(t, one.root)
	leaf := one.closure[slices.IndexFunc(one.closure, func(p string) bool { return strings.Contains(p, "-leaf-") })]
	nar := narOf(t, cache, leaf)
	good, err := os.ReadFile(nar)
	if err != nil {
		t.Fatal(err)
	}
	var answers atomic.Bool
	hang := hangIn(good, filepath.Base(nar))
	useCache(t, serve(t, cache, func(w http.ResponseWriter,
		r *http.Request) bool {
		return !answers.Load() && hang(w, r)
	}), unsigned)
	writeConfig(t, "substitute = true\nsubstitute-timeout = \"30s\"\n")
	for _, runtime := range runtimes {
		collect(t, one.closure...)
		answers.Store(false)
		const id = "fetch-killed"
		b := newBundle(t, roots(one.root), one.check("true"), "createRuntime", "poststop")
		cmd := b.command(t, runtime, id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, leaf)
		if err := syscall.Kill(hookProcess(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%s: it started", runtime)
		}
		answers.Store(true)
		if out, err := b.command(t, runtime, id).CombinedOutput(); err != nil || string(out) != "whole\n" {
			t.Errorf("%s: %v %s", runtime, err, out)
		}
		if left := halfMade(t); len(left) > 0 {
			t.Errorf("%s: left in the store: %q", runtime, left)
		}
		nothingLeft(t)
	}
}

// hookProcess is the process id of the one hook that runs.
func hookProcess(t *testing.T) (pid int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, _ := os.ReadFile(path); bytes.HasPrefix(line, []byte("nix-closure-hook\x00")) {
			if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid == 0 {
		t.Fatal("no hook runs")
	}
	return pid
}

// narOf is the file of a path's archive in a cache.
func narOf(t *testing.T, cache, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cache, filepath.Base(path)[:32]+".narinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if url, ok := strings.CutPrefix(line, "URL: "); ok {
			return filepath.Join(cache, strings.TrimSpace(url))
		}
	}
	t.Fatalf("%s", text)
	return ""
}

// changed changes what is in an archive, and nothing of its form.
func changed(t *testing.T) func(good []byte) []byte {
	return func(good []byte) []byte {
		t.Helper()
		return filter(t, bytes.Replace(filter(t, good, "xz", "-dc"), []byte("leaf-broken\n"), []byte("leaf-bROKEN\n"),
			1), "xz", "-c")
	}
}

func filter(t *testing.T, in []byte, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A derivation is not fetched; a closure-info is, with what it references.
func TestFetchOther(t *testing.T) {
	one := buildTrees(t, []string{"other"}, "--no-out-link")[0]
	info := strings.TrimSpace(must(t, "nix-build", "testdata/info.nix", "--arg", "names", `[ "other" ]`,
		"--no-out-link"))
	drv := strings.TrimSpace(must(t, "nix-store", "--query", "--deriver", one.root))
	useCache(t, "file://"+newCache(t, info, drv), unsigned)
	writeConfig(t, "substitute = true\n")
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		collect(t, append(one.closure, info, drv)...)
		b := newBundle(t, with(roots(drv), "nix-closure/mode", mode), "true", "createRuntime", "poststop")
		_, _, _, err := b.run(t, runtime)
		if want := ": resolving " + drv + ": " + drv +
			": a derivation cannot be fetched, only what it builds; instantiate it first"; err == nil ||
			!strings.HasSuffix(lastError(t), want) {
			t.Errorf("%v %s\nwant %s", err, lastError(t), want)
		}
		if left := halfMade(t); len(left) > 0 {
			t.Errorf("left in the store: %q", left)
		}
		nothingLeft(t)
		b = newBundle(t, map[string]string{"nix-closure/closure-info": info, "nix-closure/mode": mode},
			one.check("true"), "createRuntime", "poststop")
		if _, out, stderr, err := b.run(t, runtime); err != nil || out != "whole\n" {
			t.Errorf("%v %q %s %s", err, out, stderr, lastError(t))
		}
		nothingLeft(t)
	})
}

// Several containers that fetch the same at once all have it, or are all refused,
// and nothing half-made is left.
func TestFetchAtOnce(t *testing.T) {
	one := buildTrees(t, []string{"at-once"}, "--no-out-link")[0]
	cache := newCache(t, one.root)
	useCache(t, "file://"+cache, unsigned)
	writeConfig(t, "substitute = true\n")
	for _, broken := range []bool{false, true} {
		collect(t, one.closure...)
		if broken {
			nar := narOf(t, cache, one.root)
			if err := os.Truncate(nar, 100); err != nil {
				t.Fatal(err)
			}
		}
		cmds := map[string]*exec.Cmd{}
		for i := range 8 {
			b := newBundle(t, with(roots(one.root), "nix-closure/mode", modes[i/2%2]), one.check("sleep 0.1"),
				"createRuntime", "poststop")
			id := fmt.Sprintf("at-once-%v-%d", broken, i)
			cmds[id] = b.command(t, runtimes[i%2], id)
		}
		before := len(readLog(t))
		var wg sync.WaitGroup
		for id, cmd := range cmds {
			wg.Go(func() {
				if out, err := cmd.CombinedOutput(); (err != nil) != broken || (string(out) == "whole\n") == broken {
					t.Errorf("%s: %v %s", id, err, out)
				}
			})
		}
		wg.Wait()
		for _, l := range readLog(t)[before:] {
			if l.Level == "error" && !strings.Contains(l.Msg, "fetching: /usr/bin/nix-store: exit status 1: ") {
				t.Errorf("broken %v: %s", broken, l.Msg)
			}
		}
		if left := halfMade(t); len(left) > 0 {
			t.Errorf("broken %v: left in the store: %q", broken, left)
		}
		nothingLeft(t)
	}
}

// While the garbage collector runs over and over, what is fetched is whole, or the
// container is refused.
func TestFetchWhileCollecting(t *testing.T) {
	const count = 40
	var names, all []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("loop-%d", i))
	}
	trees := buildTrees(t, names, "--no-out-link")
	for _, one := range trees {
		all = append(all, one.root)
	}
	useCache(t, "file://"+newCache(t, all...), unsigned)
	writeConfig(t, "substitute = true\n")
	collect(t, all...)
	cmds := make([]*exec.Cmd, count)
	for i := range cmds {
		one := trees[i%len(trees)]
		b := newBundle(t, with(roots(one.root), "nix-closure/mode", modes[i/4%2]), one.check("sleep 0.1"),
			"createRuntime", "poststop")
		cmds[i] = b.command(t, runtimes[i/8%2], fmt.Sprintf("loop-%d", i))
	}
	before := len(readLog(t))
	collections := over(t, "nix-store", "--gc")
	var next, whole atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < count; i = next.Add(1) - 1 {
				out, err := cmds[i].CombinedOutput()
				if err == nil && string(out) == "whole\n" {
					whole.Add(1)
				} else if err == nil || strings.Contains(string(out), "a hole") {
					t.Errorf("%d: %v %s", i, err, out)
				}
			}
		})
	}
	wg.Wait()
	collected, _ := collections()
	refused, fetching := 0, map[string]bool{}
	for _, l := range readLog(t)[before:] {
		if l.Level == "error" {
			t.Log(l.Msg)
			refused++
		}
		if l.Msg == "fetching" {
			fetching[l.Container] = true
		}
	}
	t.Logf("%d whole, %d refused, %d had to fetch; %d collections", whole.Load(), refused, len(fetching), collected)
	if int(whole.Load())+refused != count || whole.Load() < count/2 || len(fetching) < 4 || collected < 4 {
		t.Error("not all are accounted for, or this test shows nothing")
	}
	if left := halfMade(t); len(left) > 0 {
		t.Errorf("left in the store: %q", left)
	}
	nothingLeft(t)
}
