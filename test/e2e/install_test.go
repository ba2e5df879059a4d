// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// podmansHooks is the directory of hook files that podman reads by itself.
const podmansHooks = "/usr/share/containers/oci/hooks.d"

// hookFile is a hook file of podman or CRI-O, in version 1.0.0 of its form.
type hookFile struct {
	Hook struct {
		Path      string
		Args, Env []string
	}
	When   struct{ Annotations map[string]string }
	Stages []string
}

// checkHookFile fails unless a hook file calls a program for annotated containers only,
// and returns its stages.
func checkHookFile(t *testing.T, path, program string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f hookFile
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	if f.Hook.Path != program || len(f.Hook.Env) == 0 || len(f.When.Annotations) != 1 {
		t.Errorf("%s: %s", path, text)
	}
	for key, value := range f.When.Annotations {
		for _, pattern := range []string{key, value} {
			if !strings.HasPrefix(pattern, "^") || !strings.HasSuffix(pattern, "$") {
				t.Errorf("%s: %q is not anchored", path, pattern)
			}
		}
	}
	return f.Stages
}

// manualFiles are what make install puts below share/ for people and their shells.
var manualFiles = []string{
	"bash-completion/completions/nix-closure",
	"fish/vendor_completions.d/nix-closure.fish",
	"man/man1/nix-closure-cdi-generate.1",
	"man/man1/nix-closure-cdi-list.1",
	"man/man1/nix-closure-cdi-remove.1",
	"man/man1/nix-closure-cdi.1",
	"man/man1/nix-closure-confine.1",
	"man/man1/nix-closure-device-plugin.1",
	"man/man1/nix-closure-diff.1",
	"man/man1/nix-closure-doctor.1",
	"man/man1/nix-closure-export.1",
	"man/man1/nix-closure-gc.1",
	"man/man1/nix-closure-hook.1",
	"man/man1/nix-closure-inspect.1",
	"man/man1/nix-closure-install.1",
	"man/man1/nix-closure-nri.1",
	"man/man1/nix-closure-resolve.1",
	"man/man1/nix-closure-run.1",
	"man/man1/nix-closure-runtime.1",
	"man/man1/nix-closure-verify.1",
	"man/man1/nix-closure-view-list.1",
	"man/man1/nix-closure-view-mount.1",
	"man/man1/nix-closure-view-umount.1",
	"man/man1/nix-closure-view.1",
	"man/man1/nix-closure-why.1",
	"man/man1/nix-closure.1",
	"zsh/site-functions/_nix-closure",
}

// checkManual fails unless a directory has a man page for each command, which man can
// read, and the completions.
func checkManual(t *testing.T, share string) {
	t.Helper()
	out := must(t, "find", share, "-type", "f", "-name", "*nix-closure*", "!", "-path", "*/hooks.d/*", "-printf",
		"%P\n")
	got := strings.Fields(out)
	slices.Sort(got)
	if !slices.Equal(got, manualFiles) {
		t.Errorf("%s has %q; want %q", share, got, manualFiles)
	}
	for _, file := range got {
		text, err := os.ReadFile(filepath.Join(share, file))
		if err != nil {
			t.Fatal(err)
		}
		page := strings.HasPrefix(file, "man/")
		if page && !strings.HasPrefix(string(text), ".nh\n.TH \"NIX-CLOSURE") ||
			!page && !strings.Contains(string(text), "__complete") {
			t.Errorf("%s: %.60q", file, text)
		}
		if strings.Contains(string(text), *bin) {
			t.Errorf("%s names a path of the build", file)
		}
	}
	if out, err := exec.Command("bash", "-n", filepath.Join(share, manualFiles[0])).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// make install puts into place what podman needs, and make uninstall removes all of it.
// Whatever PREFIX is, the hook files go to where podman finds them.
func TestInstall(t *testing.T) {
	for _, c := range []struct {
		arguments     []string
		prefix, hooks string
	}{
		{nil, "/usr/local", podmansHooks},
		{[]string{"PREFIX=/usr"}, "/usr", podmansHooks},
		{[]string{"PREFIX=/opt/nix-closure"}, "/opt/nix-closure", podmansHooks},
		{[]string{"HOOKSDIR=/etc/hooks"}, "/usr/local", "/etc/hooks"},
	} {
		dir := t.TempDir()
		arguments := append([]string{"-C", "../..", "DESTDIR=" + dir}, c.arguments...)
		// A careful root's umask: every user may read and run what is installed all the same.
		must(t, "sh", append([]string{"-c", `umask 077; exec make "$@"`, "make", "install"}, arguments...)...)
		checkManual(t, dir+c.prefix+"/share")
		if closed := must(t, "find", dir+c.prefix, dir+c.hooks, "!", "-perm", "-044"); closed != "" {
			t.Errorf("%q: other users may not read %s", c.arguments, closed)
		}
		files, err := filepath.Glob(dir + c.hooks + "/*")
		if err != nil {
			t.Fatal(err)
		}
		var stages []string
		for _, f := range files {
			stages = append(stages, checkHookFile(t, f, c.prefix+"/bin/nix-closure-hook")...)
		}
		if !slices.Equal(stages, []string{"createRuntime", "poststop"}) {
			t.Errorf("%q: the hook files are for %q", c.arguments, stages)
		}
		for _, program := range []string{"nix-closure-hook", "nix-closure", "nix-closure-runtime", "nix-closure-nri",
			"nix-closure-device-plugin"} {
			// Static: in an image or a rescue system it needs nothing.
			f, err := elf.Open(dir + c.prefix + "/bin/" + program)
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
				t.Errorf("%s needs an interpreter", program)
			}
			// nix-closure-runtime answers as the runtime that it becomes.
			out := must(t, dir+c.prefix+"/bin/"+program, "--version")
			if !strings.HasPrefix(out, program) && program != "nix-closure-runtime" {
				t.Errorf("%s: %q", program, out)
			}
		}
		must(t, "make", append(arguments, "uninstall")...)
		if left := must(t, "find", dir, "-type", "f"); left != "" {
			t.Errorf("left after uninstall: %s", left)
		}
	}
}

