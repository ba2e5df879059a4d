// SPDX-License-Identifier: Apache-2.0

package testhost

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Where things are if the configuration does not say.
const (
	StoreDir   = "/nix/store"
	RuntimeDir = "/run/nix-closure"
	GCRoots    = "/nix/var/nix/gcroots/nix-closure"
	LogFile    = "/var/log/nix-closure.log"
	ConfigFile = "/etc/nix-closure/config.toml"
)

// BuildStore builds the store of ../stores/real, and returns its store paths by
// attribute. It is called in a directory beside that.
func BuildStore() (paths map[string]string, _ error) {
	out := filepath.Join(Dir(), "store")
	if text, err := exec.Command("../stores/real/build.sh", out).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the store: %w\n%s", err, text)
	}
	text, err := os.ReadFile(filepath.Join(out, "store.json"))
	if err != nil {
		return nil, err
	}
	return paths, json.Unmarshal(text, &paths)
}

// ClosureOf is what Nix says, as base names, sorted.
func ClosureOf(t *testing.T, path string) []string {
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

// WriteConfig makes a config.toml for the length of a test.
func WriteConfig(t *testing.T, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(ConfigFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ConfigFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(ConfigFile); err != nil {
			t.Error(err)
		}
	})
}

// NothingLeft fails if a container left a record, a GC root or a mount. Engines
// clean up after it ended, from other processes, so it gets a moment.
func NothingLeft(t *testing.T) {
	t.Helper()
	var left []string
	for range 100 {
		if left = Leftovers(t); len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind: %q", left)
}

// Leftovers are records, GC roots and mounts of containers.
func Leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{RuntimeDir + "/containers", GCRoots} {
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
			(strings.Contains(point, StoreDir) && !strings.HasPrefix(point, StoreDir)) {
			left = append(left, line)
		}
	}
	return left
}
