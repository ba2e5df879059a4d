// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	_ "embed"
)

// What podman is told for a container with Nix's database or a writable store.
const (
	registered = "--annotation=nix-closure/registration=true"
	writable   = "--annotation=nix-closure/writable=true"
)

// userns are the flags for a user namespace whose root is another user outside. It
// goes without shared memory, which podman 4.3 may still find mounted when it
// removes such a container.
var userns = []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--ipc", "none"}

// plus is the container with more flags.
func (c container) plus(flags ...string) container {
	c.flags = slices.Concat(c.flags, flags)
	return c
}

// nix is the container with a registration and the host's Nix, which does not
// come from the store.
func (c container) nix(flags ...string) container {
	for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		c = c.plus("-v", dir+":"+dir+":ro")
	}
	// The images have no users.
	c = c.plus("-e", "USER=somebody", "-e", "HOME=/tmp", "-e",
		"NIX_CONFIG=build-users-group =\nsandbox = false\nsubstituters =\n")
	return c.plus(registered).plus(flags...)
}

// shell runs a script with the host's shell, in a container that has it.
func (c container) shell(t *testing.T, script string, args ...string) string {
	t.Helper()
	return c.mustRun(t, append([]string{"/bin/sh", "-c", script, "sh"}, args...)...)
}

var (
	//go:embed testdata/answers.sh
	answersScript string
	//go:embed testdata/mends.sh
	mendsScript string
)

// pathsOf is the closure of a store path, as store paths.
func pathsOf(t *testing.T, root string) []string {
	t.Helper()
	var paths []string
	for _, n := range closureOf(t, root) {
		paths = append(paths, storeDir+"/"+n)
	}
	return paths
}

