// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"strings"
	"testing"
)

func TestAddImport(t *testing.T) {
	const line = "imports = [\"/d/*.toml\"]\n"
	for _, c := range []struct{ in, want string }{
		{"", line},
		{"version = 3\n", "version = 3\n" + line},
		{"version = 3", "version = 3\n" + line},
		{"# a\nversion = 2 # b\n\n[grpc]\n", "# a\nversion = 2 # b\n" + line + "\n[grpc]\n"},
		{"[grpc]\n  address = 'x'\n", line + "[grpc]\n  address = 'x'\n"},
		{"imports = []\n", "imports = [\"/d/*.toml\"]\n"},
		{"imports = ['/a']\n", "imports = [\"/d/*.toml\", '/a']\n"},
		{"imports = [\n  '/a',\n]\nroot = '/r'\n", "imports = [\"/d/*.toml\", \n  '/a',\n]\nroot = '/r'\n"},
		{"imports = [ # none\n]\n", "imports = [\"/d/*.toml\",  # none\n]\n"},
		{"[x]\nimports = ['/a']\n", line + "[x]\nimports = ['/a']\n"},
		{"root = '''\nimports = [\n'''\n", "error"},
		{"root = ", "error"},
	} {
		got, err := addImport([]byte(c.in), "/d/*.toml")
		if err != nil {
			got = []byte("error")
		}
		if string(got) != c.want {
			t.Errorf("%q:\n%q (%v)\nwant\n%q", c.in, got, err, c.want)
		}
	}
}

// What is read as TOML afterwards has the import, and is as before otherwise; addImport
// looks itself, and leaves alone what it does not understand.
func FuzzAddImport(f *testing.F) {
	for _, s := range []string{"", "version = 3", "imports = []", "imports = ['/a']\n[x]\n", "a = [\n[1]]\n",
		"\"imports\" = []"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := addImport([]byte(text), "/d/*.toml")
		if err == nil && !strings.Contains(string(got), `"/d/*.toml"`) {
			t.Errorf("%q: %q", text, got)
		}
	})
}
