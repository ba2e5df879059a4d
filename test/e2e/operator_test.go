// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// operator calls the operator's command line in a directory.
func operator(dir string, args ...string) (stdout, stderr string, status int) {
	var out, errs strings.Builder
	cmd := exec.Command(filepath.Join(*bin, "nix-closure"), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), 0
}

// mustOperator is operator, and what it prints.
func mustOperator(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := operator("/", args...)
	if status != 0 || stderr != "" {
		t.Fatalf("nix-closure %q: %d %s", args, status, stderr)
	}
	return stdout
}

// operatorJSON is mustOperator with --json.
func operatorJSON[T any](t *testing.T, args ...string) T {
	t.Helper()
	var answer T
	d := json.NewDecoder(strings.NewReader(mustOperator(t, args...)))
	d.DisallowUnknownFields()
	if err := d.Decode(&answer); err != nil {
		t.Fatalf("nix-closure %q: %v", args, err)
	}
	return answer
}

// program builds a store path with testdata/program.nix.
func program(t *testing.T, name, line string) string {
	t.Helper()
	out := must(t, "nix-build", "--quiet", "testdata/program.nix", "--argstr", "name", name,
		"--argstr", "line", line, "--out-link", filepath.Join(t.TempDir(), "result"))
	return strings.TrimSpace(out)
}

// referencesOf is what Nix says of the closure of a path, without references of a path to
// itself.
func referencesOf(t *testing.T, root string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, name := range closureOf(t, root) {
		path := storeDir + "/" + name
		for reference := range strings.FieldsSeq(must(t, "nix-store", "--query", "--references", path)) {
			if reference != path {
				all[path] = append(all[path], reference)
			}
		}
	}
	return all
}

// reach returns what is reached from a path by references, without one path.
func reach(references map[string][]string, from, without string) map[string]bool {
	found := map[string]bool{}
	var visit func(string)
	visit = func(path string) {
		if path == without || found[path] {
			return
		}
		found[path] = true
		for _, r := range references[path] {
			visit(r)
		}
	}
	visit(from)
	return found
}