// within leaves out the lines that are store paths and not of the closure.
func within(closure []string, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if path := strings.TrimSpace(line); !strings.HasPrefix(path, storeDir+"/") || slices.Contains(closure, path) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// pair is a runtime and a mode.
type pair struct{ runtime, mode string }

var (
	onePairEach  = []pair{{"runc", "overlay"}, {"crun", "bind"}}
	overlayPairs = []pair{{"runc", "overlay"}, {"crun", "overlay"}}
)

// Nix in the container answers as on the host, knows no other path, and finds
// nothing to mend: for everybody for whom docs/annotations.md says so, to whom the state
// directory belongs, and a writable store too.
func TestNixAnswers(t *testing.T) {
	paths := pathsOf(t, store["env"])
	onHost := func(count int) string {
		args := append([]string{"-c", answersScript, "sh", fmt.Sprint(count)}, paths...)
		return within(paths, must(t, "/bin/sh", args...))
	}
	every, one := onHost(len(paths)), onHost(1)
	const (
		user, root = "1000:1000", "0:0"
		nobody     = "65534:65534"
	)
	asUser := []string{"--user", user}
	for _, who := range []struct {
		name  string
		flags []string
		pairs []pair
		state string // whose the state directory is
		store string // whose the store directory is
		info  bool
	}{
		{name: "user", flags: asUser, pairs: onePairEach, state: user, store: root},
		{name: "root with CAP_SYS_ADMIN", flags: []string{"--cap-add", "SYS_ADMIN"}, pairs: onePairEach, state: root,
			store: root},
		{name: "user, from a closure-info", flags: asUser, pairs: onePairEach, state: user, store: root, info: true},
		{name: "user of a user namespace", flags: append(asUser, userns...), pairs: onePairEach, state: user,
			store: nobody},
		{name: "root, writable", flags: []string{writable}, pairs: overlayPairs, state: root, store: root},
		{name: "user, writable", flags: append(asUser, writable), pairs: overlayPairs[:1], state: user, store: user},
		{name: "root of a user namespace, writable", flags: append(userns, writable), pairs: overlayPairs, state: root,
			store: root},
	} {
		for i, p := range who.pairs {
			t.Run(strings.Join([]string{who.name, p.runtime, p.mode}, "/"), func(t *testing.T) {
				c := container{runtime: p.runtime, mode: p.mode, root: "env"}
				if who.info {
					c.root = ""
					c = c.plus("--annotation", "nix-closure/closure-info="+store["closureInfo"])
				}
				// All about each path once; the database is the same for all.
				count, want := 1, one
				if i == 0 && who.name == "user" {
					count, want = len(paths), every
				}
				want += "reading the Nix store...\nchecking path existence...\nchecking link hashes...\nchecking " +
					"store hashes...\nverified: 0\n" +
					"error: path '" + store["foreign"] + "' is not valid\nforeign: 1\nvalid\n" +
					"/nix/var/nix " + who.state + "\n/nix/store " + who.store + "\n"
				args := append([]string{store["foreign"], fmt.Sprint(count)}, paths...)
				got := c.nix(who.flags...).shell(t, "foreign=$1\nshift\n"+answersScript+mendsScript, args...)
				if got != want {
					t.Errorf("Nix answers\n%s\nwant\n%s", got, want)
				}
				nothingLeft(t)
			})
		}
	}
}

// Root without CAP_SYS_ADMIN cannot use Nix on a read-only store: Nix's own rule,
// of which docs/annotations.md warns.
func TestNixNeedsPower(t *testing.T) {
	for _, p := range onePairEach {
		_, stderr, err := container{runtime: p.runtime, mode: p.mode, root: "env"}.nix().run("/usr/bin/nix-store",
			"-qR", store["env"])
		if err == nil || stderr != "error: remounting /nix/store writable: Operation not permitted\n" {
			t.Errorf("%s: %v %s", p, err, stderr)
		}
	}
}

// stateScript prints the files of a state directory and, before and after Nix
// used it, the bytes of its database and what is beside it.
//
//go:embed testdata/state.py
var stateScript string

// Neither the registration on the host nor what the container has of it has a
// byte of a name that is not of the closure: no row, no free page, no rest of a
// write-ahead log.
func TestNothingForeignInDatabase(t *testing.T) {
	closure := closureOf(t, store["env"])
	foreign := foreignNames(t, closure)
	search := func(what string, text []byte) {
		t.Helper()
		if !bytes.Contains(text, []byte(store["env"])) {
			t.Errorf("%s: is not the database", what)
		}
		for _, f := range foreign {
			if bytes.Contains(text, []byte(f)) {
				t.Errorf("%s: has %s", what, f)
			}
		}
	}
	for _, annotation := range []string{"nix-closure/roots=" + store["env"],
		"nix-closure/closure-info=" + store["closureInfo"]} {
		removeAll(t, runtimeDir+"/registrations")
		for _, p := range onePairEach {
			c := container{runtime: p.runtime, mode: p.mode, flags: []string{"--annotation", annotation}}
			var got struct {
				Store    []string // the names in the store directory, and in .links of it
				Tree     []string
				Files    map[string][]byte // before Nix
				Used     map[string][]byte // after it
				Freelist int
			}
			text := c.nix("--user", "1000:1000").mustRun(t, store["env"]+"/bin/python3", "-B", "-c", stateScript,
				store["env"])
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			if want := append([]string{".links"}, closure...); !slices.Equal(got.Store, want) {
				t.Errorf("%s: the store has %q, want %q", p, got.Store, want)
			}
			if got.Freelist != 0 {
				t.Errorf("%s: %d free pages", p, got.Freelist)
			}
			if want := []string{
				"db", "db/big-lock", "db/db.sqlite", "db/reserved", "db/schema", "gc.lock", "gcroots", "gcroots/auto",
				"gcroots/per-user", "gcroots/profiles", "profiles", "profiles/per-user", "temproots", "userpool",
			}; !slices.Equal(got.Tree, want) {
				t.Errorf("%s: the state directory has %q", p, got.Tree)
			}
			var all []byte
			for _, files := range []map[string][]byte{got.Files, got.Used} {
				for _, text := range files {
					all = append(all, text...)
				}
			}
			search("in the container", all)

			names := registrationNames(t)
			if len(names) != 1 {
				t.Fatalf("registrations: %q", names)
			}
			made, err := os.ReadFile(filepath.Join(runtimeDir, "registrations", names[0]))
			if err != nil {
				t.Fatal(err)
			}
			search("on the host", made)
			if !bytes.Equal(made, got.Files["db.sqlite"]) {
				t.Error("the container's is no copy of the host's")
			}
		}
	}
}

// foreignNames are the hash parts, and the names that no path of the closure has,
// of all other paths that the store or Nix's database names.
func foreignNames(t *testing.T, closure []string) []string {
	t.Helper()
	text := must(t, "/usr/bin/python3", "-B", "-c", `
import os, sqlite3
db = sqlite3.connect("file:/nix/var/nix/db/db.sqlite?mode=ro", uri=True)
names = set(os.listdir("/nix/store"))
for query in "path from ValidPaths", "deriver from ValidPaths where deriver <> ''", "path from DerivationOutputs":
    names.update(row[0].split("/")[3] for row in db.execute("select " + query))
print("\n".join(sorted(names)))
`)
	known := strings.Join(closure, "\n")
	foreign := []string{".drv"}
	for base := range strings.FieldsSeq(text) {
		hash, name, ok := strings.Cut(base, "-")
		if ok && len(hash) == 32 && !slices.Contains(closure, base) {
			foreign = append(foreign, hash)
			if !strings.Contains(known, name) {
				foreign = append(foreign, name)
			}
		}
	}
	if len(foreign) < 2*len(closure) || !slices.Contains(foreign, "foreign-secret") {
		t.Fatalf("this test shows nothing: %q", foreign)
	}
	return foreign
}

// registrationNames are the names of what is in the directory of registrations,
// but for who uses them.
func registrationNames(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(runtimeDir + "/registrations")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.Contains(e.Name(), "@") {
			names = append(names, e.Name())
		}
	}
	return names
}

