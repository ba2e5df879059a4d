// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// ordinary is an ordinary user of the machine. Their podman finds the hooks as
// docs/engines.md says, by their containers.conf.
type ordinary struct {
	name string
	id   int
	home string
	env  []string
	own  string // the runtime directory that the hook is to use
}

// loggedIn has the users who have logged in, by the name that tests have for them.
var loggedIn = map[string]*ordinary{}

// users counts, for names.
var users int

// user makes an ordinary user, who has logged in: there is a directory below
// /run/user.
func user(t *testing.T, name string) *ordinary {
	t.Helper()
	if u := loggedIn[name]; u != nil {
		return u
	}
	u := userWithoutLogin(t, name)
	login := fmt.Sprintf("/run/user/%d", u.id)
	u.own = login + "/nix-closure"
	u.env = append(u.env, "XDG_RUNTIME_DIR="+login)
	if err := errors.Join(os.MkdirAll("/run/user", 0o755), os.Mkdir(login, 0o700),
		os.Chown(login, u.id, u.id)); err != nil {
		t.Fatal(err)
	}
	u.load(t)
	loggedIn[name] = u
	return u
}

// userWithoutLogin makes an ordinary user who has no image yet.
func userWithoutLogin(t *testing.T, name string) *ordinary {
	t.Helper()
	// The programs are where every user can run them.
	local := testhost.Dir() + "/local"
	if _, err := os.Stat(local); err != nil {
		must(t, "make", "-C", "../..", "install", "PREFIX="+local, "HOOKSDIR="+local+"/hooks.d")
	}
	// In a machine inside of another one there are the users of both.
	for prefix, exists := name, true; exists; {
		users++
		name = fmt.Sprintf("%s%d", prefix, users)
		_, _, err := call("id", name)
		exists = err == nil
	}
	u := &ordinary{name: name, home: testhost.Dir() + "/home/" + name}
	must(t, "useradd", "--no-create-home", "--home-dir", u.home, name)
	id, err := strconv.Atoi(strings.TrimSpace(must(t, "id", "-u", name)))
	if err != nil {
		t.Fatal(err)
	}
	u.id, u.own = id, fmt.Sprintf("/tmp/nix-closure-%d", id)
	u.env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + u.home, "USER=" + name}
	if err := errors.Join(os.Chmod(testhost.Dir(), 0o711), os.MkdirAll(filepath.Dir(u.conf()), 0o755)); err != nil {
		t.Fatal(err)
	}
	u.setHooksDir(t, local+"/hooks.d")
	must(t, "chown", "--recursive", fmt.Sprintf("%d:%d", id, id), u.home)
	return u
}

// conf is the user's own configuration of podman.
func (u *ordinary) conf() string { return u.home + "/.config/containers/containers.conf" }

func (u *ordinary) setHooksDir(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(u.conf(), fmt.Appendf(nil, "[engine]\nhooks_dir = [%q]\n", dir), 0o644); err != nil {
		t.Fatal(err)
	}
}

// load gives the user's podman the bare image.
func (u *ordinary) load(t *testing.T) {
	t.Helper()
	image := u.home + "/image.tar"
	must(t, "podman", "save", "--quiet", "--output", image, bareImage)
	must(t, "chown", u.name, image)
	u.must(t, "podman", "load", "--quiet", "--input", image)
}

// command is a command that the user calls.
func (u *ordinary) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = u.home, u.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.id), Gid: uint32(u.id)}}
	return cmd
}

