// SPDX-License-Identifier: Apache-2.0

package settle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inherits tells this program to set, by its name, what a child inherits, and to become
// a child that settles.
const inherits = "SETTLE_TEST_INHERITS"

// settles is in the environment of that child.
const settles = "SETTLE_TEST_SETTLES"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(settles) != "":
		if err := Settle(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(exit(exec.Command("/proc/self/exe"), "SETTLE_TEST_TELLS=1"))
	case os.Getenv("SETTLE_TEST_TELLS") != "":
		os.Exit(tell())
	case os.Getenv(inherits) != "":
		if err := inherit(os.Getenv(inherits)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(Run(m.Run))
}

// exit runs a command with one more variable, and returns its status.
func exit(cmd *exec.Cmd, variable string) int {
	cmd.Env = append(os.Environ(), variable)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// inherited is what a child of a program that settled sees.
type inherited struct {
	Umask       int
	Ignored     []string
	Limits      map[string]uint64
	Environment map[string]string
	Executable  os.FileMode
}

// tell writes what this process inherited.
func tell() int {
	said := inherited{Limits: map[string]uint64{}, Environment: map[string]string{}}
	status, err := os.ReadFile("/proc/self/status")
	if err == nil {
		var ignored []os.Signal
		ignored, err = ignoredSignals(string(status))
		for _, s := range ignored {
			said.Ignored = append(said.Ignored, s.String())
		}
	}
	said.Umask = syscall.Umask(0)
	for _, l := range limits {
		var now unix.Rlimit
		if unix.Getrlimit(l.resource, &now) == nil {
			said.Limits[l.name] = now.Cur
		}
	}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		said.Environment[name] = value
	}
	if info, err := os.Stat("/proc/self/exe"); err == nil {
		said.Executable = info.Mode()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(said)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// inherit makes this process one that tests must not depend on, and becomes it.
func inherit(kind string) error {
	env := []string{settles + "=1"}
	switch kind {
	case "nohup":
		signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTSTP)
	case "umask":
		syscall.Umask(0o077)
		if err := os.Chmod("/proc/self/exe", 0o700); err != nil {
			return err
		}
	case "limits":
		for resource, soft := range map[int]uint64{
			unix.RLIMIT_FSIZE: 1 << 20, unix.RLIMIT_CORE: 1 << 20, unix.RLIMIT_NOFILE: 256,
		} {
			var now syscall.Rlimit
			if err := syscall.Getrlimit(resource, &now); err != nil {
				return err
			}
			now.Cur = min(soft, now.Max)
			if err := syscall.Setrlimit(resource, &now); err != nil {
				return err
			}
		}
	case "hard limit":
		low := syscall.Rlimit{Cur: 4096, Max: 4096}
		if err := syscall.Setrlimit(unix.RLIMIT_FSIZE, &low); err != nil {
			return err
		}
	case "locale":
		env = append(env, "LANG=de_DE.UTF-8", "LC_MESSAGES=de_DE.UTF-8", "LANGUAGE=de", "TZ=Asia/Tokyo",
			"HOME=/usr", "PATH=/opt/own:/usr/bin", "XDG_RUNTIME_DIR=/run/user/7", "GOFLAGS=-trimpath", "CI=true")
	case "full":
		for _, dir := range []string{"/tmp", "/var/tmp"} {
			options := map[string]string{"/tmp": "size=64k", "/var/tmp": "size=8g"}[dir]
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
				return err
			}
		}
	}
	return syscall.Exec("/proc/self/exe", os.Args[:1], env)
}

// Whatever a program inherits, its children inherit the same.
func TestSettle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root: /tmp is mounted anew")
	}
	settled := map[string]inherited{}
	for _, kind := range []string{"nothing", "nohup", "umask", "limits", "locale", "full"} {
		out, err := child(kind)
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, out)
		}
		var got inherited
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, out)
		}
		delete(got.Environment, settles)
		delete(got.Environment, "SETTLE_TEST_TELLS")
		settled[kind] = got
	}
	want := settled["nothing"]
	for kind, got := range settled {
		if got.Umask != 0o022 || len(got.Ignored) > 0 || got.Executable&0o055 != 0o055 ||
			!maps.Equal(got.Limits, want.Limits) {
			t.Errorf("%s: %+v, want %+v", kind, got, want)
		}
	}
	environment := map[string]string{
		"PATH": strings.Join(directories, ":"), "LC_ALL": "C.UTF-8", "TZ": "UTC", "TMPDIR": "/tmp",
		"HOME": "/root", "USER": "root",
	}
	environment["TMPDIR"] = want.Environment["TMPDIR"] // the host's may be full
	for _, kind := range []string{"nothing", "nohup", "umask", "limits"} {
		if got := settled[kind].Environment; !maps.Equal(got, environment) {
			t.Errorf("%s: %v, want %v", kind, got, environment)
		}
	}
	if got := settled["full"].Environment["TMPDIR"]; got != "/var/tmp" {
		t.Errorf("/tmp is full: TMPDIR is %q", got)
	}
	environment["GOFLAGS"], environment["CI"] = "-trimpath", "true"
	others := slices.DeleteFunc(slices.Clone(directories), func(dir string) bool { return dir == "/usr/bin" })
	environment["PATH"] = "/opt/own:/usr/bin:" + strings.Join(others, ":")
	// The home that the user chose.
	environment["HOME"] = "/usr"
	if got := settled["locale"].Environment; !maps.Equal(got, environment) {
		t.Errorf("locale: %v, want %v", got, environment)
	}
}

// A limit that cannot be raised is named, with what to do.
func TestHardLimit(t *testing.T) {
	out, err := child("hard limit")
	if err == nil || !bytes.Contains(out, []byte("the hard limit on the size of a file is 4096, ")) {
		t.Errorf("%v: %s", err, out)
	}
}

// child settles a process that inherits what kind names, and returns what its child says.
func child(kind string) ([]byte, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{inherits + "=" + kind}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd.CombinedOutput()
}

func TestAccount(t *testing.T) {
	dir := t.TempDir()
	if home, _ := account(dir); home != dir {
		t.Errorf("an own home: %q", home)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 1234, 1234); err != nil {
			t.Fatal(err)
		}
		for _, home := range []string{dir, dir + "/nowhere", ""} {
			if got, name := account(home); got != "/root" || name != "root" {
				t.Errorf("%q: %q, %q", home, got, name)
			}
		}
	}
}

func TestIgnoredSignals(t *testing.T) {
	for status, want := range map[string][]os.Signal{
		"Name:\tx\nSigIgn:\t0000000000000000\n": nil,
		"SigIgn:\t0000000000000001\n":           {unix.SIGHUP},
		"SigIgn:\t0000000180001003\n":           {unix.SIGHUP, unix.SIGINT, unix.SIGPIPE},
		"SigIgn:\t8000000000000000\n":           {syscall.Signal(64)},
	} {
		if got, err := ignoredSignals(status); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", status, got, err, want)
		}
	}
	for _, status := range []string{"", "SigIgn:\tx\n"} {
		if got, err := ignoredSignals(status); err == nil {
			t.Errorf("%q: %v", status, got)
		}
	}
}