// registeredInfo makes a closure-info of env's closure with this registration.
func registeredInfo(t *testing.T, registration string) string {
	t.Helper()
	dir := t.TempDir() + "/closure-info"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	paths, err := os.ReadFile(store["closureInfo"] + "/store-paths")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"store-paths": string(paths), "registration": registration} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimSpace(must(t, "nix-store", "--add", dir))
}

func trueRegistration(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(store["closureInfo"] + "/registration")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var narHash = regexp.MustCompile(`(?m)^(sha256:)?[0-9a-z]{52,64}$`)

// What a closure-info claims of others' paths is told to no container that did not
// ask for this closure-info, whichever starts first.
func TestHostileClosureInfo(t *testing.T) {
	hash := "sha256:" + strings.Repeat("0", 52)
	info := registeredInfo(t, narHash.ReplaceAllString(trueRegistration(t), hash))
	question := []string{"/usr/bin/nix-store", "--query", "--hash", store["env"], store["data"]}
	right := must(t, question[0], question[1:]...)
	asked := map[string]string{
		"nix-closure/closure-info=" + info:                 hash + "\n" + hash + "\n",
		"nix-closure/closure-info=" + store["closureInfo"]: right,
		"nix-closure/roots=" + store["env"]:                right,
	}
	orders := [][]string{
		{"nix-closure/closure-info=" + info, "nix-closure/roots=" + store["env"],
			"nix-closure/closure-info=" + store["closureInfo"]},
		{"nix-closure/roots=" + store["env"], "nix-closure/closure-info=" + store["closureInfo"],
			"nix-closure/closure-info=" + info, "nix-closure/roots=" + store["env"]},
	}
	for i, order := range orders {
		removeAll(t, runtimeDir+"/registrations")
		removeAll(t, runtimeDir+"/closures")
		for _, annotation := range order {
			p := onePairEach[i]
			c := container{runtime: p.runtime, mode: p.mode}.nix("--user", "1000:1000", "--annotation", annotation)
			if got := c.mustRun(t, question...); got != asked[annotation] {
				t.Errorf("%s: Nix says\n%s, want\n%s", annotation, got, asked[annotation])
			}
		}
		if names := registrationNames(t); len(names) != 3 {
			t.Errorf("registrations: %q", names)
		}
	}
	nothingLeft(t)
}

// A closure-info whose registration is not of exactly its closure is refused.
func TestBadRegistration(t *testing.T) {
	good := trueRegistration(t)
	env, foreign := store["env"], store["foreign"]
	first, second := pathsOf(t, env)[0], pathsOf(t, env)[1]
	_, rest, _ := strings.Cut(good, "\n"+second+"\n")
	// Of a path that references the C library alone, after three lines of it.
	const one = "\n\n1\n"
	before, after, _ := strings.Cut(good, one+store["libc"])
	user := strings.Split(before, "\n")[strings.Count(before, "\n")-2]
	entry := func(path, hash, size, deriver, count string) string {
		return strings.Join([]string{path, hash, size, deriver, count, ""}, "\n")
	}
	hash := strings.Repeat("0", 64)
	const file = "/registration: "
	lines := strings.Count(good, "\n")
	last := strings.Split(good, "\n")[lines-1]
	for _, c := range []struct{ name, registration, want string }{
		{"a path too many", good + entry(foreign, hash, "1", "", "0"),
			file + fmt.Sprintf("line %d: %s is registered, but not in the closure", lines+1, foreign)},
		{"a path is missing", second + "\n" + rest, file + first + " is in the closure, but not registered"},
		{"a reference to another path", before + one + foreign + after,
			file + fmt.Sprintf("line %d: %s references %s, which is not in the closure",
				strings.Count(before+one, "\n")+1, user, foreign)},
		{"a path twice", good + entry(first, hash, "1", "", "0"),
			file + fmt.Sprintf("line %d: %s is registered a second time", lines+1, first)},
		{"a path outside", entry("/etc/passwd", hash, "1", "", "0"),
			file + `line 1: "/etc/passwd": not below the store directory /nix/store`},
		{"no hash", entry(env, "", "1", "", "0"), file + `line 2: "": not a SHA-256 as Nix writes it`},
		{"not text", "\x00\xff\n", file + `line 1: "\x00\xff": not below the store directory /nix/store`},
		{"cut off", strings.TrimSuffix(good, "\n"),
			file + fmt.Sprintf("line %d: %q: without a line break at its end, so it may be cut off", lines, last)},
		{"cut off after a line", strings.TrimSuffix(good, last+"\n"),
			file + fmt.Sprintf("line %d: missing: the text ends in the middle of a store path's lines", lines)},
		{"more references than paths", entry(env, hash, "1", "", "9999999999"),
			file + fmt.Sprintf("line 5: 9999999999 references, but the closure has %d paths", len(pathsOf(t, env)))},
		{"an empty line", "\n", file + `line 1: "": not below the store directory /nix/store`},
		{"no registration", "", ": has no file `registration`, so it is not the output of nixpkgs' closureInfo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			info := registeredInfo(t, c.registration)
			before := registrationNames(t)
			annotations := map[string]string{"nix-closure/closure-info": info, "nix-closure/registration": "true"}
			b := newBundle(t, annotations, "echo it runs", "createRuntime", "poststop")
			id, stdout, stderr, err := b.run(t, "runc")
			if err == nil || stdout != "" {
				t.Fatalf("it started: %q %v", stdout, err)
			}
			want := "nix-closure: container " + id + ": making the registration: " + info + c.want
			if got := lastError(t); got != want {
				t.Errorf("the log says\n%s, want\n%s", got, want)
			}
			if quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(want); !strings.Contains(stderr, quoted) {
				t.Errorf("standard error is\n%s, want in it\n%s", stderr, quoted)
			}
			if after := registrationNames(t); !slices.Equal(after, before) {
				t.Errorf("registrations: %q, before %q", after, before)
			}
			nothingLeft(t)
		})
	}
}