func (u *ordinary) call(program string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := u.command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (u *ordinary) must(t *testing.T, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := u.call(program, args...)
	if err != nil {
		log := u.log(t)
		t.Fatalf("%s: %s %q: %v\n%s\nlog: %+v", u.name, program, args, err, stderr, log[max(0, len(log)-3):])
	}
	return stdout
}

// args are podman's for a container of the user. The hooks are where
// containers.conf says, if the container does not.
func (u *ordinary) args(c container, command ...string) []string {
	args := c.args(command...)
	if c.hooks == "" {
		args = args[2:]
	}
	return args
}

// run runs a command in a container to its end.
func (u *ordinary) run(c container, command ...string) (stdout, stderr string, err error) {
	return u.call("podman", u.args(c.plus("--rm"), command...)...)
}

// mustRun is run, and what the command printed.
func (u *ordinary) mustRun(t *testing.T, c container, command ...string) string {
	t.Helper()
	return u.must(t, "podman", u.args(c.plus("--rm"), command...)...)
}

// start starts a container that runs until the test ends, and returns its id.
func (u *ordinary) start(t *testing.T, c container) string {
	t.Helper()
	id := strings.TrimSpace(u.must(t, "podman", u.args(c.plus("--detach"), store[c.root]+"/bin/sleep", "600")...))
	t.Cleanup(func() { u.remove(t, id) })
	return id
}

func (u *ordinary) remove(t *testing.T, id string) {
	t.Helper()
	u.must(t, "podman", "rm", "--force", "--ignore", "--time", "0", id)
}

// names is what the store has in a container that was started.
func (u *ordinary) names(t *testing.T, id, root string) []string {
	t.Helper()
	names := strings.Fields(u.must(t, "podman", "exec", id, store[root]+"/bin/ls", "-A", storeDir))
	slices.Sort(names)
	return names
}

// script runs a Python script in a container that was started, and returns what
// it has to say of each thing that it tried.
func (u *ordinary) script(t *testing.T, id, script string, args ...string) map[string]string {
	t.Helper()
	out := u.must(t, "podman", append([]string{"exec", id, store["env"] + "/bin/python3", "-B", "-c", script},
		args...)...)
	var got map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) < 12 {
		t.Fatalf("only %d results: %v", len(got), got)
	}
	return got
}

// log is what is in the user's log.
func (u *ordinary) log(t *testing.T) []logLine {
	t.Helper()
	return readLogIn(t, u.own+"/nix-closure.log")
}

var containerID = regexp.MustCompile(`^nix-closure: (a container|container [0-9a-f]{64}): `)

// withoutID is a message after the name of podman's container.
func withoutID(message string) string { return containerID.ReplaceAllString(message, "") }

// checkRefused fails if a container starts, or if the log gives another reason why
// it does not.
func (u *ordinary) checkRefused(t *testing.T, c container, want string) {
	t.Helper()
	stdout, stderr, err := u.run(c, store["env"]+"/bin/echo", "it runs")
	if err == nil || stdout != "" {
		t.Errorf("it started: %q %v", stdout, err)
	}
	said := ""
	for _, l := range u.log(t) {
		if l.Level == "error" {
			said = l.Msg
		}
	}
	if withoutID(said) != want {
		t.Errorf("the log says\n%s, want\n%s\npodman says\n%s", said, want, stderr)
	}
	// runc shows what a createRuntime hook says.
	if c.runtime == "runc" && !strings.HasPrefix(said, "nix-closure: a container: ") &&
		!strings.Contains(stderr, said) {
		t.Errorf("podman says\n%s, want in it\n%s", stderr, said)
	}
	u.nothingLeft(t)
}

// nothingLeft is nothingLeft for the user's containers.
func (u *ordinary) nothingLeft(t *testing.T) {
	t.Helper()
	var left []string
	for range 100 {
		left = nil
		for _, pattern := range []string{"containers/*", "gcroots/*", "*/*@*"} {
			found, err := filepath.Glob(u.own + "/" + pattern)
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind: %q", left)
}

// nixDaemon starts Nix's daemon, for ordinary users, for the length of a test.
func nixDaemon(t *testing.T) {
	t.Helper()
	const socket = "/nix/var/nix/daemon-socket/socket"
	cmd := exec.Command("nix-daemon")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		removeAll(t, socket)
	})
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("nix-daemon makes no socket: %s", errs.String())
}

