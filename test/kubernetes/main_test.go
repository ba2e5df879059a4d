// SPDX-License-Identifier: Apache-2.0

// Package kubernetes drives containerd as Kubernetes does: by its Go client and
// by the CRI, with nix-closure-runtime as the runtime and with nix-closure-nri as
// a plugin. containerd, its shim, runc and crun are real, and so is the store. It
// runs as root, in a machine of its own.
package kubernetes

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/machine"
)

var bin = flag.String("bin", "", "absolute path of the directory with the programs, and in stack/ containerd and others")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(machine.Run(func() int {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "setting up: %v\n", err)
			return 1
		}
		return m.Run()
	}))
}

// store has the store paths of ../store by attribute.
var store map[string]string

const (
	storeDir   = "/nix/store"
	runtimeDir = "/run/nix-closure"
	gcRoots    = "/nix/var/nix/gcroots/nix-closure"
	logFile    = "/var/log/nix-closure.log"
	configFile = "/etc/nix-closure/config.toml"
)

func setUp() error {
	if !filepath.IsAbs(*bin) {
		return fmt.Errorf("-bin %q is not an absolute path", *bin)
	}
	out := filepath.Join(machine.Dir(), "store")
	if text, err := exec.Command("../store/build.sh", out).CombinedOutput(); err != nil {
		return fmt.Errorf("building the store: %w\n%s", err, text)
	}
	text, err := os.ReadFile(filepath.Join(out, "store.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &store)
}

// closureOf is what Nix says, as base names, sorted.
func closureOf(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.Command("nix-store", "--query", "--requisites", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for p := range strings.FieldsSeq(string(out)) {
		names = append(names, filepath.Base(p))
	}
	slices.Sort(names)
	return names
}

// names sorts what ls prints.
func names(ls string) []string {
	all := strings.Fields(ls)
	slices.Sort(all)
	return all
}

// nothingLeft fails if a container left a record, a GC root or a mount. Engines
// clean up after it ended, so it gets a moment.
func nothingLeft(t *testing.T) {
	t.Helper()
	var left []string
	for range 100 {
		if left = leftovers(t); len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind: %q", left)
}

func leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{runtimeDir + "/containers", gcRoots} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mountinfo)) {
		point := strings.Fields(line)[4]
		if strings.Contains(line, "nix-closure/views") || strings.Contains(line, " - tmpfs nix-closure ") ||
			(strings.Contains(point, storeDir) && !strings.HasPrefix(point, storeDir)) {
			left = append(left, line)
		}
	}
	return left
}

// writeConfig makes a config.toml for the length of a test.
func writeConfig(t *testing.T, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(configFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(configFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(configFile); err != nil {
			t.Error(err)
		}
	})
}
