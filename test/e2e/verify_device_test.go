// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// A container that has its closure by a CDI device carries no annotation: its record says by
// which way it came, and the device's entry what was asked for.
func TestVerifyDevice(t *testing.T) {
	const file = "/etc/cdi/verified.json"
	device := func(root string) {
		t.Helper()
		text, err := json.Marshal(object{
			"cdiVersion": "0.5.0", "kind": "nix-closure/verified",
			"devices": []object{{"name": "env", "containerEdits": object{"hooks": []object{
				{
					"hookName": "createRuntime", "path": *bin + "/nix-closure-hook", "env": []string{"GOMAXPROCS=1"},
					"args": []string{"nix-closure-hook", "--annotation", "nix-closure/roots=" + root, "createRuntime"},
				},
				{
					"hookName": "poststop", "path": *bin + "/nix-closure-hook", "env": []string{"GOMAXPROCS=1"},
					"args": []string{"nix-closure-hook", "--annotation", "nix-closure/roots=" + root, "poststop"},
				},
			}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll("/etc/cdi", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	device(store["env"])
	t.Cleanup(func() { removeAll(t, file) })
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			c := container{runtime: runtime, flags: []string{"--detach", "--device=nix-closure/verified=env"}}
			stdout, stderr, err := call("podman", c.args(store["env"]+"/bin/sleep", "600")...)
			if err != nil {
				t.Fatalf("%v %s", err, stderr)
			}
			id := strings.TrimSpace(stdout)
			t.Cleanup(func() { remove(t, id) })
			found, status := verify(t, id)
			checkOK(t, found, status, id)
			if i := inspect(t, id)[0]; i.Way != "device" {
				t.Errorf("%+v", i)
			}
			// Without the record, the entry shows that a closure was asked for.
			record := runtimeDir + "/containers/" + id + ".json"
			text, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(record); err != nil {
				t.Fatal(err)
			}
			found, status = verify(t)
			if v := found.of(t, id); status != 1 || !strings.Contains(v.says(), "the hook was not called") {
				t.Errorf("status %d\n%s", status, v.says())
			}
			if err := os.WriteFile(record, text, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}
