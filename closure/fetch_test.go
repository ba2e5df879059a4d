// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// end ends a process that a test started.
func end(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err == nil {
		err = syscall.Kill(n, syscall.SIGKILL)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestProgress(t *testing.T) {
	path := func(name string) string { return nixStore.Path(named(name)) }
	copying := func(name string) string { return "copying path '" + path(name) + "' from 'https://cache.example'..." }
	const todo = "these 2 paths will be fetched (0.10 MiB download, 0.30 MiB unpacked)"
	const what = "; build it here, copy it to one of them, or correct `substituters` in nix.conf"
	for _, c := range []struct {
		name  string
		lines []string
		far   string
		begun []BaseName
		why   string
	}{
		{name: "nothing", far: "no substituter has answered"},
		{name: "announced", lines: []string{todo + ":", path("a"), path("b")}, far: todo + "; none begun"},
		{name: "one path", lines: []string{"this path will be fetched (1 MiB):", path("a")},
			far: "this path will be fetched (1 MiB); none begun"},
		{name: "begun", lines: []string{todo + ":", path("a"), path("b"), copying("a"), copying("b")},
			far: todo + "; 2 begun, the last " + path("b"), begun: names("a b")},
		{name: "begun, not announced", lines: []string{copying("b")}, far: "1 store paths begun, the last " + path("b"),
			begun: names("b")},
		{name: "begun twice", lines: []string{copying("a"), copying("b"), copying("a")},
			far: "2 store paths begun, the last " + path("b"), begun: names("a b")},
		{name: "announced twice", lines: []string{todo + ":", "these 9 paths will be fetched"},
			far: "these 9 paths will be fetched; none begun"},
		{name: "not store paths", lines: []string{
			"copying path '/etc/passwd' from 'x'", "copying path '" + path("a") + "/../../etc' from 'x'",
			"copying path '" + path("a") + "/bin' from 'x'",
			"copying path '", "copying path ''", "copying path '../" + string(named("a")) + "'",
			"copying path '" + path("a") + "\x00' from", " copying path '" + path("a") + "'",
		}, far: "no substituter has answered"},
		{name: "another store", lines: []string{"copying path '/gnu/store/" + string(named("a")) + "' from"},
			far: "no substituter has answered"},
		{name: "no end", lines: []string{"copying path '" + path("a")},
			far: "1 store paths begun, the last " + path("a"), begun: names("a")},

		{name: "nobody has it", lines: []string{"don't know how to build these paths:", path("a"), path("b"),
			"error: build of '" + path("a") + "' failed"},
			far: "no substituter has answered", why: "no substituter has " + path("a") + what},
		{name: "nobody has it, and a warning",
			lines: []string{"warning: error: unable to download 'u': x; retrying", "warning: unable to download 'u': x",
				"don't know how to build these paths:", path("b")},
			far: "no substituter has answered",
			why: "no substituter has " + path("b") + " (unable to download 'u': x)" + what},
		{name: "nobody has it, says another line",
			lines: []string{path("a"), "don't know how to build these paths (may be caused by read-only store access):",
				"x", path("b")},
			far: "no substituter has answered", why: "no substituter has " + path("b") + what},
		{name: "nobody has what", lines: []string{"don't know how to build these paths:", "/etc/passwd",
			path("a") + "/bin"}, far: "no substituter has answered"},
		{name: "a warning", lines: []string{todo + ":", path("a"), "warning: the substitute for 'x' is not signed"},
			far: todo + "; none begun", why: "the substitute for 'x' is not signed"},
		{name: "a warning that is none",
			lines: []string{"warning: you did not specify '--add-root'; the result might be removed by the garbage " +
				"collector", "a warning: x"},
			far: "no substituter has answered"},
	} {
		p := progress{store: nixStore}
		for _, line := range c.lines {
			p.note(line)
		}
		if p.String() != c.far || !slices.Equal(p.begun, c.begun) || p.why() != c.why {
			t.Errorf("%s: %q, begun %q, why %q", c.name, p, p.begun, p.why())
		}
	}
}

// fakeNix is a nix-store that does what fetch says, and of its other work what
// discard needs: a path is valid where beside it there is a file `.valid`. Its
// calls are in its file `.calls`.
func fakeNix(t *testing.T, fetch string) NixStore {
	t.Helper()
	dir := t.TempDir()
	mkdir(t, dir+"/store")
	return NixStore{Store: Store{Dir: dir + "/store", StateDir: dir + "/var"}, Cache: dir + "/cache",
		Program: script(t, `
echo "$@" >>$0.calls
case "$*" in
"--check-validity "*) [ -e "$3.valid" ] || echo "$3" ;;
"--delete "*)
	[ ! -e "$2.alive" ] || { echo "error: cannot delete path '$2' since it is still alive" >&2; exit 1; }
	rm -r "$2" ;;
*)
echo "XDG_CACHE_HOME=$XDG_CACHE_HOME" >>$0.calls
cd $NIX_STORE_DIR
`+fetch+`
;;
esac
`)}
}

func TestFetch(t *testing.T) {
	n := fakeNix(t, "echo one >&2; echo two >&2; echo out")
	var reported []string
	report := func(line string) { reported = append(reported, line) }
	if err := n.Fetch(t.Context(), names("a b"), "", report); err != nil {
		t.Fatal(err)
	}
	if err := n.Fetch(t.Context(), names("a"), "/roots/web", report); err != nil {
		t.Fatal(err)
	}
	if want := []string{"one", "two", "one", "two"}; !slices.Equal(reported, want) {
		t.Errorf("reported %q, want %q", reported, want)
	}
	a, b := n.Store.Path(named("a")), n.Store.Path(named("b"))
	const how = "--option max-jobs 0 --option builders  --option narinfo-cache-negative-ttl 0 --realise "
	want := how + a + " " + b + "\nXDG_CACHE_HOME=" + n.Cache + "\n" +
		how + "--indirect --add-root /roots/web/fetched " + a + "\nXDG_CACHE_HOME=" + n.Cache + "\n"
	if got := read(t, n.Program+".calls"); got != want {
		t.Errorf("called with\n%s\nwant\n%s", got, want)
	}
}

// After a failure, what was not finished is removed, and nothing else.
func TestFetchDiscards(t *testing.T) {
	a, b := string(named("a")), string(named("b"))
	begin := fmt.Sprintf("echo \"copying path '$PWD/%s' from 'x'...\" >&2\n", a)
	fail := "echo error: it broke >&2; exit 1\n"
	for _, c := range []struct {
		name, fetch string
		left        []string // in the store
		err         string   // at its end
		locked      string   // by another process, from before
	}{
		{name: "nothing begun", fetch: fmt.Sprintf("touch %s %s.lock\n", b, b) + fail, left: []string{b, b + ".lock"},
			err: ": it broke"},
		{name: "half a directory", fetch: begin + fmt.Sprintf("mkdir -p %s/x; touch %s/x/y %s.lock %s\n", a, a, a, b) +
			fail, left: []string{b}, err: ": it broke"},
		{name: "half a file", fetch: begin + fmt.Sprintf("touch %s %s.lock\n", a, a) + fail, err: ": it broke"},
		{name: "a link", fetch: begin + fmt.Sprintf("ln -s %s %s; touch %s\n", b, a, b) + fail, left: []string{b},
			err: ": it broke"},
		{name: "a lock alone", fetch: begin + fmt.Sprintf("touch %s.lock %s.lock\n", a, b) + fail,
			left: []string{b + ".lock"}, err: ": it broke"},
		{name: "a lock that another has", fetch: begin + fail, locked: a + ".lock", left: []string{a + ".lock"},
			err: ": it broke"},
		{name: "a lock that is a link", fetch: begin + fmt.Sprintf("touch %s; ln -s %s %s.lock\n", b, b, a) + fail,
			left: []string{a + ".lock", b}, err: ": it broke"},
		{name: "whole", fetch: begin + fmt.Sprintf("mkdir %s; touch %s.valid %s.lock\n", a, a, a) + fail,
			left: []string{a, a + ".lock", a + ".valid"}, err: ": it broke"},
		{name: "another fetches it", fetch: begin + fmt.Sprintf("mkdir %s; touch %s.alive %s.lock\n", a, a, a) + fail,
			left: []string{a, a + ".alive", a + ".lock"}, err: "since it is still alive"},
		{name: "succeeds", fetch: begin + fmt.Sprintf("mkdir %s\n", a), left: []string{a}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := fakeNix(t, c.fetch)
			if c.locked != "" {
				f, err := os.Create(n.Store.Dir + "/" + c.locked)
				if err == nil {
					defer f.Close()
					err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			err := n.Fetch(t.Context(), names("a"), "", func(string) {})
			if (err == nil) != (c.err == "") || err != nil && !strings.HasSuffix(err.Error(), c.err) {
				t.Errorf("error %v", err)
			}
			entries, err := os.ReadDir(n.Store.Dir)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("left %q, want %q", left, c.left)
			}
		})
	}
}

// Who waits for a lock file that is removed sees that it is no longer the one, as
// Nix makes it: by what is in it.
func TestRemoveLock(t *testing.T) {
	path := write(t, t.TempDir()+"/lock", "")
	waiting, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	removeLock(path)
	if st, err := waiting.Stat(); err != nil || st.Size() == 0 || fileExists(path) {
		t.Errorf("%v, %v; there: %v", st, err, fileExists(path))
	}
	removeLock(path) // not there
}

// What could not be fetched in time says how far it came, and is removed too.
func TestFetchTimeout(t *testing.T) {
	a := string(named("a"))
	for _, c := range []struct{ name, fetch, far string }{
		{"nobody answers", "", "no substituter has answered"},
		{"a warning", "echo warning: unable to download >&2\n", "no substituter has answered"},
		{"announced", "echo these 7 paths will be fetched: >&2\n", "these 7 paths will be fetched; none begun"},
		{"begun", fmt.Sprintf("echo these 7 paths will be fetched: >&2; mkdir %s; touch %s.lock; echo \"copying path "+
			"'$PWD/%s' from 'x'...\" >&2\n", a, a, a),
			"these 7 paths will be fetched; 1 begun, the last STORE/" + a},
	} {
		// It would not end before the test does.
		n := fakeNix(t, c.fetch+"echo all said >&2; exec sleep 3600")
		ctx := newEndable()
		err := n.Fetch(ctx, names("a b"), "", func(line string) {
			if line == "all said" {
				ctx.end()
			}
		})
		want := strings.ReplaceAll("the time for it is over: "+c.far+
			"; fetch it by hand with `nix-store --realise STORE/"+a+" STORE/"+string(named("b"))+
			"`, or raise substitute-timeout in the configuration", "STORE", n.Store.Dir)
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n%v\nwant\n%s", c.name, err, want)
		}
		if entries, err := os.ReadDir(n.Store.Dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: left %v, %v", c.name, entries, err)
		}
	}
}
