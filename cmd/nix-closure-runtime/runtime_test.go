// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Commands on an existing container go to the runtime that created it.
func TestChoose(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runc", "crun", "youki"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"of-runc/state.json", "of-crun/status", "nobodys/other"} {
		if err := errors.Join(os.MkdirAll(dir+"/root/"+filepath.Dir(file), 0o755),
			os.WriteFile(dir+"/root/"+file, nil, 0o644)); err != nil {
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