// hostDatabase is what the host knows of the store paths, and the bytes of all
// registrations that were made.
func hostDatabase(t *testing.T) string {
	t.Helper()
	all := must(t, "nix-store", "--dump-db")
	for _, name := range registrationNames(t) {
		text, err := os.ReadFile(filepath.Join(runtimeDir, "registrations", name))
		if err != nil {
			t.Fatal(err)
		}
		all += name + string(text)
	}
	return all
}

// What a container does to its database is not seen by another container of the
// same closure, by one that starts later, or by the host.
func TestRegistrationIsACopy(t *testing.T) {
	hash := func(t *testing.T, id string) string {
		t.Helper()
		return execute(t, id, "/usr/bin/nix-store", "--query", "--hash", store["env"])
	}
	right, wrong := must(t, "nix-store", "--query", "--hash", store["env"]), "sha256:"+strings.Repeat("0", 52)+"\n"
	for _, v := range []struct {
		pair
		flags []string
		adds  bool // whether it can add a path
	}{
		{pair{"runc", "overlay"}, []string{writable}, true},
		{pair{"crun", "bind"}, []string{"--user", "1000:1000"}, false},
	} {
		c := container{runtime: v.runtime, mode: v.mode, root: "env"}.nix(v.flags...)
		one, other := c.start(t), c.start(t)
		before := hostDatabase(t)
		added := store["foreign"]
		if v.adds {
			added = strings.TrimSpace(execute(t, one, "/usr/bin/nix-store", "--add", "/etc/hostname"))
			execute(t, one, "/usr/bin/nix-store", "--check-validity", added)
		}
		script(t, one, databaseScript, store["env"], store["data"])
		if got := hash(t, one); got != wrong {
			t.Errorf("%v: the one: %s: this test shows nothing", v, got)
		}
		later := c.start(t)
		for _, id := range []string{other, later} {
			if got := hash(t, id); got != right {
				t.Errorf("%v: another: %s", v, got)
			}
			const others = `nix-store --check-validity $1 && echo known; nix-store --check-validity $2 2>/dev/null ` +
				`|| echo unknown; [ -e $2 ] || echo missing`
			if got := execute(t, id, "/bin/sh", "-c", others, "sh", store["data"],
				added); got != "known\nunknown\nmissing\n" {
				t.Errorf("%v: another, what was forgotten and what was added: %q", v, got)
			}
		}
		if _, err := os.Lstat(added); v.adds && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: on the host: %v", v, err)
		}
		for _, id := range []string{one, other, later} {
			remove(t, id)
		}
		if hostDatabase(t) != before {
			t.Errorf("%v: the host's database or registration changed", v)
		}
		nothingLeft(t)
	}
}

