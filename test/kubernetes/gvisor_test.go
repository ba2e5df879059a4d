// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gvisorBundle is a bundle whose root has a busybox, which runs script, and the
// hook at the stage that gVisor's gofer calls, in a user namespace of its own.
func gvisorBundle(t *testing.T, annotations map[string]string, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	hook := func(stage string) []object {
		return []object{{"path": filepath.Join(*bin, "nix-closure-hook"), "args": []string{"nix-closure-hook", stage}, "env": []string{"LC_ALL=C"}}}
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "cwd": "/", "env": []string{"PATH=/bin"},
			"args": []string{"/bin/busybox", "sh", "-c", script},
		},
		"root":        object{"path": "rootfs"},
		"annotations": annotations,
		"hooks":       object{"createContainer": hook("createContainer"), "poststop": hook("poststop")},
		"linux":       object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/rootfs/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"rootfs/bin/busybox": busybox, "config.json": config} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func runsc(t *testing.T, bundle, id string) *exec.Cmd {
	t.Helper()
	return exec.Command(filepath.Join(*bin, "stack/runsc"), "--platform=systrap", "--network=none", "--ignore-cgroups",
		"--root", "/run/runsc", "run", "--bundle", bundle, id)
}

// Under gVisor, a container has exactly its closure by bind mounts, which auto
// takes; an overlay is refused, with the reason.
func TestGVisor(t *testing.T) {
	want := closureOf(t, store["env"])
	for _, mode := range []string{"auto", "bind"} {
		annotations := roots("env")
		annotations["nix-closure/mode"] = mode
		script := "busybox ls -A /nix/store; busybox touch /nix/store/new 2>/dev/null && echo written; " +
			"busybox sha256sum " + store["bash"] + "/bin/bash | busybox cut -c-64; busybox ls -d " + store["foreign"] + " 2>/dev/null; true"
		var errs strings.Builder
		cmd := runsc(t, gvisorBundle(t, annotations, script), "gvisor-"+mode)
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v %s", mode, err, errs.String())
		}
		sum, err := exec.Command("sha256sum", store["bash"]+"/bin/bash").Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(string(out))
		if all := append(slices.Clone(want), string(sum[:64])); !slices.Equal(names(string(out)), names(strings.Join(all, " "))) {
			t.Errorf("%s: %q\nwant %q", mode, got, all)
		}
		nothingLeft(t)
	}

	annotations := roots("env")
	annotations["nix-closure/mode"] = "overlay"
	out, err := runsc(t, gvisorBundle(t, annotations, "echo it runs"), "gvisor-overlay").Output()
	if err == nil || len(out) > 0 {
		t.Errorf("with an overlay it starts: %s", out)
	}
	log, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	const reason = "container gvisor-overlay: making the view: an overlay cannot show the closure here: "
	if !slices.ContainsFunc(lines[max(0, len(lines)-4):], func(l string) bool {
		return strings.Contains(l, reason) && strings.Contains(l, "operation not permitted; ask for mode bind or auto")
	}) {
		t.Errorf("the log lacks the reason: %q", lines[max(0, len(lines)-4):])
	}
	nothingLeft(t)
}