// install installs into the machine, for the length of a test.
func install(t *testing.T, arguments ...string) {
	t.Helper()
	arguments = append([]string{"-C", "../.."}, arguments...)
	t.Cleanup(func() {
		must(t, "make", append(arguments, "uninstall")...)
		left, err := filepath.Glob(podmansHooks + "/*nix-closure*")
		programs, err2 := filepath.Glob("/usr/local/bin/nix-closure*")
		left = append(left, strings.Fields(must(t, "find", "/usr/local/share", "-name", "*nix-closure*"))...)
		if left = append(left, programs...); err != nil || err2 != nil || len(left) > 0 {
			t.Errorf("left after uninstall: %q %v %v", left, err, err2)
		}
	})
	must(t, "make", append(arguments, "install")...)
}

// ordinaryImage is what the README's IMAGE is: it has a /bin/true.
func ordinaryImage(t *testing.T) string {
	t.Helper()
	const name = "localhost/ordinary:latest"
	if annotatedImages[name] {
		return name
	}
	dir := t.TempDir()
	text := "FROM " + annotatedImage(t, nil) + "\nCOPY busybox /bin/sh\nCOPY busybox /bin/true\n"
	must(t, "cp", "/bin/busybox", dir)
	if err := os.WriteFile(dir+"/Containerfile", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "podman", "build", "--quiet", "--isolation=chroot", "--tag", name, dir)
	annotatedImages[name] = true
	return name
}

// withoutConf takes the user's containers.conf away, for the length of a test.
func (u *ordinary) withoutConf(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(u.conf())
	if err := errors.Join(err, os.Remove(u.conf())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(u.conf(), text, 0o644); err != nil {
			t.Error(err)
		}
	})
}

// canaryReason is what the README's canary must say.
const canaryReason = `annotation nix-closure/roots: "/nix/store/canary": `

// caller calls a program as somebody.
type caller func(program string, args ...string) (stdout, stderr string, err error)

// checkFound fails unless somebody's podman finds the hook by itself: the README's canary is
// refused with its reason, and the demo's container starts with its closure.
func checkFound(t *testing.T, call caller, log func() []logLine) {
	t.Helper()
	image, want := ordinaryImage(t), closureOf(t, store["env"])
	for _, runtime := range runtimes {
		run := func(annotation string, command ...string) (stdout, stderr string, err error) {
			args := []string{"--runtime", runtime, "run", "--rm", "--annotation", annotation, image}
			return call("podman", append(args, command...)...)
		}
		if _, stderr, err := run("org.example/x=y", "/bin/true"); err != nil {
			t.Fatalf("%s: without this program's annotation: %v %s", runtime, err, stderr)
		}
		_, stderr, err := run("nix-closure/roots=/nix/store/canary", "/bin/true")
		if err == nil {
			t.Errorf("%s: the canary starts", runtime)
		}
		said := newestError(log())
		if !strings.Contains(said, canaryReason) || runtime == "runc" && !strings.Contains(stderr, said) {
			t.Errorf("%s: the log says %q, and podman %s", runtime, said, stderr)
		}
		stdout, stderr, err := run("nix-closure/roots="+store["env"], store["env"]+"/bin/ls", "-A", storeDir)
		if got := strings.Fields(stdout); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, the store has %q\n%s", runtime, err, got, stderr)
		}
	}
}

// After make install, podman finds the hook by itself: root's, and, as podman 4.3.1 does
// it, that of every user.
func TestInstalled(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	alice.withoutConf(t)
	alice.loadImage(t, ordinaryImage(t))
	for name, arguments := range map[string][]string{
		"the usual prefix": nil,
		"elsewhere":        {"PREFIX=" + testhost.Dir() + "/opt"},
	} {
		t.Run(name, func(t *testing.T) {
			install(t, arguments...)
			checkFound(t, call, func() []logLine { return readLog(t) })
			nothingLeft(t)
			checkFound(t, alice.call, func() []logLine { return alice.log(t) })
			alice.nothingLeft(t)
		})
	}
	// Without, the canary says so.
	canary := append(append([]string{"run", "--rm"}, flags(roots("/nix/store/canary"))...), ordinaryImage(t),
		"/bin/true")
	if _, _, err := call("podman", canary...); err != nil {
		t.Errorf("after uninstall: %v", err)
	}
}

// A user without root's help installs into their home directory, and names the directory
// of the hook files in their containers.conf.
func TestInstalledForOneUser(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	alice.withoutConf(t)
	alice.loadImage(t, ordinaryImage(t))
	hooks := alice.home + "/.local/share/nix-closure/hooks.d"
	install(t, "PREFIX="+alice.home+"/.local", "HOOKSDIR="+hooks)
	must(t, "chown", "--recursive", alice.name, alice.home+"/.local/bin", hooks)
	checkManual(t, alice.home+"/.local/share")
	alice.setHooksDir(t, hooks)
	checkFound(t, alice.call, func() []logLine { return alice.log(t) })
	alice.nothingLeft(t)
}
