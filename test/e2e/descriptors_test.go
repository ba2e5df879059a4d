// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const descriptor3 = "file descriptor 3 of the container's process"

// A descriptor of a directory of the host would give a container all of it, by `..`.
func TestDescriptors(t *testing.T) {
	data := t.TempDir() + "/file"
	if err := os.WriteFile(data, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	const isStore = "/nix/store of the host, and leads to the store"
	for _, runtime := range runtimes {
		for _, c := range []struct {
			path, want string
			how        string // it is handed on
		}{
			{storeDir, isStore, "--preserve-fds=1"},
			{storeDir, isStore, "LISTEN_FDS=1"},
			{"/usr", "/ of the host, and leads to the store", "--preserve-fds=1"},
			{store["env"], isStore, "--preserve-fds=2"},
			{"/nix/var/nix/db/db.sqlite", "/nix/var/nix/db/db.sqlite of the host, and leads to the store",
				"--preserve-fds=1"},
			{data, "", "--preserve-fds=1"},
			{storeDir, "", ""}, // the runtime closes it
		} {
			f, err := os.Open(c.path)
			if err != nil {
				t.Fatal(err)
			}
			b := newBundle(t, roots(store["env"]), "cat <&3 2>&1; ls /proc/self/fd/3/", "createRuntime", "poststop")
			cmd := b.command(t, runtime, "descriptors-"+runtime)
			if strings.HasPrefix(c.how, "--") {
				cmd.Args = slices.Insert(cmd.Args, 2, c.how)
			} else if c.how != "" {
				cmd.Env = append(os.Environ(), c.how)
			}
			var out strings.Builder
			cmd.Stdout, cmd.ExtraFiles = &out, []*os.File{f}
			err = cmd.Run()
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if c.want == "" {
				if c.how == "" && strings.Contains(out.String(), "test-env") ||
					c.how != "" && !strings.HasPrefix(out.String(), "data") {
					t.Errorf("%s, %s: %v %q %s", runtime, c.path, err, out.String(), lastLog(t))
				}
			} else if said := lastError(t); err == nil || out.String() != "" ||
				!strings.Contains(said, descriptor3+": is "+c.want) {
				t.Errorf("%s, %s: %v %q; the log says %s", runtime, c.path, err, out.String(), said)
			}
			nothingLeft(t)
		}
	}
}

// The same by podman, which hands descriptors on to the runtime.
func TestPreservedDescriptors(t *testing.T) {
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env", flags: []string{"--rm", "--preserve-fds", "1"}}
		args := strings.Join(c.args(store["env"]+"/bin/ls", "/proc/self/fd/3/"), "' '")
		stdout, stderr, err := call("bash", "-c", "exec podman '"+args+"' 3</nix")
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, descriptor3) {
			t.Errorf("%s: %v %q %s; the log says %s", runtime, err, stdout, stderr, said)
		}
		nothingLeft(t)
	}
}