// A closure argument is a store path, a path below one, or a link to one, and
// --print-roots says what it became. Its errors have the exit status that is promised.
func TestClosureArguments(t *testing.T) {
	dir, env, link := t.TempDir(), store["env"], store["link"]
	for name, target := range map[string]string{
		"result": env, "profile": "profile-2-link", "profile-2-link": env, "to-link": link, "loop": "loop",
		"nowhere": "missing", "collected": storeDir + "/" + strings.Repeat("0", 32) + "-gone", "here": ".",
		"outside": "/etc",
		"below":   env + "/bin/bash", "strange": storeDir + "/canary",
	} {
		if err := os.Symlink(target, dir+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		argument, want string // want: a store path, or what the error says
		status         int
	}{
		{env, env, 0},
		{env + "/bin/bash", env, 0}, // a link in the store is not followed
		{env + "/", env, 0},
		{link, link, 0},
		{"result", env, 0},
		{"./result/", env, 0},
		{"./result/bin/bash", env, 0},
		{"profile", env, 0},
		{"to-link", link, 0},
		{"below", env, 0},
		{"here/here/../" + filepath.Base(dir) + "/result", env, 0},
		{dir + "/result", env, 0},
		{"/proc/self/cwd/result", env, 0},
		{"", "an empty argument", 1},
		{"nowhere", "no such file", 1},
		{"none", "no such file", 1},
		{"loop", "too many levels of symbolic links", 1},
		{"outside", "/etc is not below the store directory /nix/store", 1},
		{"/", "/ is not below the store directory", 1},
		{"strange", "the hash is not 32 characters", 1},
		{storeDir + "/canary", "the hash is not 32 characters", 1},
		{storeDir + "/../store/" + filepath.Base(env), "the hash is not 32 characters", 1},
		{"collected", "is not valid", 3},
		{storeDir + "/" + strings.Repeat("0", 32) + "-gone/bin", "is not valid", 3},
	} {
		for _, command := range [][]string{{"resolve"}, {"export"}, {"why", env}} {
			args := append(slices.Clone(command), "--print-roots", c.argument)
			stdout, stderr, status := operator(dir, args...)
			said := c.argument + " is " + c.want + "\n"
			if c.status == 0 && !strings.HasSuffix(stderr, said) || status != c.status ||
				!strings.Contains(stderr, c.want) {
				t.Errorf("%q: %d %s; want %d %s", args, status, stderr, c.status, c.want)
			}
			if (stdout == "") != (status != 0) {
				t.Errorf("%q: status %d, and prints %q", args, status, stdout)
			}
		}
	}
	// Without the option nothing is said.
	if _, stderr, status := operator(dir, "resolve", "result"); status != 0 || stderr != "" {
		t.Errorf("%d %s", status, stderr)
	}
}

// An error is one line, and its exit status says which kind it is of.
func TestOperatorErrors(t *testing.T) {
	env := store["env"]
	gone := storeDir + "/" + strings.Repeat("0", 32) + "-gone"
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"unknown"}, 2, `unknown command "unknown"; see nix-closure --help`},
		{[]string{"resolv"}, 2, `unknown command "resolv", did you mean resolve?`},
		{[]string{"--unknown"}, 2, "unknown flag"},
		{[]string{"resolve"}, 2, "see nix-closure resolve --help"},
		{[]string{"resolve", "--unknown", env}, 2, "unknown flag: --unknown; see nix-closure resolve --help"},
		{[]string{"resolve", "--sizes=perhaps", env}, 2, "invalid argument"},
		{[]string{"why", env}, 2, "accepts 2 arg(s), received 1"},
		{[]string{"diff", env, env}, 2, "-- between them"},
		{[]string{"diff", "--", env}, 2, "-- between them"},
		{[]string{"diff", env, "--"}, 2, "-- between them"},
		{[]string{"export"}, 2, "requires at least 1 arg"},
		{[]string{"export", "--format", "tar", env}, 2, "not one of paths, json, bwrap, systemd, apparmor, quadlet"},
		{[]string{"export", "--view", "/x", env}, 2, "--view has no meaning for --format paths"},
		{[]string{"export", "--profile", "x", "--format", "bwrap", env}, 2, "--profile has no meaning"},
		{[]string{"gc", "--unused-for", "-1s"}, 2, "--unused-for is negative"},
		{[]string{"gc", "more"}, 2, "see nix-closure gc --help"},
		{[]string{"--config", "/missing", "export", env}, 1, "reading the configuration: open /missing: no such file"},
		{[]string{"why", store["tools"], store["foreign"]}, 1, " does not depend on "},
		{[]string{"why", env, gone}, 3, gone + " is not valid"},
		{[]string{"diff", env, "--", gone}, 3, gone + " is not valid"},
		{[]string{"export", "--format", "json", env, gone}, 3, gone + " is not valid"},
		{[]string{"export", "--format", "apparmor", "--profile", `a"b`, env}, 1, "has a quote"},
		{[]string{"export", "--format", "systemd", "--view", "/a\nb", env}, 1, "control character"},
	} {
		stdout, stderr, status := operator("/", c.args...)
		if status != c.status || !strings.Contains(stderr, c.want) || stdout != "" {
			t.Errorf("%q: %d %q %q; want %d %q", c.args, status, stdout, stderr, c.status, c.want)
		}
		if !strings.HasPrefix(stderr, "nix-closure: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: not one line: %q", c.args, stderr)
		}
	}
}

// sizesAnswer is what resolve --sizes --json prints.
type sizesAnswer struct {
	Digest     string
	Paths      int
	Pins       []string
	Since      int64
	StorePaths []struct {
		Path                            string
		NarSize, ClosureSize, AddedSize int64
		References                      []string
	}
}

