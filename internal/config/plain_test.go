// SPDX-License-Identifier: Apache-2.0

package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Texts that parsePlain understands, and texts that it leaves to the TOML decoder.
var plainTexts = map[string]bool{
	"": true, "\n\n": true, "# a comment\n": true, "  # a = 1": true,
	"runtime = \"crun\"\n": true, "runtime=\"/usr/bin/crun\"": true, "  runtime   =   \"crun\"  \n": true,
	"runtime = \"\"\n": true, "mode = \"overlay\"\nfuse = true\nsubstitute = false\n": true,
	"mode = \"over\"\n": true, "runtime-dir = \"relative\"\n": true, "runtime = \"# none\"": true,

	"runtime = 7\n": false, "runtimes = \"crun\"\n": false, "runtime = \"crun\" # why\n": false,
	"runtime = 'crun'\n": false, "runtime = \"cr\\u0075n\"\n": false, "runtime = \"\"\"crun\"\"\"\n": false,
	"runtime = \"crun\"\nruntime = \"runc\"\n": false, "fuse = \"true\"\n": false, "fuse = True\n": false,
	"\"runtime\" = \"crun\"\n": false, "runtime\n": false, "= \"crun\"\n": false, "runtime = \"crun\n": false,
	"runtime = \"\n": false, "max-paths = 10\n": false, "runtime = \"crün\"\n": false, "\t\n": false,
	"# \x01\n": false, "runtime = \"crun\"\r\n": false, "\ufeff": false,
	"[[allow]]\nroots = [\"/nix/store/*\"]\n": false,
	"RUNTIME = \"crun\"\n":                    false, "a.runtime = \"crun\"\n": false,
}

func TestParsePlain(t *testing.T) {
	for text, want := range plainTexts {
		if _, ok := parsePlain(text); ok != want {
			t.Errorf("%q: %t, want %t", text, ok, want)
		}
		comparePlain(t, text)
	}
}

// comparePlain fails if parsePlain understands a text in another way than the TOML decoder.
func comparePlain(t *testing.T, text string) {
	t.Helper()
	plain, ok := parsePlain(text)
	if !ok {
		return
	}
	checked := plain.check()
	whole, err := parseTOML([]byte(text))
	if (err == nil) != (checked == nil) || err != nil && err.Error() != checked.Error() {
		t.Errorf("%q: %v; by the TOML decoder %v", text, checked, err)
	}
	if diff := cmp.Diff(whole, plain); err == nil && diff != "" {
		t.Errorf("%q: by the TOML decoder (-) and without it (+):\n%s", text, diff)
	}
}

func FuzzParsePlain(f *testing.F) {
	for text := range plainTexts {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { comparePlain(t, text) })
}
