// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// verdict is what verify says of a container.
type verdict struct {
	ID, Name, State string
	Paths           int
	Contents        bool
	Wrong           []struct{ What, Do string }
	Unknown, Notes  []string
}

// says is all that is wrong or unknown, a line each.
func (v verdict) says() string {
	var all []string
	for _, w := range v.Wrong {
		all = append(all, w.What)
	}
	return strings.Join(append(all, v.Unknown...), "\n")
}

type verdicts struct {
	Containers []verdict
	Troubles   []string
}

// of is the verdict of a container.
func (v verdicts) of(t *testing.T, id string) verdict {
	t.Helper()
	i := slices.IndexFunc(v.Containers, func(c verdict) bool { return c.ID == id })
	if i < 0 {
		t.Fatalf("no verdict of %s: %+v", id, v)
	}
	return v.Containers[i]
}

// verifyBy runs verify, and returns what it found and its exit status.
func verifyBy(t *testing.T, cmd *exec.Cmd) (found verdicts, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		t.Fatalf("verify: %v\n%s%s", err, &out, &errs)
	}
	if errs.Len() > 0 {
		t.Errorf("verify says on standard error: %s", &errs)
	}
	return found, cmd.ProcessState.ExitCode()
}

// nixClosure is the operator's command line.
func nixClosure() string { return filepath.Join(*bin, "nix-closure") }

func verify(t *testing.T, args ...string) (verdicts, int) {
	t.Helper()
	return verifyBy(t, exec.Command(nixClosure(), append([]string{"verify", "--json"}, args...)...))
}

// checkOK fails unless verify finds nothing to say of a container.
func checkOK(t *testing.T, found verdicts, status int, id string) {
	t.Helper()
	v := found.of(t, id)
	if v.State != "ok" || status != 0 || len(v.Notes) > 0 || len(found.Troubles) > 0 {
		t.Errorf("status %d, %q\n%s\n%q %q", status, v.State, v.says(), v.Notes, found.Troubles)
	}
}

const unlisted = "--annotation=nix-closure/listing=false"

// Verify has nothing to say of containers as the hook makes them.
func TestVerifyOK(t *testing.T) {
	paths := len(closureOf(t, store["env"]))
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, c := range []struct {
			name  string
			flags []string
		}{
			{"plain", nil},
			{"unlisted", []string{unlisted}},
			{"registered", []string{registered}},
			{"writable", []string{writable}},
			{"writable and registered", []string{writable, registered, unlisted}},
			{"user namespace", []string{"--ipc=none", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536"}},
			{"volumes", []string{"--tmpfs=/nix/more", "--volume=" + t.TempDir() + ":/data",
				"--volume=" + store["data"] + ":/data2"}},
			{"another path", []string{"--volume=" + store["foreign"] + ":" + store["foreign"],
				"--volume=" + store["closureInfo"] + ":/other"}},
			{"all privileges", []string{"--cap-add=ALL", "--security-opt=seccomp=unconfined"}},
		} {
			if mode == "bind" && slices.Contains(c.flags, writable) {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				id := container{runtime: runtime, mode: mode, root: "env", flags: c.flags}.start(t)
				found, status := verify(t, id[:12])
				checkOK(t, found, status, id)
				if v := found.of(t, id); v.Paths < paths || v.Contents || v.Name == "" {
					t.Errorf("%+v, want %d paths", v, paths)
				}
				found, status = verify(t, "--contents")
				checkOK(t, found, status, id)
				if v := found.of(t, id); !v.Contents {
					t.Error("the contents were not compared")
				}
			})
		}
	})
}
