// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/internal/policy"
)

func TestParse(t *testing.T) {
	// Every default, spelled out a second time.
	defaults := Config{
		StoreDir: "/nix/store", StateDir: "/nix/var/nix", RuntimeDir: "/run/nix-closure",
		LogFile: "/var/log/nix-closure.log",
		Mode:    "auto", NixStore: "", Substitute: false, SubstituteTimeout: Duration(100 * time.Second),
		MaxPaths: 50000, Runtime: "runc",
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
		{`substitute = true`, but(func(c *Config) { c.Substitute = true })},
		{`substitute-timeout = "2m30s"`, but(func(c *Config) { c.SubstituteTimeout = Duration(150 * time.Second) })},
		{`writable-size = ""`, defaults},
		{`runtime-inodes = ""`, defaults},
		{`max-paths = ""`, defaults},
		{`substitute-timeout = ""`, defaults},
		{`writable-size = 65536`, but(func(c *Config) { c.WritableSize = 65536 })},
		{`writable-size = "1024T"`, but(func(c *Config) { c.WritableSize = 1 << 50 })},
		{`runtime-inodes = 200000`, but(func(c *Config) { c.RuntimeInodes = 200000 })},
		{`runtime-size = ""`, defaults},
		{`runtime-size = "64M"`, but(func(c *Config) { c.RuntimeSize = 64 << 20 })},
		{`writable-size = "65536"`, but(func(c *Config) { c.WritableSize = 65536 })},
		{`writable-size = "512M"`, but(func(c *Config) { c.WritableSize = 512 << 20 })},
		{`writable-size = "2T"`, but(func(c *Config) { c.WritableSize = 2 << 40 })},
		{`max-paths = 1`, but(func(c *Config) { c.MaxPaths = 1 })},
		{`max-paths = 1_000_000`, but(func(c *Config) { c.MaxPaths = 1000000 })},
		{`runtime = "crun"`, but(func(c *Config) { c.Runtime = "crun" })},
		{"[[allow]]\nroots = [\"/nix/store/*\"]",
			but(func(c *Config) { c.Allow = []policy.Rule{{Roots: []string{"/nix/store/*"}}} })},
		{
			"[[allow]]\nnamespaces = [\"team-a\", \"team-b\"]\nroots = ['/nix/store/*-hello-[0-9]*', " +
				"'/nix/var/nix/gcroots/teams/*/\\*']\n[[allow]]\nroots = [\"/etc/nix-closure/roots/?\"]",
			but(func(c *Config) {
				c.Allow = []policy.Rule{
					{Namespaces: []string{"team-a", "team-b"},
						Roots: []string{"/nix/store/*-hello-[0-9]*", `/nix/var/nix/gcroots/teams/*/\*`}},
					{Roots: []string{"/etc/nix-closure/roots/?"}},
				}
			}),
		},
		{"[allow]\nroots = [\"/x\"]", but(func(c *Config) { c.Allow = []policy.Rule{{Roots: []string{"/x"}}} })},
		// one is one
		{`allow = [{roots = ["/x"]}]`, but(func(c *Config) { c.Allow = []policy.Rule{{Roots: []string{"/x"}}} })},
		// The store directory is no glob, and may be named after the rules that are below it.
		{"store-dir = '/a[b'\nallow = [{roots = ['/a[b/*-c']}]",
			but(func(c *Config) { c.StoreDir, c.Allow = "/a[b", []policy.Rule{{Roots: []string{"/a[b/*-c"}}} })},
		{"allow = [{roots = ['/a[b/*-c']}]\nstore-dir = '/a[b'",
			but(func(c *Config) { c.StoreDir, c.Allow = "/a[b", []policy.Rule{{Roots: []string{"/a[b/*-c"}}} })},
		{"allow = [{roots = ['/nix/store/a/b']}]\nstore-dir = '/gnu/store'", but(func(c *Config) {
			c.StoreDir, c.Allow = "/gnu/store", []policy.Rule{{Roots: []string{"/nix/store/a/b"}}}
		})},
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
		rule      = "[[allow]] number 1: "
		noRoots   = "roots: names none; say which store paths, or links to them, may be asked for"
		notShell  = ": `[!` is not what it is in a shell; write `[^` for every other character, `[\\!` for an " +
			"exclamation mark"
		notGlob = ": not a well-formed glob; a `[` is not closed, or a `\\` is the last; `\\` before a character " +
			"makes it an ordinary one"
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
		{`Rootless = true`, `line 1: unknown key "Rootless"`},
		{`allow = []`, "allow = []: would allow everything, not nothing; leave it out if that is meant"},
		{`allow = [{}]`, rule + noRoots},
		{"[[allow]]\nnamespaces = [\"a\"]", rule + noRoots},
		{"[[allow]]\nroots = []", rule + noRoots},
		{"[[allow]]\nroots = [\"/x\"]\n[[allow]]\nroots = [\"/y\"]\n[[allow]]", "[[allow]] number 3: " + noRoots},
		{"[[allow]]\nnamespaces = []\nroots = [\"/x\"]",
			rule + "namespaces = []: names none; leave it out for every container"},
		{"[[allow]]\nnamespaces = [\"a\", \"\"]\nroots = [\"/x\"]",
			rule + `namespaces: "": not the name of a namespace; leave namespaces out for every container`},
		{`allow = [{roots = [""]}]`, rule + `roots: ""` + notPath},
		{`allow = [{roots = ["/"]}]`, rule + `roots: "/"` + notPath},
		{`allow = [{roots = ["*"]}]`, rule + `roots: "*"` + notPath},
		{`allow = [{roots = ["/x"]}, {roots = ["/x", "srv/*"]}]`, `[[allow]] number 2: roots: "srv/*"` + notPath},
		{`allow = [{roots = ["/srv/*/"]}]`, rule + `roots: "/srv/*/"` + notPath},
		{`allow = [{roots = ["//srv/*"]}]`, rule + `roots: "//srv/*"` + notPath},
		{`allow = [{roots = ["/srv//*"]}]`, rule + `roots: "/srv//*"` + notPath},
		{`allow = [{roots = ["/srv/./*"]}]`, rule + `roots: "/srv/./*"` + notPath},
		{`allow = [{roots = ["/srv/*/.."]}]`, rule + `roots: "/srv/*/.."` + notPath},
		{`allow = [{roots = ["/nix/store/../store/*"]}]`, rule + `roots: "/nix/store/../store/*"` + notPath},
		{`allow = [{roots = ["/srv/["]}]`, rule + `roots: "/srv/["` + notGlob},
		{`allow = [{roots = ["/srv/[a/b"]}]`, rule + `roots: "/srv/[a/b"` + notGlob},
		{`allow = [{roots = ["/srv/[a/b]c"]}]`, rule + `roots: "/srv/[a/b]c"` + notGlob},
		{`allow = [{roots = ["/srv/[]a]"]}]`, rule + `roots: "/srv/[]a]"` + notGlob},
		{`allow = [{roots = ['/srv/a\']}]`, rule + `roots: "/srv/a\\"` + notGlob},
		{`allow = [{roots = ["/nix/store/*-[a"]}]`, rule + `roots: "/nix/store/*-[a"` + notGlob},
		{`allow = [{roots = ["/nix/store/*-[!s]*"]}]`, rule + `roots: "/nix/store/*-[!s]*"` + notShell},
		{`allow = [{roots = ["/srv/[!s]/*"]}]`, rule + `roots: "/srv/[!s]/*"` + notShell},
		{`allow = [{roots = ["/nix/store"]}]`,
			rule + `roots: "/nix/store": can never match, for a store path lies below it; every store path is ` +
				`"/nix/store/*"`},
		{`allow = [{roots = ["/nix/store/*-hello/bin/*"]}]`,
			rule + `roots: "/nix/store/*-hello/bin/*": can never match, for a store path is directly below ` +
				`/nix/store; name the store path itself: "/nix/store/*-hello"`},
		{"store-dir = '/gnu/store'\nallow = [{roots = ['/gnu/store/*/*']}]",
			rule + `roots: "/gnu/store/*/*": can never match, for a store path is directly below /gnu/store; name ` +
				`the store path itself: "/gnu/store/*"`},
		{"[[allow]]\nroots = [\"/x\"]\nnamespace = [\"a\"]", `line 3: unknown key "allow.namespace"`},
		{"[[allow]]\nroots = [\"/x\"]\n\n[[allow]]\nroot = [\"/x\"]", `line 5: unknown key "allow.root"`},
		{"[[allow]]\nroots = [\"/x\"]\n[allow.more]\na = 1", `line 3: unknown key "allow.more"`},
		{"[[Allow]]\nrots = [\"/x\"]", "line 2: unknown key"},
		{"[[allow]]\nroots = [\"/x\"]\n[allow]\nnamespaces = [\"a\"]", "line 3: "},
		{"allow = {roots = [\"/x\"]}", "line 1: "},
		{"[[allow]]\nroots = \"/x\"", "line 2: "},
		{"[[allow]]\nroots = [7]", "line 2: "},
		{"[[allow]]\nnamespaces = \"a\"\nroots = [\"/x\"]", "line 2: "},
		{"allow = [\"/nix/store/*\"]", "line 1: "},

		{"# a\n\nmdoe = \"bind\"", `line 3: unknown key "mdoe"`},
		{"[mode]\nx = 1", "line 1: "},
		{"[section]\nx = 1", `line 1: unknown key "section"`},
		{"a.b = 1", `line 1: unknown key "a`},
		{`"" = 1`, `line 1: unknown key ""`},
		{`store_dir = "/nix/store"`, `line 1: unknown key "store_dir"`},

		{"\nmode = 7", "line 2: "},
		{"mode = [\"bind\"]", "line 1: "},
		{"substitute = \"false\"", "line 1: "},
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

// Every size, time and number: what is none, nothing, less than nothing, too much or
// of a unit that is none is refused by the name of its key, and by what stands there.
func TestParseRefusesNumbers(t *testing.T) {
	const (
		noSize    = `no size like "512M" or "2G"`
		sizeLimit = "not from 4096 (bytes) to 1024T"
		noTime    = `no length of time like "100s" or "2m"`
		timeLimit = "not from 1s to 24h"
		paths     = "not a number from 1 to 10000000"
		inodes    = "not a number from 1 to 1099511627776"
	)
	cases := map[string][]struct{ value, want string }{
		"substitute-timeout": {
			{`"0"`, timeLimit}, {`"0s"`, timeLimit}, {`"-5s"`, timeLimit}, {`"999ms"`, timeLimit}, {`"25h"`, timeLimit},
			{`"9999999h"`, noTime}, {`"100"`, noTime}, {`"5 s"`, noTime}, {`"5d"`, noTime}, {`"soon"`, noTime},
			{`" "`, noTime},
			{"0", noTime}, {"100", noTime}, {"1.5", noTime}, {"true", noTime}, {"[]", noTime},
		},
		"max-paths": {
			{"0", paths}, {"-1", paths}, {"10000001", paths}, {"9223372036854775807", paths},
			{`"0"`, paths}, {`"7"`, paths}, {"7.5", paths}, {"1e3", paths}, {`"7K"`, paths}, {"false", paths},
		},
		"runtime-inodes": {
			{"0", inodes}, {"-1", inodes}, {"1099511627777", inodes}, {"9223372036854775807", inodes},
			{`"0"`, inodes}, {`"200000"`, inodes}, {`"200K"`, inodes}, {"2.5", inodes}, {"{}", inodes},
		},
	}
	for _, key := range []string{"writable-size", "runtime-size"} {
		cases[key] = []struct{ value, want string }{
			{`"0"`, sizeLimit}, {"0", sizeLimit}, {`"0M"`, sizeLimit}, {`"-0"`, sizeLimit}, {`"-1"`, sizeLimit},
			{"-4096", sizeLimit},
			{`"-1G"`, sizeLimit}, {`"1"`, sizeLimit}, {"4095", sizeLimit}, {`"1K"`, sizeLimit}, {`"3K"`, sizeLimit},
			{`"1025T"`, sizeLimit}, {`"9999999999G"`, sizeLimit}, {`"8388608T"`, sizeLimit},
			{`"18446744073709551616"`, sizeLimit},
			{`"much"`, noSize}, {`"1KM"`, noSize}, {`"M"`, noSize}, {`"512m"`, noSize}, {`"512MB"`, noSize},
			{`"512MiB"`, noSize},
			{`"1P"`, noSize}, {`"1.5G"`, noSize}, {`"512 M"`, noSize}, {`" 512M"`, noSize}, {`"25%"`, noSize},
			{`"0x1000"`, noSize},
			{"1.5", noSize}, {"true", noSize}, {"1979-05-27", noSize}, {"[4096]", noSize},
		}
	}
	for key, all := range cases {
		for _, c := range all {
			text := key + " = " + c.value
			_, err := Parse([]byte(text))
			value := c.value
			for is, reads := range map[string]string{"1e3": "1000", "{}": "map[]"} {
				if value == is {
					value = reads
				}
			}
			want := key + " = " + value + ": " + c.want + "; leave it out for the default"
			if err == nil || err.Error() != want {
				t.Errorf("%s:\n%v\nwant\n%s", text, err, want)
			}
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
		"", "mode = \"bind\"", "max-paths = 7\n[[allow]]\nnamespaces = [\"a\"]\nroots = [\"/nix/store/*\"]",
		"store-dir = \"/a:b\"", "x = 1", "[a.b]\nc=1",
		"store-dir = '''/a\nb'''", "state-dir = \"/\\u0000\"", "runtime-dir = \"/run/x/../y\"",
		"max-paths = 0x7fffffff", "nix-store = \"/x\"", "mode = \"a", "mode.x = 1",
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
			if p == "/" || p == "" || p[0] != '/' || strings.Contains(p, "//") || strings.HasSuffix(p, "/") ||
				strings.Contains(p+"/", "/./") || strings.Contains(p+"/", "/../") {
				t.Errorf("%q: path %q", text, p)
			}
		}
		if strings.ContainsAny(c.StoreDir+c.RuntimeDir, ":,\\\"\n") {
			t.Errorf("%q: %q and %q in mount options", text, c.StoreDir, c.RuntimeDir)
		}
		if c.NixStore != "" && c.NixStore[0] != '/' {
			t.Errorf("%q: nix-store %q", text, c.NixStore)
		}
		if c.Mode != "auto" && c.Mode != "overlay" && c.Mode != "bind" || c.MaxPaths < 1 {
			t.Errorf("%q: %+v", text, c)
		}
	})
}