// rootsBelow are the GC roots that Nix knows below a directory, as it prints them.
func rootsBelow(t *testing.T, dir string) []string {
	t.Helper()
	var below []string
	for line := range strings.Lines(must(t, "nix-store", "--gc", "--print-roots")) {
		if strings.HasPrefix(line, dir+"/") {
			below = append(below, strings.TrimSpace(line))
		}
	}
	return below
}

// owned are the user namespaces that an ordinary user's container can have.
var owned = []struct {
	name  string
	flags []string
}{
	{"plain", nil},
	{"keep-id", []string{"--userns=keep-id"}},
	{"uidmap", []string{"--uidmap=0:0:1000"}},
	{"ranges", []string{"--uidmap=0:1:1000", "--uidmap=1000:0:1", "--gidmap=0:1:1000", "--gidmap=1000:0:1"}},
}

// An ordinary user's container has exactly its closure, to be read, and the user
// has a GC root for it as long as it runs.
func TestRootless(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	want := closureOf(t, store["env"])
	for _, runtime := range runtimes {
		for _, userns := range owned {
			t.Run(runtime+"/"+userns.name, func(t *testing.T) {
				id := alice.start(t, container{runtime: runtime, root: "env", flags: userns.flags})
				if got := alice.names(t, id, "env"); !slices.Equal(got, want) {
					t.Errorf("the store has %q\nwant %q", got, want)
				}
				for what, errno := range alice.script(t, id, absentScript, store["foreign"], store["closureInfo"]) {
					if errno != "ENOENT" {
						t.Errorf("%s: %s, want ENOENT", what, errno)
					}
				}
				for what, errno := range alice.script(t, id, writeScript, store["data"], store["plus"]) {
					if want := refusal("bind", true, what); errno != want {
						t.Errorf("%s: %s, want %s", what, errno, want)
					}
				}
				// Nix's daemon made it. Made by nix-store, it would have another name.
				root := alice.own + "/gcroots/" + id + "/" + filepath.Base(store["env"]) + " -> " + store["env"]
				if got := rootsBelow(t, alice.own); !slices.Equal(got, []string{root}) {
					t.Errorf("the GC roots are %q, want %q", got, root)
				}
				alice.remove(t, id)
				alice.nothingLeft(t)
				if got := rootsBelow(t, alice.own); len(got) > 0 {
					t.Errorf("GC roots that are left: %q", got)
				}
			})
		}
	}
}

// Nix's collector takes nothing that an ordinary user's container needs, and all
// of it, with what led to the user's directory, when the container is gone.
func TestRootlessGarbageCollector(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			rebuildStore(t)
			want := closureOf(t, store["tools"])
			id := alice.start(t, container{runtime: runtime, root: "tools"})
			// From here on, nothing but the container keeps it.
			if err := os.Remove(filepath.Join(storeRoots(), "tools")); err != nil {
				t.Fatal(err)
			}
			must(t, "nix-store", "--gc")
			if got := closureOf(t, store["tools"]); !slices.Equal(got, want) {
				t.Errorf("the closure is now %q", got)
			}
			if got := alice.names(t, id, "tools"); !slices.Equal(got, want) {
				t.Errorf("in the container: %q", got)
			}
			alice.remove(t, id)
			alice.nothingLeft(t)
			must(t, "nix-store", "--gc")
			if _, err := os.Lstat(store["tools"]); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there after the container: %v", err)
			}
			const auto = "/nix/var/nix/gcroots/auto"
			links, err := os.ReadDir(auto)
			if err != nil || len(links) == 0 {
				t.Fatalf("%v %v", links, err)
			}
			for _, l := range links {
				if target, err := os.Readlink(auto + "/" + l.Name()); err != nil ||
					strings.HasPrefix(target, alice.own) {
					t.Errorf("%s leads to %s: %v", l.Name(), target, err)
				}
			}
		})
	}
	rebuildStore(t)
}