// Sizes are those that Nix says, and what a path adds is what is not reached without it.
func TestResolveSizes(t *testing.T) {
	env := store["env"]
	references, sizes := referencesOf(t, env), map[string]int64{}
	for _, name := range closureOf(t, env) {
		path := storeDir + "/" + name
		size, err := strconv.ParseInt(strings.TrimSpace(must(t, "nix-store", "--query", "--size", path)), 10, 64)
		if err != nil || size == 0 {
			t.Fatal(path, size, err)
		}
		sizes[path] = size
	}
	sum := func(paths map[string]bool) (all int64) {
		for path := range paths {
			all += sizes[path]
		}
		return all
	}
	answer := operatorJSON[sizesAnswer](t, "resolve", "--sizes", "--json", env)
	if len(answer.StorePaths) != len(sizes) || answer.Paths != len(sizes) ||
		!slices.Equal(answer.Pins, []string{filepath.Base(env)}) {
		t.Errorf("%+v", answer)
	}
	whole, shared := sum(reach(references, env, "")), 0
	for _, p := range answer.StorePaths {
		closure := sum(reach(references, p.Path, ""))
		added := whole - sum(reach(references, env, p.Path))
		if p.NarSize != sizes[p.Path] || p.ClosureSize != closure || p.AddedSize != added {
			t.Errorf("%+v; Nix: size %d, closure %d, added %d", p, sizes[p.Path], closure, added)
		}
		if added < closure {
			shared++
		}
		want := strings.Fields(must(t, "nix-store", "--query", "--references", p.Path))
		slices.Sort(want)
		if !slices.Equal(p.References, want) {
			t.Errorf("%s references %q; Nix: %q", p.Path, p.References, want)
		}
	}
	if shared == 0 {
		t.Error("no two paths have a reference in common, so that nothing was shown")
	}
	// What the hook reads is as ever.
	type hooks struct {
		Digest string   `json:"digest"`
		Paths  int      `json:"paths"`
		Pins   []string `json:"pins"`
		Since  int64    `json:"since"`
	}
	if plain := operatorJSON[hooks](t, "resolve", "--json", env); plain.Digest != answer.Digest ||
		plain.Since != answer.Since {
		t.Errorf("%+v", plain)
	}
	// The table: what adds most first, which is the root, and each path once, in full.
	lines := strings.Split(strings.TrimSpace(mustOperator(t, "resolve", "--sizes", env)), "\n")
	if len(lines) != len(sizes)+1 || !strings.HasSuffix(lines[1], "  "+env) || strings.Fields(lines[0])[2] != "ADDED" {
		t.Errorf("%q", lines)
	}
	for path := range sizes {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(line, "  "+path) }) {
			t.Errorf("%s is not in the table", path)
		}
	}
}

// The tree has each reference once, below the first line of its referrer.
func TestResolveTree(t *testing.T) {
	env := store["env"]
	references := referencesOf(t, env)
	got, whole := map[string][]string{}, map[string]int{}
	var above []string // by depth
	for line := range strings.Lines(mustOperator(t, "resolve", "--tree", env)) {
		at := strings.Index(line, storeDir)
		path, again := strings.CutSuffix(strings.TrimRight(line[at:], "\n"), " [...]")
		depth := len([]rune(line[:at])) / 4
		if above = append(above[:depth], path); depth > 0 {
			got[above[depth-1]] = append(got[above[depth-1]], path)
		}
		if !again && len(references[path]) > 0 {
			whole[path]++
		}
	}
	for path, want := range references {
		slices.Sort(got[path])
		slices.Sort(want)
		if !slices.Equal(got[path], want) || whole[path] != 1 {
			t.Errorf("%s has %q below it, %d times; Nix: %q", path, got[path], whole[path], want)
		}
	}
	if above[0] != env || len(got) != len(references) {
		t.Errorf("the root is %s, %d referrers", above[0], len(got))
	}
	if line, _, _ := strings.Cut(mustOperator(t, "resolve", "--tree", "--sizes", env), "\n"); !strings.HasSuffix(line,
		"STORE PATH") {
		t.Errorf("%q", line)
	}
}

// whyAnswer is what why --json prints.
type whyAnswer struct {
	Root, Path string
	Links      []struct {
		Referrer, Reference string
		Mentions            []struct{ File, In string }
	}
}

// checkMentions fails unless every file of an answer really has the reference.
func checkMentions(t *testing.T, a whyAnswer) {
	t.Helper()
	for _, l := range a.Links {
		hash := filepath.Base(l.Reference)[:32]
		if len(l.Mentions) == 0 {
			t.Errorf("%s references %s, and no file says so", l.Referrer, l.Reference)
		}
		for _, m := range l.Mentions {
			path := filepath.Join(l.Referrer, m.File)
			var text []byte
			var err error
			switch m.In {
			case "contents":
				text, err = os.ReadFile(path)
			case "target":
				var target string
				target, err = os.Readlink(path)
				text = []byte(target)
			case "name":
				text = []byte(filepath.Base(path))
				_, err = os.Lstat(path)
			}
			if err != nil || !strings.Contains(string(text), hash) {
				t.Errorf("%s: in the %s of %s is no reference to %s: %v", l.Referrer, m.In, path, l.Reference, err)
			}
		}
	}
}

