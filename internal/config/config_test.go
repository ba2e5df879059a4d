// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	// Every default, spelled out a second time.
	defaults := Config{
		StoreDir: "/nix/store", StateDir: "/nix/var/nix", RuntimeDir: "/run/nix-closure", LogFile: "/var/log/nix-closure.log",
		Mode: "auto", NixStore: "", Substitute: false, MaxPaths: 50000, Runtime: "runc",
	}
	but := func(change func(c *Config)) Config {
		c := defaults
		change(&c)
		return c
	}
	for _, c := range []struct {
		in   string
		want Config
	}{
		{"", defaults},
		{"# nothing\n\n", defaults},
		{`store-dir = "/gnu/store"`, but(func(c *Config) { c.StoreDir = "/gnu/store" })},
		{`store-dir = "/with space/and'quote"`, but(func(c *Config) { c.StoreDir = "/with space/and'quote" })},
		{`state-dir = "/var/nix, with: odd"`, but(func(c *Config) { c.StateDir = "/var/nix, with: odd" })},
		{`runtime-dir = "/run/x"`, but(func(c *Config) { c.RuntimeDir = "/run/x" })},
		{`log-file = "/dev/null"`, but(func(c *Config) { c.LogFile = "/dev/null" })},
		{`mode = "auto"`, defaults},
		{`mode = "overlay"`, but(func(c *Config) { c.Mode = "overlay" })},
		{`mode = 'bind'`, but(func(c *Config) { c.Mode = "bind" })},
		{`nix-store = "/opt/bin/nix-store"`, but(func(c *Config) { c.NixStore = "/opt/bin/nix-store" })},
		{`nix-store = ""`, defaults},
		{`substitute = false`, defaults},
		{`max-paths = 1`, but(func(c *Config) { c.MaxPaths = 1 })},
		{`max-paths = 1_000_000`, but(func(c *Config) { c.MaxPaths = 1000000 })},
		{`runtime = "crun"`, but(func(c *Config) { c.Runtime = "crun" })},
		{`allow = []`, but(func(c *Config) { c.Allow = []any{} })},
		{"mode = \"bind\"\r\nmax-paths = 7\r\n", but(func(c *Config) { c.Mode, c.MaxPaths = "bind", 7 })},
	} {
		got, err := Parse([]byte(c.in))
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", c.in, err, diff)
		}
	}
	if got := Default(); !cmp.Equal(got, defaults) {
		t.Errorf("Default: %+v", got)
	}
	if err := Default().check(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	s := Config{StoreDir: "/a", StateDir: "/b"}.Store()
	if s.Dir != "/a" || s.StateDir != "/b" {
		t.Errorf("store %+v", s)
	}
}

