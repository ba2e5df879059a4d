// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The store and the state directory of Guix, which have no directory in common
// but the root.
const (
	otherStore = "/gnu/store"
	otherState = "/var/guix"
)

// onOtherHost moves the test to a host with /gnu and /var/guix, empty: a mount
// namespace of its thread, with a root directory in memory that shows all that
// the root directory has. On the real one they could only be made to stay.
//
// What the test starts is on that host too. A subtest is not.
func onOtherHost(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	// Never unlocked: the thread ends with the test, and the namespace with it.
	runtime.LockOSThread()
	const root = "/mnt"
	steps := []func() error{
		func() error { return syscall.Unshare(syscall.CLONE_NEWNS) },
		func() error { return syscall.Mount("tmpfs", root, "tmpfs", 0, "mode=0755") },
		func() error { return mirror("/", root, "mnt", "var") },
		func() error { return os.Mkdir(root+"/var", 0o755) },
		func() error { return mirror("/var", root+"/var") },
		func() error { return syscall.Chdir(root) },
		func() error { return syscall.PivotRoot(".", ".") },
		func() error { return syscall.Unmount(".", syscall.MNT_DETACH) },
		func() error { return syscall.Chdir(here) },
	}
	for _, point := range []string{filepath.Dir(otherStore), otherState} {
		source := dir + "/" + filepath.Base(point)
		steps = append(steps,
			func() error { return errors.Join(os.Mkdir(source, 0o755), os.MkdirAll(point, 0o755)) },
			func() error { return syscall.Mount(source, point, "", syscall.MS_BIND, "") })
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// mirror shows in a directory what another has.
func mirror(from, to string, without ...string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case slices.Contains(without, e.Name()):
		case e.IsDir():
			err = errors.Join(err, os.Mkdir(target, 0o755),
				syscall.Mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, ""))
		case e.Type() == os.ModeSymlink:
			link, readErr := os.Readlink(source)
			err = errors.Join(err, readErr, os.Symlink(link, target))
		}
	}
	return err
}

// otherClosure has a closure of three store paths, env, and one that is not in it.
const otherClosure = `
let
  run = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };
  busybox = run "busybox" ''
    mkdir -p $out/bin
    cp /bin/busybox $out/bin/busybox
  '';
  greet = run "greet" ''
    printf '#!${busybox}/bin/busybox sh\necho hello from ${builtins.storeDir}\n' > $out
    chmod +x $out
  '';
in {
  env = run "env" ''
    mkdir -p $out/bin
    ln -s ${busybox}/bin/busybox $out/bin/sh
    ln -s ${greet} $out/bin/greet
  '';
  foreign = run "foreign" "echo another tenant > $out";
}
`

// A store of another prefix, and a state directory that is not beside it.
func TestOtherPrefix(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		onOtherHost(t)
		t.Setenv("NIX_STORE_DIR", otherStore)
		t.Setenv("NIX_STATE_DIR", otherState)
		t.Setenv("NIX_LOG_DIR", otherState+"/log")
		writeConfig(t, "store-dir = \""+otherStore+"\"\nstate-dir = \""+otherState+"\"\n")
		// No GC roots: nothing keeps them but containers.
		var built []string
		for _, attribute := range []string{"env", "foreign"} {
			built = append(built, strings.TrimSpace(must(t, "nix-build", "--no-out-link", "--quiet", "--expr",
				otherClosure, "--attr", attribute)))
		}
		env, foreign := built[0], built[1]
		want := closureOf(t, env)
		if len(want) != 3 || filepath.Dir(env) != otherStore {
			t.Fatalf("%s: %q", env, want)
		}
		sh := env + "/bin/sh"
		c := container{runtime: runtime, mode: mode, flags: []string{"--annotation", "nix-closure/roots=" + env}}

		// Exactly the closure, to be read.
		list := "ls -A " + otherStore
		wantList := strings.Join(want, "\n") + "\n"
		got := c.mustRun(t, sh, "-c", "exec 2>&1; "+list+
			`; greet=$1; shift; $greet; ls -A /gnu; touch $0/x; for p; do ls -d $p; done; exit 0`,
			otherStore, env+"/bin/greet", foreign, otherStore+"/.links", otherState, "/nix")
		out := wantList + "hello from /gnu/store\nstore\ntouch: /gnu/store/x: Read-only file system\n"
		for _, absent := range []string{foreign, otherStore + "/.links", otherState, "/nix"} {
			out += "ls: " + absent + ": No such file or directory\n"
		}
		if got != out {
			t.Errorf("it printed %q, want %q", got, out)
		}

		// The registration is where Nix looks for it. It needs an empty directory
		// of links.
		nix := c.nix("--user", "1000:1000", "-e", "NIX_STORE_DIR="+otherStore, "-e", "NIX_STATE_DIR="+otherState)
		query := "nix-store --query --requisites "
		got = nix.shell(t, list+"; "+query+env+"; "+query+foreign+" 2>&1; ls -A "+otherStore+"/.links")
		if all := ".links\n" + wantList + must(t, "nix-store", "--query", "--requisites", env) + "error: path '" +
			foreign + "' is not valid\n"; got != all {
			t.Errorf("with a registration it printed %q, want %q", got, all)
		}

		// What shows the store at another place is refused.
		for _, shows := range []string{filepath.Dir(otherStore), filepath.Dir(otherState), otherState + "/db"} {
			stdout, _, err := c.plus("-v", shows+":/x").run(sh, "-c", "echo it runs")
			want := "looking at the container's mounts: mount of " + shows + " on /x: shows " + shows +
				" of the host, and with it more than the closure; take the mount out"
			if said := withoutID(lastError(t)); err == nil || stdout != "" || said != want {
				t.Errorf("%v %q, the log says\n%s, want\n%s", err, stdout, said, want)
			}
		}

		// The GC root is one for this Nix, until the container ends.
		id := strings.TrimSpace(must(t, "podman", c.plus("--detach").args(sh, "-c", "sleep 600")...))
		t.Cleanup(func() { remove(t, id) })
		root := otherState + "/gcroots/nix-closure/" + id + "/" + filepath.Base(env)
		if got := must(t, "nix-store", "--gc", "--print-roots"); !strings.Contains(got, root+" -> "+env+"\n") {
			t.Errorf("the GC roots are\n%s, want %s among them", got, root)
		}
		must(t, "nix-store", "--gc")
		if got := closureOf(t, env); !slices.Equal(got, want) {
			t.Errorf("the closure is now %q", got)
		}
		if _, err := os.Lstat(foreign); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("nothing was collected: %v", err)
		}
		remove(t, id)
		nothingLeft(t)
		if left, err := os.ReadDir(otherState + "/gcroots/nix-closure"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
		must(t, "nix-store", "--gc")
		if left, err := os.ReadDir(otherStore); err != nil || len(left) > 1 { // .links
			t.Errorf("in the store are %v %v", left, err)
		}
	})
}
