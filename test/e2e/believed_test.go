// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// What engines say, and what may come of it if somebody else does.
const (
	criType, criID          = testhost.CRIType, testhost.CRIID
	criName, criNamespace   = testhost.CRIName, testhost.CRINamespace
	crioType, crioID        = testhost.CRIOType, testhost.CRIOID
	crioName, crioNamespace = testhost.CRIOName, testhost.CRIONamespace

	itsOwn, foreign, refused = testhost.ItsOwn, testhost.Foreign, testhost.Refused
)

type (
	annotations = map[string]string // what an image or a user says of a container
	claim       = testhost.Claim
)

func claims() []claim { return testhost.Claims(store["foreign"]) }

// seen is what a container could do, or why it did not start.
type seen struct {
	stdout, stderr string
	err            error
	said           string // the newest error that was logged meanwhile
}

// probe is a script for busybox. It prints each path of the host's store that exists
// in the container, also where the store cannot be listed.
func probe(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	var paths strings.Builder
	for _, e := range entries {
		if e.Name() == ".links" {
			continue // is no store path
		}
		fmt.Fprintf(&paths, " %s/%s", storeDir, e.Name())
	}
	return "echo started; for p in" + paths.String() + "; do if [ -e $p ] || [ -L $p ]; then echo $p; fi; done; " +
		"if [ -d /nix/store ] && [ \"$(/bin/busybox stat -c %a /nix/store)\" != 111 ]; then echo listed; fi; " +
		"if /bin/busybox touch /nix/store/added 2>/tmp/error; then echo written; fi; " +
		"if [ -e /nix/var/nix/db/db.sqlite ]; then echo registered; fi"
}

// lines are what the probe printed: store paths without their directory, sorted, and words.
func (s seen) lines() (names, words []string) {
	for line := range strings.Lines(s.stdout) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, storeDir+"/"); ok {
			names = append(names, name)
		} else if line != "started" {
			words = append(words, line)
		}
	}
	slices.Sort(names)
	return names, words
}

// isRefused fails if a container started, or if the reason names none of these.
func (s seen) isRefused(t *testing.T, reasons ...string) {
	t.Helper()
	if s.err == nil || s.stdout != "" {
		names, words := s.lines()
		t.Errorf("it started, and sees %q %q", names, words)
		return
	}
	if !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(s.said, r) }) {
		t.Errorf("it is refused, but the reason has none of %q:\n%s\n%s", reasons, s.said, s.stderr)
	}
}

// has fails unless a container started, and sees exactly the closure of an attribute of the store.
func (s seen) has(t *testing.T, attribute string) {
	t.Helper()
	names, _ := s.lines()
	if want := closureOf(t, store[attribute]); s.err != nil || !slices.Equal(names, want) {
		t.Errorf("%v: it sees %q\nwant %q\n%s\n%s", s.err, names, want, s.said, s.stderr)
	}
}

// check fails if a container got more or less than it may.
func check(t *testing.T, c claim, engine string, s seen) {
	t.Helper()
	if want := c.Outcome(engine); want != refused {
		s.has(t, want)
		return
	}
	s.isRefused(t, c.Reasons()...)
}

// plainImage has a busybox, and no annotation.
const plainImage = "localhost/plain:latest"

// annotatedImages has what was built, by name.
var annotatedImages = map[string]bool{}

// annotatedImage builds an image whose manifest has annotations.
func annotatedImage(t *testing.T, says annotations) string {
	t.Helper()
	name, from := plainImage, "FROM scratch\nCOPY busybox /bin/busybox\nCOPY empty /tmp/\n"
	args := []string{"build", "--quiet", "--isolation=chroot", "--format", "oci"}
	if len(says) > 0 {
		name = fmt.Sprintf("localhost/says-%.8x:latest", sha256.Sum256(fmt.Append(nil, says)))
		from = "FROM " + annotatedImage(t, nil) + "\n"
	}
	if annotatedImages[name] {
		return name
	}
	for _, key := range slices.Sorted(maps.Keys(says)) {
		args = append(args, "--annotation", key+"="+says[key])
	}
	dir := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	err = errors.Join(err, os.WriteFile(dir+"/busybox", busybox, 0o755), os.Mkdir(dir+"/empty", 0o755),
		os.WriteFile(dir+"/Containerfile", []byte(from), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	must(t, "podman", append(args, "--tag", name, dir)...)
	annotatedImages[name] = true
	return name
}

// flags are podman's for annotations of the user's.
func flags(says annotations) []string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(says)) {
		all = append(all, "--annotation", key+"="+says[key])
	}
	return all
}

