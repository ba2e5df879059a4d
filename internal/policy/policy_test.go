// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/mntns"
)

var nixStore = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

func named(name string) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + name)
}

// rootsDir makes a directory in which, and above which, root alone can write:
// t.TempDir is in a directory of everybody.
func rootsDir(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("must be root: links are believed in root's directories only")
	}
	dir, err := os.MkdirTemp("/run", "nix-closure-policy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	for _, d := range []string{"/", "/run", dir} {
		info, err := os.Lstat(d)
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); !info.IsDir() || st.Uid != 0 || st.Mode&0o022 != 0 {
			t.Fatalf("%s is not a directory of root alone (owner %d, %v): the test cannot tell anything here", d,
				st.Uid, info.Mode())
		}
	}
	return dir
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// thing is something to make below a test's directory, with what is missing above
// it. Of DIR in a target, the directory's name is put in its place.
type thing struct {
	path   string
	target string      // of a link
	mode   fs.FileMode // of a directory; 0: of a link or, without a target, a file
	uid    int
}

func (f thing) make(t testing.TB, dir string) {
	t.Helper()
	name := dir + "/" + f.path
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	switch {
	case f.target != "":
		must(t, os.Symlink(strings.ReplaceAll(f.target, "DIR", dir), name))
	case f.mode != 0:
		must(t, os.MkdirAll(name, 0o755))
		must(t, os.Chmod(name, f.mode))
	default:
		must(t, os.WriteFile(name, []byte("DIR/nix/store/"+named("hello")), 0o644))
	}
	must(t, os.Lchown(name, f.uid, f.uid))
}

