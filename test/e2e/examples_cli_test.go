// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exampleLines are the lines of a command's examples, as --help has them.
func exampleLines(t *testing.T, command ...string) []string {
	t.Helper()
	_, examples, found := strings.Cut(mustCLI(t, append(command, "--help")...), "Examples:\n")
	if !found {
		t.Fatalf("%q has no examples", command)
	}
	examples, _, _ = strings.Cut(examples, "\n\n")
	var lines []string
	for line := range strings.Lines(examples) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// The examples in --help work, in this order, with the programs of this store for those
// that they name.
func TestRunExamples(t *testing.T) {
	removeDevices(t)
	dir := t.TempDir()
	if err := os.Symlink(store["env"], dir+"/result"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(dir+"/views/web", 0o755), os.Mkdir(dir+"/mnt", 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer(
		"/nix/store/…-hello-2.12 /mnt", store["script"]+" "+dir+"/mnt",
		"/nix/store/…-hello-2.12", store["script"], `jq -r '.[] | select(.state != "ok") | .name'`, "grep -q hello",
		"/nix/store/…-bash-5.2", store["bash"], "/nix/store/…-coreutils-9.1", store["coreutils"],
		"/srv/views/web", dir+"/views/web", "/etc/systemd/system/", dir+"/",
		"hello --greeting=hi", "echo hi", "-- hello", "-- echo hi", "curl https://example.org",
		"cat /etc/ssl/openssl.cnf",
		"-- make", "-- bash -c 'true >made'", "jq -r '.[].dir'", "grep -q views",
	)
	if err := os.MkdirAll("/etc/ssl", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/ssl/openssl.cnf", []byte("hi\n"))
	taken := func(line string) string {
		if strings.HasSuffix(line, "run ./result") {
			return strings.ReplaceAll(line, "./result", store["script"])
		}
		return here.Replace(line)
	}
	for _, command := range [][]string{
		{"view", "mount"}, {"view", "list"}, {"view", "umount"},
		{"cdi", "generate"}, {"cdi", "list"}, {"cdi", "remove"}, {"run"}, {"confine"},
	} {
		if command[0] == "run" {
			mustCLI(t, "view", "umount", dir+"/mnt") // the directory is a volume of what follows
		}
		for _, line := range exampleLines(t, command...) {
			ours, its := terminal(t)
			cmd := exec.Command("sh", "-euc", taken(line))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+*bin+":"+os.Getenv("PATH"))
			cmd.Stdin = its
			if _, err := ours.WriteString("exit\r"); err != nil {
				t.Fatal(err)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", taken(line), err, out)
			}
			_ = its.Close()
			_ = ours.Close()
		}
	}
	if _, err := os.Stat(dir + "/made"); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}
