// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"os"
	"path/filepath"
	"testing"
)

// install's hook files are those that people copy.
func TestHookFilesAreTheExamples(t *testing.T) {
	for engine, dir := range map[string]string{"podman": "podman", "cri-o": "cri-o/hooks.d"} {
		for path, text := range hookFiles("/hooks", "/usr/local/bin/nix-closure-hook", engine) {
			example, err := os.ReadFile(filepath.Join("../../examples", dir, filepath.Base(path)))
			if err != nil || string(example) != string(text) {
				t.Errorf("%s, %s: %v\n%s\nthe example\n%s", engine, path, err, text, example)
			}
		}
	}
}

// What cannot be read is an error, or says which annotations it is called for.
func FuzzHookFile(f *testing.F) {
	for _, text := range hookFiles("/hooks", "/p", "podman") {
		f.Add(text)
	}
	f.Add([]byte(`{"version": "1.0.0", "when": {"always": true}, "stages": ["poststop"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "a.json")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := readHookFile(path)
		if err != nil {
			return
		}
		_, _, _, _ = h.Ours(), h.Stage(), h.Engine(), h.Matches("nix-closure/roots", "/nix/store/x")
	})
}
