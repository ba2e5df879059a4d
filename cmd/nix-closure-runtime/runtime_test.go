// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestLookupRuntime(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(dir+"/first", 0o755), os.Mkdir(dir+"/second", 0o755), os.Mkdir(dir+"/first/directory", 0o755),
		os.WriteFile(dir+"/first/plain", nil, 0o644), os.WriteFile(dir+"/second/oci", nil, 0o755), os.WriteFile(dir+"/first/both", nil, 0o755), os.WriteFile(dir+"/second/both", nil, 0o755),
		os.Symlink(self, dir+"/first/sh"), os.Symlink(self, dir+"/first/another-runc"), os.Symlink("nowhere", dir+"/first/dangling"), os.Symlink("../second/oci", dir+"/first/to-oci"),
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
		{name: "to-oci", want: dir + "/first/to-oci"}, // crun's behaviour depends on its name
		{name: "sh", want: sh},                        // the first is this program
		{name: dir + "/second/oci", want: dir + "/second/oci"},
		{name: "another-runc", err: `runtime = "another-runc": neither on PATH nor in the usual places`},
		{name: "plain", err: `runtime = "plain": neither on PATH`},
		{name: "", err: `runtime = "": neither a name nor an absolute path`},
		{name: "second/oci", err: `runtime = "second/oci": neither a name`},
		{name: self, err: `runtime = "` + self + `": is nix-closure-runtime itself`},
		{name: dir + "/first/another-runc", err: `runtime = "` + dir + `/first/another-runc": is nix-closure-runtime itself`},
		{name: dir + "/first/dangling", err: `runtime = "` + dir + `/first/dangling": no such file or directory`},
		{name: dir + "/first/plain", err: `runtime = "` + dir + `/first/plain": permission denied`},
		{name: dir + "/first/directory", err: `runtime = "` + dir + `/first/directory": not a file`},
	} {
		got, err := lookupRuntime(c.name)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%q: %q, %v; want %q, %s", c.name, got, err, c.want, c.err)
		}
	}
	t.Setenv("PATH", "first:.") // a relative PATH may be anyone's
	if got, err := lookupRuntime("both"); err == nil {
		t.Errorf("found %q", got)
	}
}

// Commands on an existing container go to the runtime that created it.
func TestChoose(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runc", "crun", "youki"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"of-runc/state.json", "of-crun/status", "nobodys/other"} {
		if err := errors.Join(os.MkdirAll(dir+"/root/"+filepath.Dir(file), 0o755), os.WriteFile(dir+"/root/"+file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	for _, c := range []struct{ configured, line, want string }{
		{"runc", "kill of-runc KILL", "/runc"},
		{"runc", "kill of-crun KILL", "/crun"},
		{"crun", "delete --force of-runc", "/runc"},
		{"crun", "exec --cwd /x of-crun ls of-runc", "/crun"},
		{"/elsewhere/crun-1.20", "state of-runc", "/runc"},
		{"youki", "state of-runc", "/youki"}, // youki keeps its state under the same name
		{"crum", "state of-crun", "/crun"},
		{"runc", "state nobodys", "/runc"},
		{"crun", "list", "/crun"},
		{"crun", "delete ../of-runc", "/crun"},
		{"crun", "delete .", "/crun"},
		{"crum", "state nobodys", ""},
		// A command that creates a container ignores existing state.
		{"crun", "create of-runc", "/crun"},
		{"crum", "create of-crun", ""},
	} {
		args := append([]string{"--root", dir + "/root"}, strings.Fields(c.line)...)
		got, err := parse(args).choose(args, c.configured)
		if want := c.want; want != "" && got != dir+want || (err == nil) != (want != "") {
			t.Errorf("%s, %s: %q, %v; want %q", c.configured, c.line, got, err, c.want)
		}
	}
}
