// SPDX-License-Identifier: Apache-2.0

// Package packages tests what make dist made: it installs the packages into a clean Debian,
// runs containers there, and removes them. It runs as root, in a machine of its own.
package packages

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

var bin = flag.String("bin", "", "absolute path of the directory with dist/, and debian/ of test/install.sh")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if !filepath.IsAbs(*bin) {
			fmt.Fprintf(os.Stderr, "-bin %q is not an absolute path\n", *bin)
			return 1
		}
		return m.Run()
	}))
}

const repository = "../.."

// programs are those of each package, in its directory of programs.
var programs = []string{
	"nix-closure", "nix-closure-device-plugin", "nix-closure-hook", "nix-closure-nri", "nix-closure-runtime",
}

// dist is the path of the one file of make dist that matches a pattern.
func dist(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(*bin, "dist", pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q %v; run make dist", pattern, found, err)
	}
	return found[0]
}

func run(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must is what a program of this machine printed.
func must(t *testing.T, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := run(exec.Command(program, args...))
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", program, args, err, stdout, stderr)
	}
	return stdout
}
