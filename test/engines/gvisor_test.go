// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// configureGVisor configures gVisor's shim, and puts a script of its name in dir.
//
// The shim sets its own oom_score_adj to the least, which needs CAP_SYS_RESOURCE.
// Without it, it ends, unless it is in a user namespace, as it tells from uid_map:
// the script has it take itself for such a one. A mount on a process's directory in
// /proc goes with the process.
func configureGVisor(t *testing.T, dir string) {
	t.Helper()
	const config = "/run/containerd/runsc/config.toml" // the first place where it looks
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	stack := filepath.Join(*bin, "stack")
	const shim = "containerd-shim-runsc-v1"
	for name, text := range map[string]string{
		config: fmt.Sprintf("binary_name = %q\nroot = \"/run/runsc\"\n[runsc_config]\n"+
			"platform = \"systrap\"\nnetwork = \"none\"\nignore-cgroups = \"true\"\n", stack+"/runsc"),
		dir + "/uid_map": "0 0 1\n",
		dir + "/" + shim: fmt.Sprintf("#!/bin/sh\nmount --bind %s/uid_map /proc/$$/uid_map && exec %s/%s \"$@\"\n", dir,
			stack, shim),
	} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

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
		return []object{{"path": filepath.Join(*bin, "nix-closure-hook"), "args": []string{"nix-closure-hook", stage},
			"env": []string{"GOMAXPROCS=1"}}}
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
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"},
			{"type": "uts"}, {"type": "network"}}},
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
			"busybox sha256sum " + store["bash"] + "/bin/bash | busybox cut -c-64; busybox ls -d " + store["foreign"] +
			" 2>/dev/null; true"
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
		if all := append(slices.Clone(want), string(sum[:64])); !slices.Equal(names(string(out)),
			names(strings.Join(all, " "))) {
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
	if !slices.ContainsFunc(strings.Split(string(log), "\n"), func(l string) bool {
		return strings.Contains(l, "container gvisor-overlay: making the view: an overlay cannot show the "+
			"closure here: ") &&
			strings.Contains(l, "operation not permitted; ask for mode bind or auto")
	}) {
		t.Errorf("the log lacks the reason: %s", log)
	}
	nothingLeft(t)
}

// With the plugin and gVisor's own shim, each container of a pod sees its closure.
func TestPodUnderGVisor(t *testing.T) {
	n := newNode(t, nodeOptions{gvisor: true})
	n.startPlugin(t, "--gvisor", "other,gvisor")
	annotations := roots("env")
	maps.Copy(annotations, map[string]string{"b.nix-closure/roots": store["tools"], "b.nix-closure/mode": "bind",
		"c.nix-closure/mode": "overlay", "d.nix-closure/writable": "true"})
	p := n.run(t, "gvisor", podConfig(t, annotations))
	for name, attribute := range map[string]string{"a": "env", "b": "tools"} {
		id := p.start(t, name)
		if got, want := n.sees(t, id), closureOf(t, store[attribute]); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", name, got, want)
		}
		if version := n.exec(t, id, "/bin/busybox", "cat", "/proc/version"); !strings.Contains(version, "gvisor") {
			t.Errorf("%s does not run under gVisor: %s", name, version)
		}
	}
	for _, name := range []string{"c", "d"} {
		_, err := p.create(t.Context(), name)
		const want = "container %s: nix-closure-nri: gVisor calls hooks in a user namespace, where the kernel makes " +
			"no overlay that shows the closure; ask for mode bind or auto"
		if want := fmt.Sprintf(want, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with an overlay: %v\nwant %s", err, want)
		}
	}
	p.remove(t)
	nothingLeft(t)
}