// why finds a chain of references that Nix knows, which no other is shorter than, and the
// files that they stand in.
func TestWhy(t *testing.T) {
	env := store["env"]
	references := referencesOf(t, env)
	distance := map[string]int{env: 0}
	for queue := []string{env}; len(queue) > 0; queue = queue[1:] {
		for _, r := range references[queue[0]] {
			if _, found := distance[r]; !found {
				distance[r] = distance[queue[0]] + 1
				queue = append(queue, r)
			}
		}
	}
	longest := 0
	for path, want := range distance {
		a := operatorJSON[whyAnswer](t, "why", "--json", env, path)
		at := env
		for _, l := range a.Links {
			if l.Referrer != at || !slices.Contains(references[l.Referrer], l.Reference) || len(l.Mentions) != 1 {
				t.Errorf("to %s: %+v", path, l)
			}
			at = l.Reference
		}
		if at != path || len(a.Links) != want || a.Root != env || a.Path != path {
			t.Errorf("to %s: %d references; there is a chain of %d", path, len(a.Links), want)
		}
		checkMentions(t, a)
		longest = max(longest, want)
	}
	if longest < 2 {
		t.Errorf("no chain is longer than %d", longest)
	}
	// With --all, every reference that is on a way.
	libc := store["libc"]
	all, want := operatorJSON[whyAnswer](t, "why", "--all", "--json", env, libc), 0
	for referrer, list := range references {
		for _, r := range list {
			if reach(references, r, "")[libc] {
				want++
				if !slices.ContainsFunc(all.Links, func(l struct {
					Referrer, Reference string
					Mentions            []struct{ File, In string }
				}) bool {
					return l.Referrer == referrer && l.Reference == r
				}) {
					t.Errorf("--all has no reference from %s to %s", referrer, r)
				}
			}
		}
	}
	if checkMentions(t, all); len(all.Links) != want {
		t.Errorf("--all has %d references; Nix: %d", len(all.Links), want)
	}
	// For a person.
	out := mustOperator(t, "why", env, store["script"])
	if want := env + "\n  share/script (target)\n" + store["script"] + "\n"; out != want {
		t.Errorf("%q; want %q", out, want)
	}
	if out := mustOperator(t, "why", store["script"], store["bash"]); out != store["script"]+"\n  . (contents)\n"+
		store["bash"]+"\n" {
		t.Errorf("%q", out)
	}
	if out := mustOperator(t, "why", "--all", store["link"], store["bash"]); out != store["link"]+"\n  "+store["bash"]+
		"\n    . (target)\n"+store["bash"]+"\n" {
		t.Errorf("%q", out)
	}
	if out := mustOperator(t, "why", env, env); out != env+"\n" {
		t.Errorf("%q", out)
	}
}

// Names of files and hashes across two pieces of a large file are found, and what was
// registered by hand is in none.
func TestWhyStrangePlaces(t *testing.T) {
	target := store["data"]
	base := filepath.Base(target)
	names := []string{"across", "named", "by-hand"}
	var registration strings.Builder
	for i, name := range names {
		path := storeDir + "/" + strings.Repeat(strconv.Itoa(i), 32) + "-" + name
		must(t, "mkdir", path)
		t.Cleanup(func() { must(t, "nix-store", "--delete", path) })
		var err error
		switch name {
		case "across":
			err = os.WriteFile(path+"/file", []byte(strings.Repeat("x", 1<<20-16)+base+strings.Repeat("y", 1<<20)),
				0o444)
		case "named":
			err = os.WriteFile(path+"/about-"+base[:32], nil, 0o444)
		}
		if err != nil {
			t.Fatal(err)
		}
		registration.WriteString(path + "\n\n1\n" + target + "\n")
	}
	register := exec.Command("nix-store", "--register-validity")
	register.Stdin = strings.NewReader(registration.String())
	if out, err := register.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for i, want := range []string{"file (contents)", "about-" + base[:32] + " (name)",
		"in no file: the reference was registered by hand"} {
		path := storeDir + "/" + strings.Repeat(strconv.Itoa(i), 32) + "-" + names[i]
		if out := mustOperator(t, "why", path, target); out != path+"\n  "+want+"\n"+target+"\n" {
			t.Errorf("%s: %q", names[i], out)
		}
	}
}

// diffAnswer is what diff --json prints.
type diffAnswer struct {
	Before, After struct {
		Paths int
		Size  int64
	}
	Groups []struct {
		Name, Change  string
		Size          int64
		Before, After []struct {
			Path, Version string
			Size          int64
		}
	}
}