func TestCheck(t *testing.T) {
	hello, secret := named("hello"), named("secret")
	const inStore = "DIR/nix/store/"
	toHello, toSecret := inStore+string(hello), inStore+string(secret)
	rule := func(roots ...string) Rule { return Rule{nil, roots} }
	of := func(namespaces string, roots ...string) Rule { return Rule{strings.Fields(namespaces), roots} }
	chain := func(n int) []thing {
		things := []thing{{path: "links/1", target: toHello}}
		for i := 2; i <= n; i++ {
			things = append(things, thing{path: fmt.Sprintf("links/%d", i), target: fmt.Sprint(i - 1)})
		}
		return things
	}
	const sticky = fs.ModeSticky
	links := rule("DIR/links/*")

	for _, c := range []struct {
		name      string
		things    []thing
		rules     []Rule
		namespace string
		ask       []closure.BaseName // nil: hello
		refused   closure.BaseName
		because   string // after what is always said
	}{
		// Who.
		{name: "no rule"},
		{name: "no rule, in a namespace", namespace: "team-a", ask: []closure.BaseName{hello, secret}},
		{name: "a rule for every container", rules: []Rule{rule(inStore + "*")}},
		{name: "a rule for every container, in a namespace", rules: []Rule{rule(inStore + "*")}, namespace: "team-a"},
		{name: "a rule for the namespace", rules: []Rule{of("team-a team-b", inStore+"*")}, namespace: "team-b"},
		{name: "a rule for another namespace", rules: []Rule{of("team-a", inStore+"*")}, namespace: "team-b",
			refused: hello},
		{name: "a rule for a namespace, outside of Kubernetes", rules: []Rule{of("team-a", inStore+"*")},
			refused: hello},
		{name: "a namespace that begins like another", rules: []Rule{of("team-a", inStore+"*")}, namespace: "team-ab",
			refused: hello},
		{name: "a namespace in capitals", rules: []Rule{of("team-a", inStore+"*")}, namespace: "Team-A",
			refused: hello},
		{name: "a namespace is no glob", rules: []Rule{of("team-* *", inStore+"*")}, namespace: "team-a",
			refused: hello},
		{name: "a namespace of an odd name", rules: []Rule{of("team-a", inStore+"*")}, namespace: "a\"\nb",
			refused: hello},
		{name: "a rule that hand-made configuration gives the empty namespace",
			rules: []Rule{{[]string{""}, []string{inStore + "*"}}}, refused: hello},
		{name: "the second rule", rules: []Rule{of("team-a", inStore+"*-x"), of("team-b", inStore+"*-hello")},
			namespace: "team-b"},
		{name: "a rule for all beside one for the namespace",
			rules: []Rule{of("team-a", inStore+"*-x"), rule(inStore + "*-hello")}, namespace: "team-a"},
		{name: "two rules together", rules: []Rule{of("team-a", inStore+"*-secret"), rule(inStore + "*-hello")},
			namespace: "team-a", ask: []closure.BaseName{hello, secret}},
		{name: "two rules, and one is another's",
			rules: []Rule{of("team-a", inStore+"*-secret"), rule(inStore + "*-hello")}, namespace: "team-b",
			ask: []closure.BaseName{hello, secret}, refused: secret},
		{name: "links for another namespace", things: []thing{{path: "links/a", target: toHello}},
			rules: []Rule{of("team-a", "DIR/links/*")}, namespace: "team-b", refused: hello},
		{name: "links for the namespace", things: []thing{{path: "links/a", target: toHello}},
			rules: []Rule{of("team-a", "DIR/links/*")}, namespace: "team-a"},

		// Names.
		{name: "the store path itself", rules: []Rule{rule(toHello)}},
		{name: "another store path", rules: []Rule{rule(toSecret)}, refused: hello},
		{name: "the end of a name", rules: []Rule{rule(inStore + "*-hello")}},
		{name: "not the whole name", rules: []Rule{rule(inStore + "*-hell")}, refused: hello},
		{name: "not the beginning", rules: []Rule{rule(inStore + "hello")}, refused: hello},
		{name: "several roots", rules: []Rule{rule(inStore+"*-secret", inStore+"*-hello")},
			ask: []closure.BaseName{hello, secret}},
		{name: "several roots, the second is not allowed", rules: []Rule{rule(inStore + "*-hello")},
			ask: []closure.BaseName{hello, secret}, refused: secret},
		{name: "several roots, the first is not allowed", rules: []Rule{rule(inStore + "*-hello")},
			ask: []closure.BaseName{secret, hello}, refused: secret},
		{name: "several roots, none is allowed", rules: []Rule{rule(inStore + "*-x")},
			ask: []closure.BaseName{secret, hello}, refused: secret},
		{name: "a root twice", rules: []Rule{rule(inStore + "*-hello")}, ask: []closure.BaseName{hello, hello}},
		{name: "any character", rules: []Rule{rule(inStore + "*-hell?")}},
		{name: "any character is one", rules: []Rule{rule(inStore + "*-hello?")}, refused: hello},
		{name: "a class", rules: []Rule{rule(inStore + "[0-9]*-[f-h]ello")}},
		{name: "another class", rules: []Rule{rule(inStore + "*-[i-z]ello")}, refused: hello},
		{name: "not a class", rules: []Rule{rule(inStore + "*-[^a-g]ello")}},
		{name: "a star that is none", rules: []Rule{rule(inStore + `\*-hello`)}, refused: hello},
		{name: "a dot is a dot", rules: []Rule{rule(inStore + "*-h.llo")}, refused: hello},
		{name: "alternatives are not of these globs", rules: []Rule{rule(inStore + "*-{hello,x}")}, refused: hello},
		{name: "the store of another host", rules: []Rule{rule("/nix/store/*")}, refused: hello},
		{name: "a name that is there as a link",
			things: []thing{{path: "nix/store/" + string(hello), target: toSecret}}, rules: []Rule{rule(toHello)},
			ask: []closure.BaseName{secret}, refused: secret},

		// Links.
		{name: "a link", things: []thing{{path: "links/a", target: toHello}}, rules: []Rule{links}},
		{name: "a link, by its name", things: []thing{{path: "links/a", target: toHello}},
			rules: []Rule{rule("DIR/links/a")}},
		{name: "a link to another store path", things: []thing{{path: "links/a", target: toSecret}},
			rules: []Rule{links}, refused: hello},
		{name: "a link among others", things: []thing{{path: "links/a", target: toSecret}, {path: "links/b"},
			{path: "links/c", mode: 0o755}, {path: "links/d", target: "x"}, {path: "links/e", target: toHello}},
			rules: []Rule{links}},
		{name: "two links", things: []thing{{path: "links/a", target: toSecret}, {path: "links/b", target: toHello}},
			rules: []Rule{links}, ask: []closure.BaseName{hello, secret}},
		{name: "a link and a name", things: []thing{{path: "links/a", target: toSecret}},
			rules: []Rule{rule(inStore + "*-hello"), links}, ask: []closure.BaseName{hello, secret}},
		{name: "a link for one of two", things: []thing{{path: "links/a", target: toHello}}, rules: []Rule{links},
			ask: []closure.BaseName{hello, secret}, refused: secret},
		{name: "a link that anybody owns", things: []thing{{path: "links/a", target: toHello, uid: 1000}},
			rules: []Rule{links}},
		{name: "a link to a store path that is there",
			things: []thing{{path: "links/a", target: toHello}, {path: "nix/store/" + string(hello), mode: 0o555}},
			rules:  []Rule{links}},
		{name: "a link to a link", things: []thing{{path: "links/a", target: "DIR/other/b"},
			{path: "other/b", target: toHello}}, rules: []Rule{links}},
		{name: "a link through a profile",
			things: []thing{{path: "links/a", target: "DIR/profiles/web"},
				{path: "profiles/web", target: "web-42-link"}, {path: "profiles/web-42-link", target: toHello}},
			rules: []Rule{links}},
		{name: "relative links", things: []thing{{path: "links/a", target: "../other/./x/../b"},
			{path: "other/x", mode: 0o755}, {path: "other/b", target: "../nix/store/" + string(hello)}},
			rules: []Rule{links}},
		{name: "a relative link into the store",
			things: []thing{{path: "links/a", target: "../nix/../nix/store/" + string(hello)},
				{path: "nix", mode: 0o755}}, rules: []Rule{links}},
		{name: "a relative link into a store below", things: []thing{{path: "a", target: "nix/store/" + string(hello)}},
			rules: []Rule{rule("DIR/a")}},
		{name: "a relative link above the root directory",
			things: []thing{{path: "links/a", target: strings.Repeat("../", 30) + toHello[len("DIR/"):]}},
			rules:  []Rule{links}, refused: hello},
		{name: "a relative link that goes up too far, and down again",
			things: []thing{{path: "links/a", target: strings.Repeat("../", 30) + "DIR/nix/store/" + string(hello)}},
			rules:  []Rule{links}},
		{name: "a link of two slashes", things: []thing{{path: "links/a", target: "//DIR/nix/store/" + string(hello)}},
			rules: []Rule{links}},
		{name: "as many links as can be", things: chain(40), rules: []Rule{rule("DIR/links/40")}},
		{name: "a link too many", things: chain(41), rules: []Rule{rule("DIR/links/41")}, refused: hello},
		{name: "a loop", things: []thing{{path: "links/a", target: "a"}, {path: "links/b", target: "c"},
			{path: "links/c", target: "b"}, {path: "links/d", target: "d/d/d"}}, rules: []Rule{links}, refused: hello},
		{name: "a loop beside a good link",
			things: []thing{{path: "links/a", target: "a"}, {path: "links/b", target: toHello}}, rules: []Rule{links}},
		{name: "a link to nowhere", things: []thing{{path: "links/a", target: "DIR/nowhere/a"},
			{path: "links/b", target: "nowhere"}}, rules: []Rule{links}, refused: hello},
		{name: "a link through a file", things: []thing{{path: "links/a", target: "b/c"}, {path: "links/b"}},
			rules: []Rule{links}, refused: hello},
		{name: "a link to another place",
			things: []thing{{path: "links/a", target: "DIR/other"}, {path: "other/" + string(hello), target: toHello}},
			rules:  []Rule{links}, refused: hello},
		{name: "a link to the root directory",
			things: []thing{{path: "links/a", target: "/"}, {path: "links/b", target: "../../../../.."}},
			rules:  []Rule{links}, refused: hello},
		{name: "a file whose text is a store path", things: []thing{{path: "links/a"}}, rules: []Rule{links},
			refused: hello},
		{name: "a file or directory named like a store path",
			things: []thing{{path: "links/" + string(hello)}, {path: "links/x/" + string(hello), mode: 0o755}},
			rules:  []Rule{links, rule("DIR/links/*/*")}, refused: hello},
		{name: "links to something below a store path",
			things: []thing{{path: "links/a", target: toHello + "/bin/hello"}, {path: "links/b", target: toHello + "/"},
				{path: "links/c", target: toHello + "/."}, {path: "links/d", target: toHello + "/../" + string(hello)}},
			rules: []Rule{links}, refused: hello},
		{name: "links to what is no store path",
			things: []thing{{path: "links/a", target: inStore}, {path: "links/b", target: "DIR/nix/store"},
				{path: "links/c", target: inStore + "hello"},
				{path: "links/d", target: inStore + string(hello) + ".lock~"},
				{path: "links/e", target: "DIR/nix/store2/" + string(hello)},
				{path: "links/f", target: "DIR/nix/store/../store/" + string(hello)}}, rules: []Rule{links},
			refused: hello},
		{name: "a link to another store", things: []thing{{path: "links/a", target: "/gnu/store/" + string(hello)}},
			rules: []Rule{links}, refused: hello},
		{name: "a link to a store path that is a link",
			things: []thing{{path: "links/a", target: toHello}, {path: "nix/store/" + string(hello), target: toSecret}},
			rules:  []Rule{links}, ask: []closure.BaseName{hello, secret}, refused: secret},

		// Globs for links.
		{name: "no such directory", rules: []Rule{rule("DIR/nowhere/*", "DIR/nowhere/a", "DIR/nowhere/*/*")},
			refused: hello},
		{name: "no link", things: []thing{{path: "links", mode: 0o755}}, rules: []Rule{links}, refused: hello},
		{name: "a file in the way", things: []thing{{path: "links"}},
			rules: []Rule{rule("DIR/links/*", "DIR/links/a", "DIR/link?/*")}, refused: hello},
		{name: "a star is one component", things: []thing{{path: "links/a/b", target: toHello}},
			rules: []Rule{links, rule("DIR/*", "DIR/links/**")}, refused: hello},
		{name: "a star in the middle", things: []thing{{path: "teams/a/web", target: toHello},
			{path: "teams/b/web", target: toSecret}}, rules: []Rule{rule("DIR/teams/*/web")},
			ask: []closure.BaseName{hello, secret}},
		{name: "a class in the middle", things: []thing{{path: "teams/a/web", target: toHello},
			{path: "teams/b/web", target: toSecret}}, rules: []Rule{rule("DIR/team[s]/[a]/w?b")},
			ask: []closure.BaseName{hello, secret}, refused: secret},
		{name: "a file beside the directories in the middle",
			things: []thing{{path: "teams/a"}, {path: "teams/b/web", target: toHello}},
			rules:  []Rule{rule("DIR/teams/*/web")}},
		{name: "hidden links are links", things: []thing{{path: "links/.a", target: toHello}}, rules: []Rule{links}},
		{name: "hidden directories are directories", things: []thing{{path: "teams/.b/web", target: toHello}},
			rules: []Rule{rule("DIR/teams/*/web")}},
		{name: "a glob has no dot and two dots",
			things: []thing{{path: "links/a/b", mode: 0o755}, {path: "links/c", target: toHello}},
			rules:  []Rule{rule(`DIR/links/a/[.]/[.][.]/\.\./c`, `DIR/links/a/.?/c`)}, refused: hello},
		{name: "odd names", things: []thing{{path: "links/a*b [c]\n\\", target: toHello}},
			rules: []Rule{rule(`DIR/links/a\*b \[c]*\\`)}},
		{name: "a star that is none, for links", things: []thing{{path: "links/ab", target: toHello}},
			rules: []Rule{rule(`DIR/links/\*`)}, refused: hello},
		{name: "a directory that is a link",
			things: []thing{{path: "alias", target: "real"}, {path: "real/a", target: toHello}},
			rules:  []Rule{rule("DIR/alias/*")}},
		{name: "a directory that a link leads to by a link",
			things: []thing{{path: "alias", target: "DIR/other/x"}, {path: "other", target: "there"},
				{path: "there/x", target: "../real"}, {path: "real/a", target: "b"}, {path: "real/b", target: toHello}},
			rules: []Rule{rule("DIR/*/a")}},
		{name: "up from a directory that is a link",
			things: []thing{{path: "alias", target: "far/away/real"}, {path: "far/away/real/a", target: "../b"},
				{path: "far/away/b", target: toHello}, {path: "b", target: toSecret}},
			rules: []Rule{rule("DIR/alias/a")}, ask: []closure.BaseName{hello, secret}, refused: secret},
		{name: "a target through a directory that is a link",
			things: []thing{{path: "links/a", target: "DIR/alias/b"}, {path: "alias", target: "real"},
				{path: "real/b", target: toHello}}, rules: []Rule{links}},
		{name: "a directory that is a loop", things: []thing{{path: "alias", target: "alias"}},
			rules: []Rule{rule("DIR/alias/*", "DIR/alias/a", "DIR/*/a")}, refused: hello},
		{name: "a directory that is a link to nowhere", things: []thing{{path: "alias", target: "nowhere"}},
			rules: []Rule{rule("DIR/alias/*", "DIR/*/a")}, refused: hello},
		{name: "the store by another name",
			things: []thing{{path: "links/a", target: "DIR/alias/store/" + string(hello)},
				{path: "alias", target: "DIR/nix"}, {path: "nix/store", mode: 0o755}}, rules: []Rule{links}},

		// Directories that others can write to.
		{name: "another user's directory",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o755, uid: 1000}},
			rules:  []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: user 1000 can write there (mode 0755)`},
		{name: "another user's directory, which is read-only",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o555, uid: 1000}},
			rules:  []Rule{rule("DIR/links/a")}, refused: hello,
			because: `; links in "DIR/links" are ignored: user 1000 can write there (mode 0555)`},
		{name: "the overflow user's directory",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o755, uid: 65534}},
			rules:  []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: user 65534 can write there (mode 0755)`},
		{name: "a group's directory", things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o775}},
			rules: []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: group 0 can write there (owner 0, mode 0775)`},
		{name: "a group's directory, sticky",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o775 | sticky}},
			rules:  []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: group 0 can write there (owner 0, mode 1775)`},
		{name: "everybody's directory", things: []thing{{path: "links/a", target: toHello},
			{path: "links", mode: 0o777}}, rules: []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: everybody can write there (owner 0, mode 0777)`},
		{name: "everybody's directory, sticky",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o777 | sticky}},
			rules:  []Rule{links}, refused: hello,
			because: `; links in "DIR/links" are ignored: everybody can write there (owner 0, mode 1777)`},
		{name: "everybody may write, and not read",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o702}}, rules: []Rule{links},
			refused: hello, because: `; links in "DIR/links" are ignored: everybody can write there (owner 0, ` +
				`mode 0702)`},
		{name: "root's own directory", things: []thing{{path: "links/a", target: toHello},
			{path: "links", mode: 0o700}}, rules: []Rule{links}},
		{name: "another user's directory in the middle",
			things: []thing{{path: "srv/x/links/a", target: toHello}, {path: "srv/x", mode: 0o755, uid: 1000}},
			rules:  []Rule{rule("DIR/srv/x/links/*")}, refused: hello,
			because: `; links in "DIR/srv/x" are ignored: user 1000 can write there (mode 0755)`},
		{name: "one user's directory of several",
			things: []thing{{path: "teams/a/web", target: toHello}, {path: "teams/a", mode: 0o755, uid: 1000},
				{path: "teams/b/web", target: toSecret}}, rules: []Rule{rule("DIR/teams/*/web")},
			ask: []closure.BaseName{secret, hello}, refused: hello,
			because: `; links in "DIR/teams/a" are ignored: user 1000 can write there (mode 0755)`},
		{name: "allowed by a name in spite of it",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o777}},
			rules:  []Rule{links, rule(toHello)}},
		{name: "allowed by a link elsewhere in spite of it",
			things: []thing{{path: "links/a", target: toHello}, {path: "links", mode: 0o777},
				{path: "more/a", target: toHello}}, rules: []Rule{links, rule("DIR/more/*")}},
		{name: "a link into another user's directory",
			things: []thing{{path: "links/a", target: "DIR/home/result"}, {path: "home/result", target: toHello},
				{path: "home", mode: 0o755, uid: 1000}}, rules: []Rule{links}, refused: hello,
			because: `; links in "DIR/home" are ignored: user 1000 can write there (mode 0755)`},
		{name: "a relative link through another user's directory",
			things: []thing{{path: "links/a", target: "../home/../b"}, {path: "b", target: toHello},
				{path: "home", mode: 0o755, uid: 1000}}, rules: []Rule{links}, refused: hello,
			because: `; links in "DIR/home" are ignored: user 1000 can write there (mode 0755)`},
		{name: "a link through another user's directory link",
			things: []thing{{path: "links/a", target: "DIR/home/there/b"}, {path: "home/there", target: "DIR/real"},
				{path: "home", mode: 0o755, uid: 1000}, {path: "real/b", target: toHello}}, rules: []Rule{links},
			refused: hello, because: `; links in "DIR/home" are ignored: user 1000 can write there (mode 0755)`},
		{name: "a directory link to another user's directory",
			things: []thing{{path: "alias", target: "home"}, {path: "home/a", target: toHello},
				{path: "home", mode: 0o755, uid: 1000}}, rules: []Rule{rule("DIR/alias/*")}, refused: hello,
			because: `; links in "DIR/home" are ignored: user 1000 can write there (mode 0755)`},
		{name: "a directory link through another user's directory",
			things: []thing{{path: "alias", target: "home/x/y"}, {path: "home/x/y/a", target: toHello},
				{path: "home/x", mode: 0o775}}, rules: []Rule{rule("DIR/alias/a")}, refused: hello,
			because: `; links in "DIR/home/x" are ignored: group 0 can write there (owner 0, mode 0775)`},
		{name: "a link to a link in everybody's directory",
			things: []thing{{path: "links/a", target: "/tmp/nix-closure-nowhere"}}, rules: []Rule{links},
			refused: hello, because: `; links in "/tmp" are ignored: everybody can write there (owner 0, mode 1777)`},
		{name: "the store is another's: links to it are not in it",
			things: []thing{{path: "links/a", target: toHello}, {path: "nix/store", mode: 0o777, uid: 1000}},
			rules:  []Rule{links}},
		{name: "a directory that nothing leads through",
			things: []thing{{path: "links/a", target: toSecret}, {path: "links/mine", mode: 0o777, uid: 1000}},
			rules:  []Rule{links}, refused: hello},

		// Directories of root, in which others have links made.
		{name: "links in the store", things: []thing{{path: "nix/store/" + string(named("x")), target: toHello},
			{path: "nix/store", mode: 0o755}}, rules: []Rule{rule("DIR/nix/s*/*", "DIR/nix/stor?/"+string(named("x")))},
			refused: hello, because: `; links in "DIR/nix/store" are ignored: whoever may build can add to it`},
		{name: "links in a store path", things: []thing{{path: "nix/store/" + string(named("x")) + "/a",
			target: toHello}, {path: "farm", target: inStore + string(named("x"))}}, rules: []Rule{rule("DIR/farm/*")},
			refused: hello, because: `; links in "DIR/nix/store" are ignored: whoever may build can add to it`},
		{name: "links in the store by another name",
			things: []thing{{path: "real/store/" + string(named("x")), target: toHello}, {path: "nix", target: "real"},
				{path: "alias", target: "DIR/nix/store"}}, rules: []Rule{rule("DIR/alias/*")}, refused: hello,
			because: `; links in "DIR/real/store" are ignored: whoever may build can add to it`},
		{name: "what another container has",
			things: []thing{{path: "nix/var/nix/gcroots/nix-closure/web/" + string(hello), target: toHello}},
			rules:  []Rule{rule("DIR/nix/var/nix/gcroots/*/*/*")}, refused: hello,
			because: `; links in "DIR/nix/var/nix/gcroots/nix-closure" are ignored: what containers ask for is ` +
				`linked there`},
		{name: "what another container of a rootless engine has",
			things: []thing{{path: "runtime/gcroots/web/" + string(hello), target: toHello}},
			rules:  []Rule{rule("DIR/runtime/gcroots/*/*")}, refused: hello,
			because: `; links in "DIR/runtime" are ignored: what containers ask for is linked there`},
		{name: "what a user told the daemon", things: []thing{{path: "nix/var/nix/gcroots/auto/a", target: toHello}},
			rules: []Rule{rule("DIR/nix/var/nix/gcroots/*/*")}, refused: hello,
			because: `; links in "DIR/nix/var/nix/gcroots/auto" are ignored: every user of the Nix daemon can have ` +
				`links made there`},
		{name: "what root made a GC root",
			things: []thing{{path: "nix/var/nix/gcroots/auto/a", target: toSecret},
				{path: "nix/var/nix/gcroots/teams/a", target: toHello}},
			rules: []Rule{rule("DIR/nix/var/nix/gcroots/*/*")}},
		{name: "what a process says", things: []thing{{path: "links/a", target: "/proc/self/exe"},
			{path: "links/b", target: "/proc/self/cwd/x"}}, rules: []Rule{links}, refused: hello,
			because: `; links in "/proc" are ignored: processes decide what its links say`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := rootsDir(t)
			for _, f := range c.things {
				f.make(t, dir)
			}
			policy := Policy{
				Store:      closure.Store{Dir: dir + "/nix/store", StateDir: dir + "/nix/var/nix"},
				RuntimeDir: dir + "/runtime",
			}
			for _, r := range c.rules {
				r.Roots = slices.Clone(r.Roots)
				for i := range r.Roots {
					r.Roots[i] = strings.ReplaceAll(r.Roots[i], "DIR", dir)
				}
				policy.Rules = append(policy.Rules, r)
				if err := r.Validate(policy.Store.Dir); err != nil && !strings.Contains(c.name, "hand-made") {
					t.Fatal(err)
				}
			}
			ask := c.ask
			if ask == nil {
				ask = []closure.BaseName{hello}
			}
			before := slices.Clone(ask)
			got, want := policy.Check(c.namespace, ask), ""
			if c.refused != "" {
				whose := "a container without a Kubernetes namespace"
				if c.namespace != "" {
					whose = fmt.Sprintf("namespace %q", c.namespace)
				}
				want = fmt.Sprintf("DIR/nix/store/%s is not allowed here: no [[allow]] of the configuration names it "+
					"for %s; add it there, or ask for another%s", c.refused, whose, c.because)
				want = strings.ReplaceAll(want, "DIR", dir)
			}
			if got == nil && want != "" || got != nil && got.Error() != want {
				t.Errorf("%v\nwant\n%s", got, want)
			}
			if got != nil && strings.Contains(got.Error(), "\n") {
				t.Errorf("more than one line: %v", got)
			}
			if !slices.Equal(ask, before) {
				t.Errorf("what was asked for was changed to %q", ask)
			}
		})
	}
}

// What root links and unlinks counts from the next check on.
func TestCheckLooksAgain(t *testing.T) {
	dir := rootsDir(t)
	hello, secret := named("hello"), named("secret")
	p := Policy{Store: nixStore, Rules: []Rule{{nil, []string{dir + "/*/a"}}}}
	check := func(what string, want ...closure.BaseName) {
		t.Helper()
		for _, b := range []closure.BaseName{hello, secret} {
			if err := p.Check("", []closure.BaseName{b}); (err == nil) != slices.Contains(want, b) {
				t.Errorf("%s: %s: %v", what, b, err)
			}
		}
	}
	check("no directory")
	must(t, os.Mkdir(dir+"/links", 0o755))
	check("no link")
	must(t, os.Symlink("/nix/store/"+string(hello), dir+"/links/a"))
	check("a link", hello)
	must(t, os.Symlink("/nix/store/"+string(secret), dir+"/links/b"), os.Rename(dir+"/links/b", dir+"/links/a"))
	check("the link is another", secret)
	must(t, os.Chmod(dir+"/links", 0o777))
	check("everybody may write")
	must(t, os.Chmod(dir+"/links", 0o755))
	check("root alone may write", secret)
	must(t, os.Symlink("links", dir+"/x"), os.Rename(dir+"/links", dir+"/y"))
	check("the directory has another name", secret)
	must(t, os.Chown(dir, 1000, 1000))
	check("the directory above is another user's")
	must(t, os.Chown(dir, 0, 0), os.Remove(dir+"/y/a"))
	check("the link is gone")
}

// Where others can write in `/`, nothing is believed.
func TestCheckInRootDirectory(t *testing.T) {
	dir := rootsDir(t)
	hello := named("hello")
	thing{path: "links/a", target: "/nix/store/" + string(hello)}.make(t, dir)
	p := Policy{Store: nixStore, Rules: []Rule{{nil, []string{"/links/*"}}}}
	check := func(because string) {
		t.Helper()
		err := mntns.OnOwnThread(func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(dir)); err != nil {
				return err
			}
			return p.Check("", []closure.BaseName{hello})
		})
		if (err == nil) != (because == "") || err != nil && !strings.HasSuffix(err.Error(), because) {
			t.Errorf("%v, want %q", err, because)
		}
	}
	check("")
	must(t, os.Chmod(dir, 0o777|fs.ModeSticky))
	check(`; links in "/" are ignored: everybody can write there (owner 0, mode 1777)`)
	must(t, os.Chmod(dir, 0o755), os.Chown(dir, 1000, 0))
	check(`; links in "/" are ignored: user 1000 can write there (mode 0755)`)
}

// What names allow costs no look at the file system.
func TestCheckLooksAtNamesFirst(t *testing.T) {
	p := Policy{Store: nixStore, Rules: []Rule{{nil, []string{"/run/*", "/nix/store/*-hello"}},
		{nil, []string{"/etc/*"}}}}
	ask := []closure.BaseName{named("hello")}
	// A look has a name and a result, for each file.
	if n := testing.AllocsPerRun(10, func() {
		if err := p.Check("", ask); err != nil {
			t.Error(err)
		}
	}); n > 8 {
		t.Errorf("%v allocations", n)
	}
}

// A rootless engine's hook runs in a user namespace, in which the host's root has
// no user id.
func TestCheckInUserNamespace(t *testing.T) {
	const inside = "NIX_CLOSURE_TEST_POLICY"
	hello := named("hello")
	if dir := os.Getenv(inside); dir != "" {
		for name, why := range map[string]string{
			"root":   "",
			"own":    "",
			"group":  "group 65534 can write there (owner 65534, mode 0775)",
			"all":    "everybody can write there (owner 65534, mode 1777)",
			"closed": "they cannot be read: permission denied",
		} {
			p := Policy{Store: nixStore, Rules: []Rule{{nil, []string{dir + "/" + name + "/*"}}}}
			err := p.Check("", []closure.BaseName{hello})
			if (err == nil) != (why == "") || err != nil && !strings.HasSuffix(err.Error(), why) {
				t.Errorf("%s: %v, want %q", name, err, why)
			}
		}
		return
	}
	dir := rootsDir(t)
	for _, f := range []thing{
		{path: "root/a", target: "/nix/store/" + string(hello)},
		{path: "own", mode: 0o755, uid: 1000},
		{path: "own/a", target: "/nix/store/" + string(hello)},
		{path: "group/a", target: "/nix/store/" + string(hello)},
		{path: "group", mode: 0o775},
		{path: "closed", mode: 0o700},
		{path: "all/a", target: "/nix/store/" + string(hello)},
		{path: "all", mode: 0o777 | fs.ModeSticky},
	} {
		f.make(t, dir)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.Dir = dir
	id := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: id, GidMappings: id,
		Credential: &syscall.Credential{NoSetGroups: true}, Pdeathsig: syscall.SIGKILL,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Whatever rule is accepted can be applied, and one for names says what path.Match
// says of the whole path.
func FuzzRule(f *testing.F) {
	hello := string(named("hello"))
	for _, s := range []string{
		"/nix/store/*", "/nix/store/" + hello, "/nix/store/*-hell?", "/nix/store/[^a]*-[a-z]ello", `/nix/store/\0*`,
		"/nix/store/[", "/nix/store/*/bin", "/nix/store",
		"/", "", "*", "/*", "/run/*", "/n*/*", "/etc/[a-z]*", `/etc/\.\.`, "/x/../y", "/proc/*", "/[", "/a\x00b",
		"/\xff*",
	} {
		f.Add(s, "team-a", hello)
	}
	f.Add("/nix/store/?", "", "")
	f.Add("/nix/store/**", "", "00000000000000000000000000000000-\xff")
	f.Fuzz(func(t *testing.T, glob, namespace, name string) {
		const storeDir = "/nix/store"
		rule := Rule{[]string{namespace}, []string{glob}}
		err := rule.Validate(storeDir)
		if err == nil && (namespace == "" || glob == "") {
			t.Fatalf("%+v was accepted", rule)
		}
		if err != nil || strings.Count(glob, "/") > 3 {
			return // more would be a walk through the whole host
		}
		asked, err := closure.ParseBaseName(name)
		if err != nil {
			return
		}
		p := Policy{Store: nixStore, Rules: []Rule{rule}}
		if p.Check("", []closure.BaseName{asked}) == nil || p.Check(namespace+"x", []closure.BaseName{asked}) == nil {
			t.Errorf("%+v allows %s to others", rule, asked)
		}
		err = p.Check(namespace, []closure.BaseName{asked})
		if err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("not one line: %q", err)
		}
		want, _ := path.Match(glob, storeDir+"/"+name)
		if strings.HasPrefix(glob, storeDir+"/") && (err == nil) != want {
			t.Errorf("%+v: %v, and path.Match says %v", rule, err, want)
		}
	})
}