//go:embed testdata/database.py
var databaseScript string

//go:embed testdata/fill.py
var fillScript string

// A container can write as much beside its database as the configuration says, and
// no more.
func TestRegistrationSize(t *testing.T) {
	writeConfig(t, "writable-size = \"4M\"\n")
	for _, p := range onePairEach {
		c := container{runtime: p.runtime, mode: p.mode, root: "env"}.nix("--user", "1000:1000")
		c.python(t, "pass") // so that there is a registration
		before := hostDatabase(t)
		var size, written int64
		var how string
		if _, err := fmt.Sscan(c.python(t, fillScript, "/nix/var/nix"), &size, &written, &how); err != nil {
			t.Fatal(err)
		}
		if how != "ENOSPC" || written < 3<<20 || written > size || size < 4<<20 || size > 5<<20 {
			t.Errorf("%s: %d of %d bytes written, then %s", p, written, size, how)
		}
		if hostDatabase(t) != before {
			t.Errorf("%s: the host's database or registration changed", p)
		}
		nothingLeft(t)
	}
}

// A registration is made once for all containers of a closure, and again when the
// closure was collected and came back.
func TestRegistrationOnce(t *testing.T) {
	removeAll(t, runtimeDir+"/registrations")
	closure := pathsOf(t, store["tools"])
	question := append([]string{"/usr/bin/nix-store", "--query", "--hash"}, closure...)
	start := func(p pair) os.FileInfo {
		t.Helper()
		c := container{runtime: p.runtime, mode: p.mode, root: "tools"}.nix("--user", "1000:1000")
		if got, want := c.mustRun(t, question...), must(t, question[0], question[1:]...); got != want {
			t.Errorf("%s: Nix says\n%s\nwant\n%s", p, got, want)
		}
		nothingLeft(t)
		names := registrationNames(t)
		if len(names) != 1 {
			t.Fatalf("%s: registrations: %q", p, names)
		}
		st, err := os.Stat(filepath.Join(runtimeDir, "registrations", names[0]))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != 0o600 {
			t.Errorf("%s: the registration has mode %v", p, st.Mode())
		}
		return st
	}
	// As an operator does ahead of time.
	must(t, filepath.Join(*bin, "nix-closure"), "resolve", "--registration", store["tools"])
	made := registrationNames(t)
	if len(made) != 1 {
		t.Fatalf("registrations: %q", made)
	}
	first, err := os.Stat(filepath.Join(runtimeDir, "registrations", made[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range onePairEach {
		if again := start(p); !os.SameFile(first, again) || again.Size() != first.Size() {
			t.Errorf("%s: made again", p)
		}
	}
	if err := os.Remove(filepath.Join(storeRoots(), "tools")); err != nil {
		t.Fatal(err)
	}
	must(t, "nix-store", "--gc")
	if _, err := os.Lstat(store["tools"]); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("it was not collected: %v", err)
	}
	rebuildStore(t)
	if again := start(onePairEach[0]); os.SameFile(first, again) {
		t.Error("the registration is from before it was collected")
	}
}

// Containers that start at once all have the whole database, from each stage that runtimes
// offer, and nothing of its making is left.
func TestRegistrationAtOnce(t *testing.T) {
	removeAll(t, runtimeDir+"/registrations")
	names := closureOf(t, store["env"])
	want := fmt.Sprintln(len(names)) + "new\nbig-lock db.sqlite reserved schema\n"
	script := "ls /nix/store | wc -l; echo new >/nix/store/new; cat /nix/store/new; echo $(ls /nix/var/nix/db); cat " +
		"/nix/var/nix/db/db.sqlite >&2"
	databases := map[string]bool{}
	var all sync.WaitGroup
	var lock sync.Mutex
	for i := range 18 {
		runtime, stage := runtimes[i%2], []string{"prestart", "createRuntime", "createContainer"}[i%3]
		b := newBundle(t, with(roots(store["env"]), "nix-closure/registration", "true", "nix-closure/writable", "true"),
			script, stage, "poststop")
		cmd := b.command(t, runtime, fmt.Sprintf("registration-%d", i))
		all.Go(func() {
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil || out.String() != want {
				t.Errorf("%s, %s: %v %q, want %q", runtime, stage, err, out.String(), want)
				return
			}
			lock.Lock()
			databases[errs.String()] = true
			lock.Unlock()
		})
	}
	all.Wait()
	made := registrationNames(t)
	if len(made) != 1 || len(databases) == 0 {
		t.Fatalf("registrations: %q", made)
	}
	text, err := os.ReadFile(filepath.Join(runtimeDir, "registrations", made[0]))
	if err != nil {
		t.Fatal(err)
	}
	for d := range databases {
		if d != string(text) {
			t.Errorf("a container has %d bytes of a database, the host %d", len(d), len(text))
		}
	}
	noneUsed(t)
}

// Where there is to be a registration, nothing else can be on the state directory
// or inside it. Otherwise that is none of our business.
func TestMountsOnStateDirectory(t *testing.T) {
	volume := t.TempDir()
	if err := os.MkdirAll(volume+"/var/nix/db", 0o755); err != nil {
		t.Fatal(err)
	}
	for i, m := range []struct {
		name  string
		flags []string
		on    string // what is named; empty: it starts
	}{
		{"a directory on it", []string{"-v", volume + "/var/nix:/nix/var/nix"}, "/nix/var/nix"},
		{"a tmpfs on it", []string{"--tmpfs", "/nix/var/nix"}, "/nix/var/nix"},
		{"a directory in it", []string{"-v", volume + ":/nix/var/nix/profiles"}, "/nix/var/nix/profiles"},
		{"a file in it", []string{"-v", "/etc/hostname:/nix/var/nix/db/x"}, "/nix/var/nix/db/x"},
		{"a tmpfs above it", []string{"--tmpfs", "/nix"}, ""},
		{"a directory above it", []string{"-v", volume + ":/nix"}, ""},
	} {
		t.Run(m.name, func(t *testing.T) {
			p := onePairEach[i%2]
			c := container{runtime: p.runtime, mode: p.mode, root: "env"}
			c.plus(m.flags...).mustRun(t, store["env"]+"/bin/true")
			nothingLeft(t)
			stdout, _, err := c.nix("--user", "1000:1000").plus(m.flags...).run("/usr/bin/nix-store", "--query",
				"--hash", store["env"])
			if want := must(t, "nix-store", "--query", "--hash", store["env"]); m.on == "" &&
				(err != nil || stdout != want) {
				t.Errorf("%v: Nix says %s, want %s", err, stdout, want)
			}
			want := ": attaching the view: " + m.on +
				" in the container: a mount is in the way of the view: another mount covers it, or config.json does " +
				"not list it; remove it"
			if said := lastError(t); m.on != "" && (err == nil || stdout != "" || !strings.HasSuffix(said, want)) {
				t.Errorf("%v %s, want %s", err, said, want)
			}
			nothingLeft(t)
		})
	}
	if left := must(t, "find", volume, "-type", "f"); left != "" {
		t.Errorf("on the host there is now %s", left)
	}
}

// An image whose state directory is elsewhere gets it there, inside the image. One in
// which it is the store directory, or either is in the other, does not start.
func TestStateDirectoryInImage(t *testing.T) {
	directory := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	nix, nixStore, nixVar, state := directory("nix/"), directory("nix/store/"), directory("nix/var/"),
		directory("nix/var/nix/")
	const elsewhere = "/nix/store in the container does not lead to what was attached there; symbolic links in the " +
		"image put it inside another attached directory, or another process changes the container's root while " +
		"it starts"
	for i, c := range []struct {
		name  string
		files []tar.Header
		flags []string
		where string // the state directory is; empty: it does not start
		want  string // the end of the message
	}{
		{name: "a link to a directory", files: []tar.Header{nix, link("nix/var", "/data"), directory("data/")},
			where: "/data/nix"},
		{name: "a link out of the root",
			files: []tar.Header{nix, link("nix/var", "../../../../data"), directory("data/"),
				directory("data/nix/")}, where: "/data/nix"},
		{name: "a database of its own", files: []tar.Header{nix, nixVar, state, directory("nix/var/nix/db/"),
			{Name: "nix/var/nix/db/x", Typeflag: tar.TypeReg, Mode: 0o644}}, where: "/nix/var/nix"},
		{name: "a link to /etc", files: []tar.Header{link("nix", "/etc")}, where: "/etc/var/nix"},
		{name: "a link into a volume", files: []tar.Header{nix, link("nix/var", "/volume")},
			flags: []string{"-v", t.TempDir() + ":/volume"},
			want: "/nix/var/nix in the container: a symbolic link in the image leads to a mount that has no such " +
				"directory; the image must have a directory there, or nothing"},
		{name: "a file", files: []tar.Header{nix, nixVar, {Name: "nix/var/nix", Typeflag: tar.TypeReg, Mode: 0o644}},
			want: "/nix/var/nix in the container: not a directory; the image must have a directory there, or nothing"},
		{name: "a link to the store", files: []tar.Header{nix, nixStore, nixVar, link("nix/var/nix", "../store")},
			want: elsewhere},
		{name: "a link into the store", files: []tar.Header{nix, nixStore, nixVar, directory("nix/store/x/"),
			link("nix/var/nix", "../store/x")},
			want: "/nix/var/nix in the container: openat2 /nix/var/nix: no such file or directory"},
		{name: "the store is a link into it",
			files: []tar.Header{nix, nixVar, state, directory("nix/var/nix/profiles/"),
				link("nix/store", "var/nix/profiles")}, want: elsewhere},
		{name: "the store is a link to it", files: []tar.Header{nix, nixVar, state, link("nix/store", "var/nix")},
			want: elsewhere},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := fmt.Sprintf("localhost/state-%d:latest", i)
			if err := importImage(image, c.files); err != nil {
				t.Fatal(err)
			}
			p := onePairEach[i%2]
			run := container{runtime: p.runtime, mode: p.mode, root: "env", image: image,
				flags: c.flags}.plus(registered)
			script := "import os,sys; print(len(os.listdir('/nix/store')) - 1, sorted(os.listdir(sys.argv[1])), " +
				"sorted(os.listdir(sys.argv[1] + '/db')))"
			stdout, stderr, err := run.run(store["env"]+"/bin/python3", "-B", "-c", script, c.where)
			want := fmt.Sprintln(len(closureOf(t, store["env"])),
				"['db', 'gc.lock', 'gcroots', 'profiles', 'temproots', 'userpool'] ['big-lock', 'db.sqlite', "+
					"'reserved', 'schema']")
			if c.want == "" && (err != nil || stdout != want) {
				t.Errorf("%v %q, want %q\n%s%s", err, stdout, want, stderr, lastLog(t))
			}
			if said := lastError(t); c.want != "" &&
				(err == nil || stdout != "" || !strings.HasSuffix(said, ": attaching the view: "+c.want)) {
				t.Errorf("%v %q %s", err, stdout, said)
			}
			nothingLeft(t)
		})
	}
}

