// SPDX-License-Identifier: Apache-2.0

package ociruntime

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

func TestLookup(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(dir+"/first", 0o755), os.Mkdir(dir+"/second", 0o755), os.Mkdir(dir+"/first/directory", 0o755),
		os.WriteFile(dir+"/first/plain", nil, 0o644), os.WriteFile(dir+"/second/oci", nil, 0o755),
		os.WriteFile(dir+"/first/both", nil, 0o755), os.WriteFile(dir+"/second/both", nil, 0o755),
		os.Symlink(self, dir+"/first/sh"), os.Symlink(self, dir+"/first/another-runc"),
		os.Symlink("nowhere", dir+"/first/dangling"), os.Symlink("../second/oci", dir+"/first/to-oci"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("PATH", dir+"/first:"+dir+"/second")
	for _, c := range []struct{ name, want, err string }{
		{name: "oci", want: dir + "/second/oci"},
		{name: "both", want: dir + "/first/both"},
		{name: "to-oci", want: dir + "/first/to-oci"}, // crun goes by what it is called
		{name: "sh", want: sh},                        // the first is this program
		{name: dir + "/second/oci", want: dir + "/second/oci"},
		{name: "another-runc", err: `runtime = "another-runc": neither on PATH nor in the usual places`},
		{name: "plain", err: `runtime = "plain": neither on PATH`},
		{name: "", err: `runtime = "": neither a name nor an absolute path`},
		{name: "second/oci", err: `runtime = "second/oci": neither a name`},
		{name: self, err: `runtime = "` + self + `": is nix-closure-runtime itself`},
		{name: dir + "/first/another-runc",
			err: `runtime = "` + dir + `/first/another-runc": is nix-closure-runtime itself`},
		{name: dir + "/first/dangling", err: `runtime = "` + dir + `/first/dangling": no such file or directory`},
		{name: dir + "/first/plain", err: `runtime = "` + dir + `/first/plain": permission denied`},
		{name: dir + "/first/directory", err: `runtime = "` + dir + `/first/directory": not a file`},
	} {
		got, err := Lookup(c.name)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%q: %q, %v; want %q, %s", c.name, got, err, c.want, c.err)
		}
	}
	t.Setenv("PATH", "first:.") // a relative PATH may be anyone's
	if got, err := Lookup("both"); err == nil {
		t.Errorf("found %q", got)
	}
}
