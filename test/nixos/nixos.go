// SPDX-License-Identifier: Apache-2.0

// Package nixos evaluates and builds what is in nix/, by Debian's Nix and with standin/ in
// place of nixpkgs.
package nixos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Standin is the directory of the stand-in, from a directory beside this one.
const Standin = "../nixos/standin"

// withStandin is an expression in which s is the stand-in.
func withStandin(t *testing.T, expression string) string {
	t.Helper()
	dir, err := filepath.Abs(Standin)
	if err != nil {
		t.Fatal(err)
	}
	return "let s = import " + dir + "; in " + expression
}

// Command is a program of Nix, for which the stand-in's Go is this machine's.
func Command(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	goProgram, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "STANDIN_GO="+goProgram)
	for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOPROXY"} {
		value, err := exec.Command(goProgram, "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "STANDIN_"+name+"="+strings.TrimSpace(string(value)))
	}
	return cmd
}

// run is what a program of Nix prints.
func run(t *testing.T, program string, args ...string) ([]byte, error) {
	t.Helper()
	var errs bytes.Buffer
	cmd := Command(t, program, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", program, err, errs.String())
	}
	return out, err
}

// TryEvaluate evaluates an expression, in which s is the stand-in, to its last attribute.
func TryEvaluate(t *testing.T, expression string, value any) error {
	t.Helper()
	text, err := run(t, "nix-instantiate", "--eval", "--strict", "--json", "-E", withStandin(t, expression))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, value)
}

// Evaluate is TryEvaluate of an expression without an error.
func Evaluate(t *testing.T, expression string, value any) {
	t.Helper()
	if err := TryEvaluate(t, expression, value); err != nil {
		t.Fatal(err)
	}
}

// TryBuild builds the derivation that an expression is, in which s is the stand-in.
func TryBuild(t *testing.T, expression string, options ...string) (path string, err error) {
	t.Helper()
	args := append([]string{"--no-out-link", "--no-build-output"}, options...)
	out, err := run(t, "nix-build", append(args, "-E", withStandin(t, expression))...)
	return strings.TrimSpace(string(out)), err
}

// Build is TryBuild of an expression without an error.
func Build(t *testing.T, expression string) (path string) {
	t.Helper()
	path, err := TryBuild(t, expression)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