// Without listing, Nix answers an ordinary user about a path that the user names, and
// can look for what there is as little as the user can.
func TestUnlistedWithNix(t *testing.T) {
	const unlisted = "--annotation=nix-closure/listing=false"
	const script = `
ls /nix/store 2>&1
nix-store --query --hash "$1"
nix-store --verify 2>&1
chmod o+r,u+r /nix/store 2>&1`
	const (
		ls     = "ls: cannot open directory '/nix/store': Permission denied\n"
		verify = "reading the Nix store...\nerror: opening directory '/nix/store': Permission denied\n"
	)
	want := ls + must(t, "nix-store", "--query", "--hash", store["env"]) + verify
	for _, p := range onePairEach {
		c := container{runtime: p.runtime, mode: p.mode, root: "env"}.nix(unlisted, "--user", "1000:1000")
		got, _, _ := c.run("/bin/sh", "-c", script, "sh", store["env"])
		if want := want + "chmod: changing permissions of '/nix/store': Read-only file system\n"; got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
		nothingLeft(t)
	}
	for _, p := range overlayPairs[1:] {
		id := container{runtime: p.runtime, mode: p.mode, root: "env"}.nix(unlisted, writable, "--user",
			"1000:1000").start(t)
		if _, stderr, err := call("podman", "exec", "--user", "1001:1000", id, "/bin/ls", "/nix/store"); err == nil ||
			stderr != "/bin/"+ls {
			t.Errorf("%s: another user: %v %s", p, err, stderr)
		}
		if _, stderr, err := call("podman", "exec", "--user", "1001:1000", id, "/bin/chmod", "o+r",
			"/nix/store"); err == nil || !strings.Contains(stderr, "Operation not permitted") {
			t.Errorf("%s: another user: %v %s", p, err, stderr)
		}
		// The store directory belongs to who may write to it, who may make it readable.
		if got := execute(t, id, "/bin/sh", "-c", script, "sh", store["env"]); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
		if got := execute(t, id, "/bin/ls", "/nix/store"); len(strings.Fields(got)) != len(closureOf(t, store["env"])) {
			t.Errorf("%s: the store has %s", p, got)
		}
		remove(t, id)
		nothingLeft(t)
	}
}