// diff groups by name, and its sizes add up.
func TestDiff(t *testing.T) {
	older, newer := program(t, "hello-2.12", "echo older"), program(t, "hello-2.13", "echo newer and longer")
	rebuilt, other := program(t, "hello-2.12", "echo otherwise"), program(t, "other", "true")
	for _, c := range []struct {
		before, after []string
		want          string // change, name and versions, in any order
	}{
		{[]string{older}, []string{newer}, "changed hello 2.12 → 2.13"},
		{[]string{older}, []string{rebuilt}, "rebuilt hello 2.12"},
		{[]string{older}, []string{older, newer}, "changed hello 2.12 → 2.12, 2.13"},
		{[]string{older}, []string{older, other}, "added other (none)"},
		{[]string{older, other}, []string{older}, "removed other (none)"},
		{[]string{older}, []string{older}, ""},
		{[]string{older, other}, []string{newer}, "changed hello 2.12 → 2.13; removed other (none)"},
	} {
		args := slices.Concat([]string{"diff"}, c.before, []string{"--"}, c.after)
		a := operatorJSON[diffAnswer](t, append([]string{"diff", "--json"}, args[1:]...)...)
		var sum int64
		for _, g := range a.Groups {
			sum += g.Size
		}
		if sum != a.After.Size-a.Before.Size || a.Before.Paths != len(c.before) || a.After.Paths != len(c.after) {
			t.Errorf("%q: %+v", args, a)
		}
		var lines []string
		out := mustOperator(t, args...)
		for line := range strings.Lines(strings.TrimPrefix(out, "CHANGE")) {
			if fields := strings.Fields(line); fields[0] != "SIZE" {
				lines = append(lines, strings.Join(append(fields[:1:1], fields[2:]...), " "))
			}
		}
		slices.Sort(lines)
		if got := strings.Join(lines, "; "); got != c.want {
			t.Errorf("%q: %q; want %q", args, got, c.want)
		}
	}
	// Of all that Nix built: what is in both closures alone is in no group.
	a := operatorJSON[diffAnswer](t, "diff", "--json", store["tools"], "--", store["env"])
	tools, env := closureOf(t, store["tools"]), closureOf(t, store["env"])
	var added int
	for _, g := range a.Groups {
		for _, p := range g.After {
			if !slices.Contains(tools, filepath.Base(p.Path)) {
				added++
			}
		}
	}
	onlyEnv := slices.DeleteFunc(slices.Clone(env), func(n string) bool { return slices.Contains(tools, n) })
	if added != len(onlyEnv) || a.Before.Paths != len(tools) || a.After.Paths != len(env) {
		t.Errorf("%d paths are in env alone, and diff has %d", len(onlyEnv), added)
	}
}

