// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/internal/settle"
)

// inside tells the child of TestMain that its mount namespace is its own.
const inside = "NIX_CLOSURE_TEST_NAMESPACE"

// TestMain runs the tests in a mount namespace of their own: some look at real
// mounts, which are never in the host's.
func TestMain(m *testing.M) {
	os.Exit(settle.Run(func() int {
		if os.Getenv(inside) != "" || os.Geteuid() != 0 {
			return m.Run()
		}
		return enter()
	}))
}

func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Go makes every mount of the new namespace private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "entering a mount namespace: %v\n", err)
		return 1
	}
	return 0
}

// bindMount shows source at target, which it makes, and for the test's duration.
func bindMount(t *testing.T, source, target string) string {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Fatal("must be root: what is looked at are real mounts")
	}
	st, err := os.Stat(source)
	if err == nil && st.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err == nil {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err == nil {
		err = syscall.Mount(source, target, "", syscall.MS_BIND, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
	return target
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// run runs a program to its end.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if text, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, text)
	}
}