// What is kept for an ordinary user's containers is the user's alone, and where
// root keeps its own, nothing changes.
func TestRootlessAlone(t *testing.T) {
	nixDaemon(t)
	alice, mallory := user(t, "alice"), user(t, "mallory")
	theirs := func() string {
		var all strings.Builder
		for _, path := range []string{runtimeDir, logFile, gcRoots} {
			err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err == nil {
					fmt.Fprintln(&all, path, info.ModTime(), info.Size())
				}
				return err
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		return all.String()
	}
	before := theirs()
	id := alice.start(t, container{runtime: "runc", root: "env", flags: []string{registered}})

	// Others may enter the directory above: it is the hook's own that keeps them out.
	login := filepath.Dir(alice.own)
	if err := os.Chmod(login, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chmod(login, 0o700); err != nil {
			t.Error(err)
		}
	})
	var kinds []string
	err := filepath.WalkDir(alice.own, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != alice.id {
			t.Errorf("%s belongs to user %d", path, owner)
		}
		if mode := info.Mode(); mode.Type() != fs.ModeSymlink && mode.Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, mode)
		}
		if _, _, err := mallory.call("/bin/cat", path); err == nil {
			t.Errorf("another user can read %s", path)
		}
		if path != alice.own {
			if _, _, err := mallory.call("/usr/bin/stat", path); err == nil {
				t.Errorf("another user can look at %s", path)
			}
		}
		first, _, _ := strings.Cut(strings.TrimPrefix(path, alice.own+"/"), "/")
		kinds = append(kinds, first)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// That there was something to look at.
	for _, kind := range []string{"containers", "closures", "gcroots", "nix-closure.log", "registrations"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("%s has no %s", alice.own, kind)
		}
	}
	if out, _, err := mallory.call("/bin/ls", alice.own); err == nil || out != "" {
		t.Errorf("another user sees %q", out)
	}
	alice.remove(t, id)
	alice.nothingLeft(t)
	if after := theirs(); after != before {
		t.Errorf("what is root's was\n%s, and is\n%s", before, after)
	}
}

// What rootless containers cannot have is refused, with the reason, and auto says
// why it takes what it takes.
func TestRootlessRefused(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	const noOverlay = "an overlay cannot show the closure here: setting trusted.overlay.opaque needs root in the " +
		"initial user namespace: operation not permitted"
	leak := func(source, destination string) string {
		return "looking at the container's mounts: mount of " + source + " on " + destination + ": shows " + source +
			" of the host, and with it more than the closure; take the mount out"
	}
	early := testhost.Dir() + "/early"
	must(t, "cp", "--recursive", testhost.Dir()+"/local/hooks.d", early)
	t.Cleanup(func() { removeAll(t, early) })
	must(t, "cp", "../../examples/podman/precreate/nix-closure-precreate.json", early)
	must(t, "sed", "--in-place", "s|/usr/local/bin|"+testhost.Dir()+"/local/bin|", early+"/nix-closure-precreate.json")
	for _, runtime := range runtimes {
		for _, c := range []struct {
			name  string
			flags []string
			hooks string
			want  string
		}{
			{name: "overlay", flags: []string{"--annotation=nix-closure/mode=overlay"},
				want: "making the view: " + noOverlay + "; ask for mode bind or auto"},
			{name: "writable", flags: []string{writable},
				want: "making the view: a writable store needs an overlay: " + noOverlay},
			{name: "the store", flags: []string{"-v", "/nix/store:/x"}, want: leak("/nix/store", "/x")},
			{name: "the host", flags: []string{"-v", "/:/host"}, want: leak("/", "/host")},
			{name: "the user's runtime directory", flags: []string{"-v", alice.own + ":/x"},
				want: leak(alice.own, "/x")},
			{name: "the store, seen by precreate", flags: []string{"-v", "/nix/store:/x"}, hooks: early,
				want: leak("/nix/store", "/x")},
			{name: "the host, seen by precreate", flags: []string{"-v", "/:/host"}, hooks: early,
				want: leak("/", "/host")},
		} {
			t.Run(runtime+"/"+c.name, func(t *testing.T) {
				alice.checkRefused(t, container{runtime: runtime, root: "env", flags: c.flags, hooks: c.hooks}, c.want)
			})
		}
		t.Run(runtime+"/auto", func(t *testing.T) {
			before := len(alice.log(t))
			if _, stderr, err := alice.run(container{runtime: runtime, root: "env", mode: "auto"},
				store["env"]+"/bin/true"); err != nil {
				t.Errorf("%v %s", err, stderr)
			}
			found := slices.ContainsFunc(alice.log(t)[before:], func(l logLine) bool {
				return l.Msg == "attached" && l.Mode == "bind" && l.Why == "auto: "+noOverlay
			})
			if !found {
				t.Errorf("the log does not say why: %+v", alice.log(t)[before:])
			}
		})
	}
}