// Before version 4.5.1, podman puts an image's annotations on the container, and the
// user's win. Where it does not, the tests of what an image says show nothing.
func TestPodmanCopiesAnnotations(t *testing.T) {
	image := annotatedImage(t, annotations{criType: "sandbox", criName: "web"})
	id := strings.TrimSpace(must(t, "podman", "create", "--annotation", criName+"=db", image, "/bin/busybox"))
	defer remove(t, id)
	var got []struct {
		Config struct{ Annotations annotations }
	}
	if err := json.Unmarshal([]byte(must(t, "podman", "inspect", id)), &got); err != nil {
		t.Fatal(err)
	}
	if a := got[0].Config.Annotations; a[criType] != "sandbox" || a[criName] != "db" {
		t.Fatalf("this podman does not: test with one that does; the container has %v", a)
	}
}

// way is how a container of podman's comes to the hook.
type way struct {
	name      string
	engine    string    // that the hook is told; empty: none
	container container // runtime and hooks
	asks      []string  // flags by which the user asks for env
	config    string    // config.toml
	user      *ordinary // nil: root
}

// emptyHooks is a directory of no hook files, which everybody can read.
func emptyHooks(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "no-hooks-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	return dir
}

// ways are all that podman has. The device is one of writeDevices.
func ways(t *testing.T) []way {
	alice := user(t, "alice")
	none := emptyHooks(t)
	byAnnotation, byDevice := flags(roots(store["env"])), []string{"--device", "nix-closure/closure=env"}
	hooks := func(runtime string) container { return container{runtime: runtime} }
	device := func(runtime string) container { return container{runtime: runtime, hooks: none} }
	wrapped := container{runtime: wrapper(), hooks: none}
	precreate := container{runtime: "runc", hooks: hooksWith(t, "precreate")}
	return []way{
		{name: "hook files, runc", engine: "podman", container: hooks("runc"), asks: byAnnotation},
		{name: "hook files, crun", engine: "podman", container: hooks("crun"), asks: byAnnotation},
		{name: "hook files with precreate", engine: "podman", container: precreate, asks: byAnnotation},
		{name: "rootless, runc", engine: "podman", container: hooks("runc"), asks: byAnnotation, user: alice},
		{name: "wrapper, runc", container: wrapped, asks: byAnnotation, config: "runtime = \"runc\"\n"},
		{name: "wrapper, crun", container: wrapped, asks: byAnnotation, config: "runtime = \"crun\"\n"},
		{name: "device, runc", container: device("runc"), asks: byDevice},
		{name: "device, crun", container: device("crun"), asks: byDevice},
		{name: "rootless device, crun", container: device("crun"), asks: byDevice, user: alice},
	}
}

func (w way) log(t *testing.T) []logLine {
	t.Helper()
	if w.user != nil {
		return w.user.log(t)
	}
	return readLog(t)
}

// run runs the probe in a container of an image.
func (w way) run(t *testing.T, image string, more ...string) seen {
	t.Helper()
	c := w.container
	c.image, c.flags = image, slices.Concat(w.asks, more)
	before := len(w.log(t))
	run := c.run
	if w.user != nil {
		w.user.loadImage(t, image)
		run = func(command ...string) (string, string, error) { return w.user.run(c, command...) }
	}
	var s seen
	s.stdout, s.stderr, s.err = run("/bin/busybox", "sh", "-c", probe(t))
	s.said = newestError(w.log(t)[before:])
	if w.user != nil {
		w.user.nothingLeft(t)
	} else {
		nothingLeft(t)
	}
	return s
}