func TestParseRefuses(t *testing.T) {
	const (
		notPath   = ": not an absolute path without `.`, `..` or a slash too many"
		notOption = ": has a colon, comma, backslash, quote or line break, which a mount option cannot carry"
	)
	for _, c := range []struct{ in, want string }{
		{`store-dir = ""`, `store-dir = ""` + notPath},
		{`store-dir = "nix/store"`, `store-dir = "nix/store"` + notPath},
		{`store-dir = "/"`, `store-dir = "/"` + notPath},
		{`store-dir = "/nix/store/"`, `store-dir = "/nix/store/"` + notPath},
		{`store-dir = "//nix/store"`, `store-dir = "//nix/store"` + notPath},
		{`store-dir = "/nix//store"`, `store-dir = "/nix//store"` + notPath},
		{`store-dir = "/nix/./store"`, `store-dir = "/nix/./store"` + notPath},
		{`store-dir = "/nix/../store"`, `store-dir = "/nix/../store"` + notPath},
		{`store-dir = "~/store"`, `store-dir = "~/store"` + notPath},
		{`store-dir = "/a:b"`, `store-dir = "/a:b"` + notOption},
		{`store-dir = "/a,b"`, `store-dir = "/a,b"` + notOption},
		{`store-dir = '/a\b'`, `store-dir = "/a\\b"` + notOption},
		{`store-dir = '/a"b'`, `store-dir = "/a\"b"` + notOption},
		{`store-dir = "/a\nb"`, `store-dir = "/a\nb"` + notOption},
		{`state-dir = ""`, `state-dir = ""` + notPath},
		{`state-dir = "var/nix"`, `state-dir = "var/nix"` + notPath},
		{`state-dir = "/nix/var/nix/"`, `state-dir = "/nix/var/nix/"` + notPath},
		{`runtime-dir = ""`, `runtime-dir = ""` + notPath},
		{`runtime-dir = "./run"`, `runtime-dir = "./run"` + notPath},
		{`runtime-dir = "/"`, `runtime-dir = "/"` + notPath},
		{`runtime-dir = "/run/a:b"`, `runtime-dir = "/run/a:b"` + notOption},
		{`runtime-dir = "/run/a,b"`, `runtime-dir = "/run/a,b"` + notOption},
		{`log-file = ""`, `log-file = ""` + notPath},
		{`log-file = "log"`, `log-file = "log"` + notPath},
		{`log-file = "/var/log/../x"`, `log-file = "/var/log/../x"` + notPath},
		{`nix-store = "nix-store"`, `nix-store = "nix-store": not an absolute path`},
		{`nix-store = "../bin/nix-store"`, `nix-store = "../bin/nix-store": not an absolute path`},
		{`mode = ""`, `mode = "": not one of auto, overlay, bind`},
		{`mode = "Overlay"`, `mode = "Overlay": not one of auto, overlay, bind`},
		{`mode = "copy"`, `mode = "copy": not one of auto, overlay, bind`},
		{`max-paths = 0`, `max-paths = 0: not a number from 1 to 10000000`},
		{`max-paths = -1`, `max-paths = -1: not a number from 1 to 10000000`},
		{`substitute = true`, "substitute = true: fetching is not something that this version does; realise roots before the container starts"},
		{"[[allow]]\nroots = [\"/nix/store/*\"]", "[[allow]]: this version does not enforce a policy, and starts nothing rather than everything"},
		{`allow = [{}]`, "[[allow]]: this version does not enforce a policy, and starts nothing rather than everything"},

		{"# a\n\nmdoe = \"bind\"", `line 3: unknown key "mdoe"`},
		{"[mode]\nx = 1", "line 1: "},
		{"[section]\nx = 1", `line 1: unknown key "section"`},
		{"a.b = 1", `line 1: unknown key "a`},
		{`"" = 1`, `line 1: unknown key ""`},
		{`store_dir = "/nix/store"`, `line 1: unknown key "store_dir"`},

		{"\nmode = 7", "line 2: "},
		{"mode = [\"bind\"]", "line 1: "},
		{"substitute = \"false\"", "line 1: "},
		{"max-paths = \"7\"", "line 1: "},
		{"max-paths = 7.5", "line 1: "},
		{"max-paths = 9223372036854775808", "line 1: "},
		{"allow = 7", "line 1: "},
		{"mode = \"bind\"\nmode = \"bind\"", "line 2: "},
		{"mode = bind", "line 1: "},
		{"mode", "line 1: "},
		{"mode = \"bind", "line 1: "},
		{"\x00", "line 1: "},
		{"mode = \"\xff\"", "line 1: "},
		{`{"mode":"bind"}`, "line 1: "},
	} {
		_, err := Parse([]byte(c.in))
		whole := !strings.HasPrefix(c.want, "line ")
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || whole && err.Error() != c.want {
			t.Errorf("%s:\n%v\nwant\n%s", c.in, err, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.toml")
	// A file that somebody named must be there; a default that somebody did not
	// name need not.
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("a named file that is missing: %v", err)
	}
	if _, err := os.Stat(Path); errors.Is(err, fs.ErrNotExist) {
		if c, err := Read(Path); err != nil || !cmp.Equal(c, Default()) {
			t.Errorf("without a file: %+v, %v", c, err)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`mode = "bind"`)
	if c, err := Read(path); err != nil || c.Mode != "bind" || c.StoreDir != "/nix/store" {
		t.Errorf("%+v, %v", c, err)
	}
	write("\nmode = \"x\"")
	if _, err := Read(path); err == nil || err.Error() != path+`: mode = "x": not one of auto, overlay, bind` {
		t.Errorf("error %v", err)
	}
	write("\nx = 1")
	if _, err := Read(path); err == nil || err.Error() != path+`: line 2: unknown key "x"` {
		t.Errorf("error %v", err)
	}
	if _, err := Read(dir); err == nil {
		t.Error("a directory was read")
	}
	if _, err := Read(""); err == nil {
		t.Error("no name was read")
	}
}

// Whatever is accepted can be used: paths are absolute and clean, and those in a
// mount's options have nothing that ends an option.
func FuzzTOML(f *testing.F) {
	for _, s := range []string{
		"", "mode = \"bind\"", "max-paths = 7\n[[allow]]\nnamespaces = [\"a\"]\nroots = [\"/nix/store/*\"]", "store-dir = \"/a:b\"", "x = 1", "[a.b]\nc=1",
		"store-dir = '''/a\nb'''", "state-dir = \"/\\u0000\"", "runtime-dir = \"/run/x/../y\"", "max-paths = 0x7fffffff", "nix-store = \"/x\"", "mode = \"a", "mode.x = 1",
		"max-paths = 1e3", "allow = []", "substitute = true", "log-file = \"/dev/null\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		for _, p := range []string{c.StoreDir, c.StateDir, c.RuntimeDir, c.LogFile} {
			if p == "/" || p == "" || p[0] != '/' || strings.Contains(p, "//") || strings.HasSuffix(p, "/") || strings.Contains(p+"/", "/./") || strings.Contains(p+"/", "/../") {
				t.Errorf("%q: path %q", text, p)
			}
		}
		if strings.ContainsAny(c.StoreDir+c.RuntimeDir, ":,\\\"\n") {
			t.Errorf("%q: %q and %q in mount options", text, c.StoreDir, c.RuntimeDir)
		}
		if c.NixStore != "" && c.NixStore[0] != '/' {
			t.Errorf("%q: nix-store %q", text, c.NixStore)
		}
		if c.Mode != "auto" && c.Mode != "overlay" && c.Mode != "bind" || c.MaxPaths < 1 || c.Substitute || len(c.Allow) > 0 {
			t.Errorf("%q: %+v", text, c)
		}
	})
}