// A shell is offered the store paths of the database that begin as what was typed, and
// file names elsewhere.
func TestCompletion(t *testing.T) {
	complete := func(args ...string) (offers []string, directive string) {
		lines := strings.Fields(mustOperatorStdout(t, append([]string{"__complete"}, args...)...))
		return lines[:len(lines)-1], lines[len(lines)-1]
	}
	const noFiles, files = ":4", ":0"
	all := strings.Fields(must(t, "sh", "-c", "nix-store --query --requisites "+store["env"]))
	for _, command := range []string{"resolve", "why", "diff", "export"} {
		for _, path := range all {
			begun := path[:len(storeDir)+1+8]
			offers, directive := complete(command, begun)
			if !slices.Contains(offers, path) || directive != noFiles {
				t.Errorf("%s %s: %q %s", command, begun, offers, directive)
			}
		}
		// All of them are valid, and all that are valid are offered.
		offers, _ := complete(command, storeDir+"/")
		if invalid := must(t, "nix-store",
			append([]string{"--check-validity", "--print-invalid"}, offers...)...); invalid != "" {
			t.Errorf("offered and not valid: %s", invalid)
		}
		if dump := must(t, "nix-store", "--dump-db"); strings.Count(dump, "\n"+storeDir) < len(offers)/2 ||
			len(offers) < len(all) {
			t.Errorf("%d offers", len(offers))
		}
		for _, begun := range []string{"./res", "", store["env"] + "/b"} {
			if offers, directive := complete(command, begun); len(offers) > 0 || directive != files {
				t.Errorf("%s %q: %q %s", command, begun, offers, directive)
			}
		}
	}
	for _, begun := range []string{"a=" + store["env"][:len(storeDir)+9], "a=" + store["bash"] + ":" +
		store["env"][:len(storeDir)+9]} {
		want := begun[:strings.LastIndexAny(begun, "=:")+1] + store["env"]
		if offers, directive := complete("cdi", "generate", begun); !slices.Equal(offers, []string{want}) ||
			directive != noFiles {
			t.Errorf("%s: %q %s", begun, offers, directive)
		}
	}
	if offers, directive := complete("export", "--format", ""); len(offers) != 6 || directive != noFiles {
		t.Errorf("%q %s", offers, directive)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if script := mustOperator(t, "completion", shell); !strings.Contains(script, "nix-closure __complete") &&
			!strings.Contains(script, "__complete") {
			t.Errorf("%s: %q", shell, script)
		}
	}
	// bash itself, as a person's does it.
	const ask = `. "$1"; COMP_WORDS=(nix-closure resolve "$2"); COMP_CWORD=2
COMP_LINE="nix-closure resolve $2"; COMP_POINT=${#COMP_LINE}
_get_comp_words_by_ref() { cur=$2x; cur=${COMP_WORDS[2]} prev=resolve words=("${COMP_WORDS[@]}") cword=2; }
__start_nix-closure 2>/dev/null; printf '%s\n' "${COMPREPLY[@]}"`
	script := filepath.Join(t.TempDir(), "completion")
	if err := os.WriteFile(script, []byte(mustOperator(t, "completion", "bash")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", ask, "bash", script, store["env"][:len(storeDir)+9])
	cmd.Env = append(os.Environ(), "PATH="+*bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), store["env"]) {
		t.Errorf("bash: %v %s", err, out)
	}
}

// mustOperatorStdout is mustOperator, whatever is on standard error.
func mustOperatorStdout(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := operator("/", args...)
	if status != 0 {
		t.Fatalf("nix-closure %q: %d %s", args, status, stderr)
	}
	return stdout
}

// The examples of --help do what they say there.
func TestOperatorExamples(t *testing.T) {
	dir := t.TempDir()
	hello, newer, bash := buildProgram(t, "hello-2.12"), buildProgram(t, "hello-2.13"), buildProgram(t, "bash-5.2")
	for _, name := range []string{"etc/systemd/system/hello.service.d", "etc/apparmor.d"} {
		must(t, "mkdir", "-p", filepath.Join(dir, name))
	}
	system := "/run/current-system"
	for link, target := range map[string]string{
		dir + "/result": bash, system: hello, "/run/booted-system": newer,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeAll(t, link) })
	}
	example := regexp.MustCompile(`(?m)^  (nix-closure .*)$`)
	commands := regexp.MustCompile(`(?m)^  ([a-z]+)  `).FindAllStringSubmatch(mustOperator(t, "--help"), -1)
	// Those that need containers, terminals or an installation are run elsewhere.
	elsewhere := map[string]string{
		"help": "cobra's own", "inspect": "TestCommandExamples", "verify": "TestCommandExamples",
		"view": "TestRunExamples", "cdi": "TestRunExamples", "run": "TestRunExamples", "confine": "TestRunExamples",
		"doctor": "TestDoctorAndInstallExamples", "install": "TestDoctorAndInstallExamples",
	}
	ran := 0
	for _, command := range commands {
		if elsewhere[command[1]] != "" {
			continue
		}
		_, text, found := strings.Cut(mustOperator(t, command[1], "--help"), "\nExamples:\n")
		if !found {
			t.Errorf("%s has no examples", command[1])
		}
		text, _, _ = strings.Cut(text, "\n\n")
		for _, line := range example.FindAllStringSubmatch(text, -1) {
			script := strings.NewReplacer("/nix/store/…-hello-2.12", hello, "/nix/store/…-hello-2.13", newer,
				"/nix/store/…-bash-5.2", bash, "/nix/store/…-closure-info", store["closureInfo"],
				">/etc/", ">"+dir+"/etc/").Replace(line[1])
			cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+*bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil || len(out) == 0 && !strings.Contains(script, ">") && !strings.Contains(script, " gc") {
				t.Errorf("%s: %v %s", script, err, out)
			}
			if strings.Contains(script, "bwrap --args") && string(out) != greeting {
				t.Errorf("%s: %q", script, out)
			}
			ran++
		}
	}
	if len(commands) < 5 || ran < 12 {
		t.Errorf("%d examples of %d commands", ran, len(commands))
	}
}