// checkStarts fails if a container does not start, or has not exactly the closure
// of an attribute of the store.
func (u *ordinary) checkStarts(t *testing.T, c container, root string) {
	t.Helper()
	stdout, stderr, err := u.run(c, store[root]+"/bin/ls", "-A", storeDir)
	got := strings.Fields(stdout)
	if slices.Sort(got); err != nil || !slices.Equal(got, closureOf(t, store[root])) {
		log := u.log(t)
		t.Errorf("%q: %v, the store has %q\n%s\nlog: %+v", c.flags, err, got, stderr, log[max(0, len(log)-3):])
	}
	u.nothingLeft(t)
}

// The node's policy holds for who uses the node's hook files.
func TestRootlessPolicy(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	// What it says of root's own places is not for others.
	const places = "runtime-dir = \"/run/elsewhere\"\nlog-file = \"/var/log/elsewhere\"\n"
	writeConfig(t, places+"[[allow]]\nroots = [\""+teams+"/a/*\"]\n")
	makeLinks(t, store["tools"])
	for _, runtime := range runtimes {
		alice.checkStarts(t, container{runtime: runtime, root: "tools"}, "tools")
		alice.checkRefused(t, container{runtime: runtime, root: "env"}, "checking what is allowed here: "+store["env"]+
			" is not allowed here: no [[allow]] of the configuration names it for a container without a Kubernetes "+
			"namespace; add it there, or ask for another")
	}
}

// Nix in an ordinary user's container answers as on the host, and knows no other
// path.
func TestRootlessRegistration(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	env, foreign := store["env"], store["foreign"]
	names := append(closureOf(t, env), ".links")
	want := must(t, "nix-store", "--query", "--requisites", env) + "error: path '" + foreign + "' is not valid\n"
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env"}.nix("--userns=keep-id")
		if got := alice.mustRun(t, c, "/bin/sh", "-c", "exec 2>&1; nix-store -qR $0; nix-store -q --hash $1 || exit 0",
			env, foreign); got != want {
			t.Errorf("%s: Nix says\n%s, want\n%s", runtime, got, want)
		}
		got := strings.Fields(alice.mustRun(t, c, env+"/bin/ls", "-A", storeDir))
		slices.Sort(got)
		if slices.Sort(names); !slices.Equal(got, names) {
			t.Errorf("%s: the store has %q", runtime, got)
		}
		alice.nothingLeft(t)
	}
}