func newestError(lines []logLine) string {
	for _, l := range slices.Backward(lines) {
		if strings.EqualFold(l.Level, "error") {
			return l.Msg
		}
	}
	return ""
}

// loadImage gives the user's podman an image of root's, with its annotations.
func (u *ordinary) loadImage(t *testing.T, image string) {
	t.Helper()
	if _, _, err := u.call("podman", "image", "exists", image); err == nil {
		return
	}
	file := u.home + "/annotated.tar"
	defer removeAll(t, file)
	must(t, "podman", "save", "--quiet", "--format", "oci-archive", "--output", file, image)
	must(t, "chown", u.name, file)
	u.must(t, "podman", "load", "--quiet", "--input", file)
}

// writeDevices writes devices that the hook is called for with these annotations, for the
// length of a test: the file that `nix-closure cdi generate` writes. Every user can run its hook.
func writeDevices(t *testing.T, devices map[string]annotations) {
	t.Helper()
	user(t, "alice") // has installed the programs
	removeDevices(t)
	var args []string
	for name, says := range devices {
		args = append(args, name+"="+cmp.Or(says["nix-closure/roots"], says["nix-closure/closure-info"]))
	}
	must(t, testhost.Dir()+"/local/bin/nix-closure", append([]string{"cdi", "generate"}, args...)...)
	text := string(read(t, cdiFile))
	for _, says := range devices {
		if info := says["nix-closure/closure-info"]; info != "" {
			text = strings.ReplaceAll(text, "nix-closure/roots="+info, "nix-closure/closure-info="+info)
		}
	}
	write(t, cdiFile, []byte(text))
}

// plantDevices writes devices with annotations that `nix-closure cdi generate` would not
// write, for the length of a test.
func plantDevices(t *testing.T, devices map[string]annotations) {
	t.Helper()
	user(t, "alice") // has installed the programs
	removeDevices(t)
	var all []object
	for name, says := range devices {
		var hooks []object
		for _, stage := range []string{"createRuntime", "poststop"} {
			args := append(append([]string{"nix-closure-hook"}, flags(says)...), stage)
			hooks = append(hooks, object{"hookName": stage, "path": hookProgram(), "args": args,
				"env": []string{"GOMAXPROCS=1"}})
		}
		all = append(all, object{"name": name, "containerEdits": object{"hooks": hooks}})
	}
	text, err := json.Marshal(object{"cdiVersion": "0.5.0", "kind": "nix-closure/closure", "devices": all})
	if err := errors.Join(err, os.MkdirAll(filepath.Dir(cdiFile), 0o755)); err != nil {
		t.Fatal(err)
	}
	write(t, cdiFile, text)
}

var wholeStore = []string{"-v", storeDir + ":" + storeDir + ":ro"}

// What only an engine may say does not get a container more than its user asked for,
// whether its image says it, its user, or both. podman makes one list of these, so that the
// image alone is enough where another way has all three.
func TestBelieved(t *testing.T) {
	nixDaemon(t)
	writeDevices(t, map[string]annotations{"env": roots(store["env"])})
	for _, w := range ways(t) {
		t.Run(w.name, func(t *testing.T) {
			plain := annotatedImage(t, nil)
			writeConfig(t, w.config)
			w.run(t, plain, wholeStore...).has(t, itsOwn) // or the others show nothing
			for _, c := range claims() {
				writeConfig(t, w.config+c.Config)
				if strings.Contains(w.name, "device") && c.Config != "" {
					c.Want = map[string]string{"*": itsOwn} // the rules are not for devices
				}
				image, says := annotatedImage(t, c.Says), flags(c.Says)
				t.Run(c.Name+"/image", func(t *testing.T) { check(t, c, w.engine, w.run(t, image, wholeStore...)) })
				if w.user != nil || !strings.HasSuffix(w.name, "runc") {
					continue
				}
				for who, image := range map[string]string{"user": plain, "both": image} {
					t.Run(c.Name+"/"+who, func(t *testing.T) {
						check(t, c, w.engine, w.run(t, image, slices.Concat(wholeStore, says)...))
					})
				}
			}
		})
	}
}
