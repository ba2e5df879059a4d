// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/stores/synthetic"
)

// exportTo writes an export into a file.
func exportTo(t *testing.T, file string, args ...string) {
	t.Helper()
	text := mustOperator(t, append([]string{"export", "--format"}, args...)...)
	err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
}

func TestExportPaths(t *testing.T) {
	env := store["env"]
	var want []string
	for _, name := range closureOf(t, env) {
		want = append(want, storeDir+"/"+name)
	}
	for _, args := range [][]string{{"export", env}, {"export", "--format", "paths", env}, {"resolve", env}} {
		if got := strings.Fields(mustOperator(t, args...)); !slices.Equal(got, want) {
			t.Errorf("%q: %q; Nix: %q", args, got, want)
		}
	}
	a := operatorJSON[struct {
		StoreDir, Digest  string
		Roots, StorePaths []string
	}](t, "export", "--format", "json", env, store["foreign"])
	if a.StoreDir != storeDir || len(a.Digest) != 64 || !slices.Equal(a.Roots, []string{env, store["foreign"]}) ||
		len(a.StorePaths) != len(want)+1 {
		t.Errorf("%+v", a)
	}
	// No runtime directory is needed, nor is one made.
	aside := runtimeDir + ".aside"
	if err := os.Rename(runtimeDir, aside); err != nil {
		t.Fatal(err)
	}
	mustOperator(t, "export", env)
	_, err := os.Lstat(runtimeDir)
	if err2 := os.Rename(aside, runtimeDir); !errors.Is(err, os.ErrNotExist) || err2 != nil {
		t.Errorf("%v %v", err, err2)
	}
}

// bwrap runs a command in a sandbox with these arguments and those of a file.
func bwrap(file string, args ...string) (stdout, stderr string, err error) {
	return call("bash", append([]string{"-c", `exec 3<"$1"; shift; exec bwrap --args 3 "$@"`, "bash", file},
		args...)...)
}

// What bubblewrap makes of the arguments is exactly the closure, whatever it had at the
// store directory before.
func TestExportBwrap(t *testing.T) {
	env, file := store["env"], filepath.Join(t.TempDir(), "arguments")
	exportTo(t, file, "bwrap", env)
	want := closureOf(t, env)
	for _, before := range [][]string{nil, {"--ro-bind", "/", "/"}} {
		// What comes first on the command line, bwrap does first.
		args := append(slices.Clone(before), "--args", "3", "--dev", "/dev")
		sandbox := func(command ...string) (string, string, error) {
			return call("bash", slices.Concat([]string{"-c", `exec 3<"$1"; shift; exec bwrap "$@"`, "bash", file}, args,
				command)...)
		}
		out, stderr, err := sandbox(env+"/bin/ls", "-A", storeDir)
		if got := strings.Fields(out); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v %s\n%q; Nix: %q", before, err, stderr, got, want)
		}
		for _, link := range []string{store["link"], env + "/bin/bash"} {
			target, err := os.Readlink(link)
			if err != nil {
				t.Fatal(err)
			}
			if out, stderr, err := sandbox(env+"/bin/readlink", link); err != nil || out != target+"\n" {
				t.Errorf("%s leads to %q: %v %s", link, out, err, stderr)
			}
		}
		if out, stderr, err := sandbox(store["script"]); err != nil || out != "Hello, world!\n" {
			t.Errorf("%q %v %s", out, err, stderr)
		}
		for _, path := range []string{storeDir, env, env + "/bin", store["data"]} {
			if _, stderr, err := sandbox(env+"/bin/touch", path, path+"/new"); err == nil ||
				!strings.Contains(stderr, "Read-only") {
				t.Errorf("%s can be written to: %v %s", path, err, stderr)
			}
		}
		if _, _, err := sandbox(store["foreign"]+"/bin/busybox", "true"); err == nil {
			t.Error("what is not in the closure runs")
		}
	}
	// A view is one mount.
	view := t.TempDir()
	for _, name := range want {
		must(t, "cp", "-a", storeDir+"/"+name, view)
	}
	exportTo(t, file, "bwrap", "--view", view, env)
	if out, stderr, err := bwrap(file, env+"/bin/ls", "-A", storeDir); err != nil ||
		!slices.Equal(strings.Fields(out), want) {
		t.Errorf("%v %s %q", err, stderr, out)
	}
}

// Up to how many store paths bubblewrap takes is what the help says, and one more is an
// error here, before bubblewrap says it.
func TestExportBwrapLimit(t *testing.T) {
	if os.Getenv(ownMachine) == "" {
		inOwnMachine(t)
		return
	}
	const most = 2997
	if help := mustOperator(t, "export", "--help"); !strings.Contains(help, "2,997 store paths") {
		t.Errorf("the help does not say %d: %s", most, help)
	}
	// One more store path is the program.
	s, err := synthetic.Make(most, []int{most - 1, most})
	if err != nil {
		t.Fatal(err)
	}
	lister := program(t, "lister-1", `exec "${0%/*}/busybox" ls -A /nix/store`)
	file := filepath.Join(t.TempDir(), "arguments")
	exportTo(t, file, "bwrap", lister, s.Root(most-1))
	out, stderr, err := bwrap(file, lister+"/bin/lister")
	if n := strings.Count(out, "\n"); err != nil || n != most {
		t.Errorf("%d: %d %v %s", most, n, err, stderr)
	}
	_, stderr, status := operator("/", "export", "--format", "bwrap", lister, s.Root(most))
	if status != 1 || !strings.Contains(stderr, "give it one mount with --view") {
		t.Errorf("%d: %d %s", most+1, status, stderr)
	}
	_, stderr, err = bwrap(file, "--ro-bind", "/etc", "/etc", lister+"/bin/lister")
	if err == nil || !strings.Contains(stderr, "maximum number of arguments") {
		t.Errorf("bwrap takes more: %v %s", err, stderr)
	}
}

