// SPDX-License-Identifier: Apache-2.0

// Package e2e drives the real programs: podman, runc and crun with the hook,
// and a store that real Nix built. Nothing here is a mock. It runs as root, in a
// machine of its own.
package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

var bin = flag.String("bin", "", "absolute path of the directory with the programs and hooks.d")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "setting up: %v\n", err)
			return 1
		}
		return m.Run()
	}))
}

// store has the store paths of ../stores/real by attribute.
var store map[string]string

const (
	storeDir   = testhost.StoreDir
	runtimeDir = testhost.RuntimeDir
	gcRoots    = testhost.GCRoots
	logFile    = testhost.LogFile
	configFile = testhost.ConfigFile
)

// What tests of every engine have.
var (
	nothingLeft = testhost.NothingLeft
	leftovers   = testhost.Leftovers
	closureOf   = testhost.ClosureOf
	writeConfig = testhost.WriteConfig
)

// The images. None has a libc, a shell or a python.
const (
	bareImage    = "localhost/bare:latest"     // has no /nix
	ownImage     = "localhost/own:latest"      // has a /nix/store of its own
	hostileImage = "localhost/symlinks:latest" // /nix is a symbolic link to /etc
)

// storeRoots has a GC root for each attribute of the store.
func storeRoots() string { return filepath.Join(testhost.Dir(), "store", "roots") }

func setUp() error {
	if !filepath.IsAbs(*bin) {
		return fmt.Errorf("-bin %q is not an absolute path", *bin)
	}
	var err error
	if store, err = testhost.BuildStore(); err != nil {
		return err
	}
	for image, files := range map[string][]tar.Header{
		bareImage: nil,
		ownImage: {
			{Name: "nix/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "nix/store/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "nix/store/of-the-image", Typeflag: tar.TypeReg, Mode: 0o644},
		},
		hostileImage: {{Name: "nix", Typeflag: tar.TypeSymlink, Linkname: "/etc"}},
	} {
		if err := importImage(image, files); err != nil {
			return err
		}
	}
	return nil
}

// importImage makes an image with an empty /etc and /tmp and these files.
func importImage(name string, files []tar.Header) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	base := []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
	}
	for _, h := range append(base, files...) {
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	cmd := exec.Command("podman", "import", "--quiet", "-", name)
	cmd.Stdin = &b
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("podman import: %w\n%s", err, text)
	}
	return nil
}

var (
	runtimes = []string{"runc", "crun"}
	modes    = []string{"overlay", "bind"}
)

// eachRuntimeAndMode runs a test for every runtime in every mode.
func eachRuntimeAndMode(t *testing.T, f func(t *testing.T, runtime, mode string)) {
	for _, r := range runtimes {
		for _, m := range modes {
			t.Run(r+"/"+m, func(t *testing.T) { f(t, r, m) })
		}
	}
}

// container is a container for podman to run.
type container struct {
	runtime string
	mode    string   // empty: no annotation for it
	root    string   // attribute of the store; empty: no annotation for it
	flags   []string // of podman run
	image   string   // empty: bareImage
	hooks   string   // empty: hooks.d beside the programs
}

func (c container) args(command ...string) []string {
	hooks := c.hooks
	if hooks == "" {
		hooks = filepath.Join(*bin, "hooks.d")
	}
	args := []string{"--hooks-dir", hooks, "--runtime", c.runtime, "run"}
	if c.root != "" {
		args = append(args, "--annotation", "nix-closure/roots="+store[c.root])
	}
	if c.mode != "" {
		args = append(args, "--annotation", "nix-closure/mode="+c.mode)
	}
	image := c.image
	if image == "" {
		image = bareImage
	}
	return slices.Concat(args, c.flags, []string{image}, command)
}

// run runs a command in a container to its end.
func (c container) run(command ...string) (stdout, stderr string, err error) {
	c.flags = append([]string{"--rm"}, c.flags...)
	return call("podman", c.args(command...)...)
}

// mustRun is run, and what the command printed.
func (c container) mustRun(t *testing.T, command ...string) string {
	t.Helper()
	stdout, stderr, err := c.run(command...)
	if err != nil {
		t.Fatalf("podman %q: %v\n%s%s\n%s", c.args(command...), err, stdout, stderr, lastLog(t))
	}
	return stdout
}

// python runs a script with the python3 of the closure.
func (c container) python(t *testing.T, script string, args ...string) string {
	t.Helper()
	return c.mustRun(t, append([]string{store["env"] + "/bin/python3", "-B", "-c", script}, args...)...)
}

// start starts a container that runs until the test ends, and returns its id.
func (c container) start(t *testing.T) string {
	t.Helper()
	c.flags = append([]string{"--detach"}, c.flags...)
	sleep := store[c.root] + "/bin/sleep"
	stdout, stderr, err := call("podman", c.args(sleep, "600")...)
	if err != nil {
		t.Fatalf("podman run: %v\n%s\n%s", err, stderr, lastLog(t))
	}
	id := strings.TrimSpace(stdout)
	t.Cleanup(func() { remove(t, id) })
	return id
}

func remove(t *testing.T, id string) {
	t.Helper()
	if _, stderr, err := call("podman", "rm", "--force", "--ignore", "--time", "0", id); err != nil {
		t.Errorf("podman rm: %v\n%s", err, stderr)
	}
}

// execute runs a command in a container that was started.
func execute(t *testing.T, id string, command ...string) string {
	t.Helper()
	stdout, stderr, err := call("podman", append([]string{"exec", id}, command...)...)
	if err != nil {
		t.Fatalf("podman exec %q: %v\n%s", command, err, stderr)
	}
	return stdout
}

func removeAll(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Error(err)
	}
}

func call(program string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must is call, and what the program printed.
func must(t *testing.T, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := call(program, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, stderr)
	}
	return stdout
}

// logLine is a line of the log.
type logLine struct {
	Level, Msg, Stage, Container, Mode, Why, Error string
	NixStore                                       string   `json:"nix-store"` // what it writes of its progress
	Records                                        []string // swept
}

func readLog(t *testing.T) []logLine {
	t.Helper()
	return readLogIn(t, logFile)
}

func readLogIn(t *testing.T, path string) []logLine {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var lines []logLine
	for line := range bytes.Lines(text) {
		var l logLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("the log has a line that is no JSON: %q", line)
		}
		lines = append(lines, l)
	}
	return lines
}

func lastLog(t *testing.T) string {
	t.Helper()
	lines := readLog(t)
	return fmt.Sprintf("log: %+v", lines[max(0, len(lines)-3):])
}

// lastError is the newest error in the log.
func lastError(t *testing.T) string {
	t.Helper()
	for _, l := range slices.Backward(readLog(t)) {
		if l.Level == "error" {
			return l.Msg
		}
	}
	return ""
}