// Nix's database need not be one that the user can read.
func TestRootlessDatabase(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	const db = "/nix/var/nix/db"
	t.Cleanup(func() {
		if err := os.Chmod(db, 0o755); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		mode     os.FileMode
		readable bool
	}{{0o755, true}, {0o700, false}} {
		if err := os.Chmod(db, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, _, err := alice.call("/usr/bin/head", "-c", "1", db+"/db.sqlite"); (err == nil) != c.readable {
			t.Fatalf("reading the database: %v", err)
		}
		for _, runtime := range runtimes {
			for _, annotation := range []string{"nix-closure/roots=" + store["env"],
				"nix-closure/closure-info=" + store["closureInfo"]} {
				// Nothing is remembered.
				removeAll(t, alice.own+"/closures")
				removeAll(t, alice.own+"/registrations")
				alice.checkStarts(t, container{runtime: runtime}.plus("--annotation", annotation), "env")
			}
			if c.readable {
				continue // as TestRootlessRegistration has it
			}
			nix := container{runtime: runtime, root: "env"}.nix("--userns=keep-id")
			if got := alice.mustRun(t, nix, "/usr/bin/nix-store", "-qR", store["env"]); got != must(t, "nix-store",
				"-qR", store["env"]) {
				t.Errorf("%s, %v: Nix says\n%s", runtime, c.mode, got)
			}
		}
	}
	alice.nothingLeft(t)
}

// Hooks are found by the user's containers.conf, and the README's canary sees
// where they are not.
func TestRootlessHooksDir(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	hooks := testhost.Dir() + "/local/hooks.d"
	canary := []string{"--annotation", "nix-closure/roots=/nix/store/canary", "-v", store["foreign"] + ":/f"}
	t.Cleanup(func() { alice.setHooksDir(t, hooks) })
	for _, dir := range []string{hooks, "/nowhere"} {
		alice.setHooksDir(t, dir)
		for _, runtime := range runtimes {
			_, stderr, err := alice.run(container{runtime: runtime, flags: canary}, "/f/bin/busybox", "true")
			if found := dir == hooks; found == (err == nil) {
				t.Errorf("%s, hooks in %s: %v %s", runtime, dir, err, stderr)
			}
		}
	}
}

// Neither the image's environment nor the user's says where the hook keeps what.
func TestRootlessEnvironment(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	elsewhere := alice.home + "/elsewhere"
	must(t, "install", "--directory", "--owner", alice.name, "--mode", "0700", elsewhere, alice.home+"/empty/tmp")
	must(t, "tar", "--create", "--file", alice.home+"/empty.tar", "--directory", alice.home+"/empty", "tmp")
	must(t, "chmod", "0644", alice.home+"/empty.tar")
	const odd = "localhost/odd:latest"
	args := []string{"import", "--quiet"}
	for _, v := range []string{"XDG_RUNTIME_DIR", "HOME", "TMPDIR", "NIX_STATE_DIR", "NIX_STORE_DIR"} {
		args = append(args, "--change", "ENV "+v+"="+elsewhere)
	}
	alice.must(t, "podman", append(args, alice.home+"/empty.tar", odd)...)
	other := *alice
	other.env = append(slices.Clone(alice.env), "XDG_RUNTIME_DIR="+elsewhere, "TMPDIR="+elsewhere,
		"NIX_STATE_DIR="+elsewhere)
	for _, runtime := range runtimes {
		for _, u := range []*ordinary{alice, &other} {
			before := len(alice.log(t))
			id := u.start(t, container{runtime: runtime, root: "env", image: odd})
			if got := u.must(t, "podman", "exec", id, store["env"]+"/bin/printenv",
				"XDG_RUNTIME_DIR"); got != elsewhere+"\n" {
				t.Errorf("%s: in the container, XDG_RUNTIME_DIR is %q", runtime, got)
			}
			for _, path := range []string{alice.own + "/containers/" + id + ".json",
				alice.own + "/gcroots/" + id + "/" + filepath.Base(store["env"])} {
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("%s: %v", runtime, err)
				}
			}
			u.remove(t, id)
			alice.nothingLeft(t)
			if after := len(alice.log(t)); after != before+2 {
				t.Errorf("%s: %d new lines in the log", runtime, after-before)
			}
		}
	}
	if out := must(t, "find", elsewhere, "-name", "nix-closure*"); out != "" {
		t.Errorf("made elsewhere: %s", out)
	}
}

// privateTmp covers /tmp for the length of a test, but for the machine's own
// directory and the programs: the names in it are those of the real host's users.
func privateTmp(t *testing.T) {
	t.Helper()
	var shown []*os.File
	for _, path := range []string{testhost.Dir(), *bin} {
		if !strings.HasPrefix(path, "/tmp/") {
			continue
		}
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		shown = append(shown, dir)
	}
	if err := syscall.Mount("tmpfs", "/tmp", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount("/tmp", syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range shown {
		if err := os.MkdirAll(dir.Name(), 0o711); err != nil {
			t.Fatal(err)
		}
		source := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
		if err := syscall.Mount(source, dir.Name(), "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// Without a directory below /run/user, the runtime directory is in /tmp, where
// another user may have made something of its name first.
func TestRootlessWithoutLogin(t *testing.T) {
	nixDaemon(t)
	mallory := user(t, "mallory")
	privateTmp(t)
	carol := userWithoutLogin(t, "carol")
	carol.load(t)
	want := closureOf(t, store["env"])

	// The first container makes it, and writes its log.
	for _, runtime := range runtimes {
		removeAll(t, carol.own)
		id := carol.start(t, container{runtime: runtime, root: "env"})
		if got := carol.names(t, id, "env"); !slices.Equal(got, want) {
			t.Errorf("%s: the store has %q", runtime, got)
		}
		if got := rootsBelow(t, carol.own); len(got) != 1 {
			t.Errorf("%s: GC roots: %q", runtime, got)
		}
		if log := carol.log(t); len(log) != 1 || log[0].Msg != "attached" {
			t.Errorf("%s: the log of the first container: %+v", runtime, log)
		}
		if st, err := os.Lstat(carol.own); err != nil || st.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v %v", runtime, st, err)
		}
		if out, _, err := mallory.call("/bin/ls", carol.own); err == nil || out != "" {
			t.Errorf("%s: another user sees %q", runtime, out)
		}
		carol.remove(t, id)
		carol.nothingLeft(t)
	}

	diary, private, open := carol.home+"/diary", carol.home+"/private", mallory.home+"/open"
	must(t, "install", "--owner", carol.name, "--mode", "0600", "/dev/null", diary)
	must(t, "install", "--directory", "--owner", carol.name, "--mode", "0700", private)
	must(t, "install", "--directory", "--owner", mallory.name, "--mode", "0777", open)
	isLink := carol.own + " is a symbolic link; set runtime-dir in the configuration to its target, or remove it"
	for _, c := range []struct {
		name, script, want string
	}{
		{"a directory", "mkdir -m 0777 $0; ln -s " + diary + " $0/nix-closure.log",
			carol.own + " belongs to user 65534, not to user 0 who runs the hook; remove it"},
		{"a link to a directory of the user", "ln -s " + private + " $0", isLink},
		{"a link to somebody else's", "ln -s " + open + " $0", isLink},
		{"a link to nowhere", "ln -s " + carol.home + "/nowhere $0", isLink},
	} {
		t.Run(c.name, func(t *testing.T) {
			removeAll(t, carol.own)
			mallory.must(t, "/bin/sh", "-euc", "umask 0; "+c.script, carol.own)
			for _, runtime := range runtimes {
				// With a mount that is taken off, and logged.
				bad := container{runtime: runtime, root: "env", flags: []string{"-v", "/nix/store:/nix/store"}}
				stdout, stderr, err := carol.run(bad, store["env"]+"/bin/echo", "it runs")
				if err == nil || stdout != "" {
					t.Errorf("%s: it started: %q %v", runtime, stdout, err)
				}
				if runtime == "runc" && !strings.Contains(stderr, "opening the runtime directory: "+c.want) {
					t.Errorf("podman says\n%s, want in it\n%s", stderr, c.want)
				}
			}
			if text, err := os.ReadFile(diary); err != nil || len(text) > 0 {
				t.Errorf("in the user's file is %q, %v", text, err)
			}
			for _, dir := range []string{private, open, carol.home + "/nowhere"} {
				if found, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) || len(found) > 0 {
					t.Errorf("%s has %v, %v", dir, found, err)
				}
			}
			if found, err := filepath.Glob(carol.own + "/*"); err != nil ||
				slices.ContainsFunc(found, func(p string) bool { return filepath.Base(p) != "nix-closure.log" }) {
				t.Errorf("in the directory: %q %v", found, err)
			}
		})
	}
}