// strangeName is what a store path may be called and other tools may trip over.
const strangeName = "what?-1.0+x=y_z"

// systemd understands a drop-in, and says so of one that is wrong.
func TestExportSystemd(t *testing.T) {
	env, strange := store["env"], program(t, strangeName, "true")
	dir := t.TempDir()
	unit, dropIn := filepath.Join(dir, "hello.service"), filepath.Join(dir, "hello.service.d", "store.conf")
	if err := os.WriteFile(unit, []byte("[Service]\nExecStart=/bin/true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	verify := func() string {
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v %s", err, out)
		}
		return string(out)
	}
	exportTo(t, dropIn, "systemd", env, strange)
	if said := verify(); said != "" {
		t.Error(said)
	}
	text, err := os.ReadFile(dropIn)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"[Service]", "TemporaryFileSystem=/nix/store:ro"}
	names := append(closureOf(t, env), filepath.Base(strange))
	slices.Sort(names)
	for _, name := range names {
		want = append(want, "BindReadOnlyPaths="+storeDir+"/"+name)
	}
	got := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(text)), "\n"),
		func(l string) bool { return l[0] == '#' })
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
	for _, view := range []string{"/run/view", "/run/a view", "/run/100%", `/run/a:b\c`, `/run/it's "one"`} {
		exportTo(t, dropIn, "systemd", "--view", view, env)
		if said := verify(); said != "" {
			t.Errorf("%q: %s", view, said)
		}
	}
	// The control: systemd read the file, and would have said that something is wrong.
	for _, wrong := range []string{"BindReadOnlyPaths=relative", "BindReadOnlyPaths=/run/a view",
		"TemporaryFileSystem=x:ro"} {
		if err := os.WriteFile(dropIn, []byte("[Service]\n"+wrong+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if said := verify(); !strings.Contains(said, "store.conf:2:") {
			t.Errorf("%q: systemd says %q", wrong, said)
		}
	}
}

// A symlink that leads out of the closure would be followed, and is left out.
func TestExportSystemdLink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "leads-out")
	if err := os.Symlink("/etc/shadow", link); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(must(t, "nix-store", "--add", link))
	stdout, stderr, status := operator("/", "export", "--format", "systemd", path)
	if status != 0 || !strings.Contains(stderr, "left out: "+path) ||
		strings.Contains(stdout, "\nBindReadOnlyPaths="+path) {
		t.Errorf("%d %s\n%s", status, stderr, stdout)
	}
}

// AppArmor's own compiler takes the rules and the profile, in which no store path is a
// pattern.
func TestExportAppArmor(t *testing.T) {
	env, strange, dir := store["env"], program(t, strangeName, "true"), t.TempDir()
	profile, rules := filepath.Join(dir, "profile"), filepath.Join(dir, "rules")
	exportTo(t, profile, "apparmor", "--profile", "a closure", env, strange)
	exportTo(t, rules, "apparmor", env, strange)
	including := filepath.Join(dir, "including")
	if err := os.WriteFile(including, []byte("profile x {\n include \""+rules+"\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{profile, including} {
		stdout, stderr, err := call("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--dump", "rule-exprs",
			file)
		if err != nil {
			t.Errorf("%s: %v %s", file, err, stderr)
		}
		all := stdout + stderr
		for _, name := range append(closureOf(t, env), filepath.Base(strange)) {
			// As the compiler's expressions have it.
			expression := strings.NewReplacer(".", `\.`, "+", `\+`).Replace(storeDir + "/" + name)
			if !strings.Contains(all, expression) {
				t.Errorf("%s has no rule for %s", filepath.Base(file), name)
			}
		}
		if strings.Contains(all, "what[^") {
			t.Errorf("%s: the question mark is a pattern", filepath.Base(file))
		}
		if strings.Contains(all, filepath.Base(store["foreign"])) {
			t.Errorf("%s has a rule for what is not in the closure", filepath.Base(file))
		}
	}
	// The rules are those that nixpkgs' helper writes.
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, below := range []string{"r .", "r ./etc/**", "mr ./share/**", "mr ./lib/**.so*", "mr ./lib64/**.so*",
		"r ./lib/**", "r ./lib64/**", "ixr ./libexec/**"} {
		access, rest, _ := strings.Cut(below, " .")
		want = append(want, fmt.Sprintf("%s %q,", access, env+rest))
	}
	ofEnv := regexp.MustCompile(`(?m)^[a-z]+ "`+regexp.QuoteMeta(env)+`[/"].*$`).FindAllString(string(text), -1)
	if !slices.Equal(ofEnv, want) {
		t.Errorf("%q; want %q", ofEnv, want)
	}
	// The control.
	if err := os.WriteFile(including, []byte("profile x {\n what \"/is this\",\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := call("apparmor_parser", "--skip-kernel-load", "--skip-cache", including); err == nil {
		t.Error("the compiler takes anything")
	}
}

// What the snippet gives podman starts a container with the closures of the roots.
func TestExportQuadlet(t *testing.T) {
	text := mustOperator(t, "export", "--format", "quadlet", store["tools"], store["script"])
	q := readQuadlet(t, text)
	if len(q.flags) != 2 || strings.ContainsAny(q.flags[1], " %\"") {
		t.Fatalf("%q", text)
	}
	c := container{runtime: "crun", flags: q.flags}
	out := c.mustRun(t, store["tools"]+"/bin/ls", "-A", storeDir)
	want := slices.Concat(closureOf(t, store["tools"]), closureOf(t, store["script"]))
	slices.Sort(want)
	if got := strings.Fields(out); !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("%q; Nix: %q", got, want)
	}
}
