// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// object is a JSON object.
type object = map[string]any

// bundle is a container for a runtime to run without an engine.
type bundle struct {
	dir    string
	config object
}

// bundles counts, for names.
var bundles int

// newBundle makes a bundle whose root has a static busybox, which runs script,
// and the hooks for these stages.
func newBundle(t *testing.T, annotations map[string]string, script string, stages ...string) *bundle {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/rootfs/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/rootfs/bin/busybox", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "runc", "spec", "--bundle", dir)
	text, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{dir: dir}
	if err := json.Unmarshal(text, &b.config); err != nil {
		t.Fatal(err)
	}
	process := b.config["process"].(object)
	process["terminal"] = false
	process["args"] = []string{"/bin/busybox", "sh", "-c", script}
	delete(process, "rlimits")
	b.config["annotations"] = annotations
	b.config["root"].(object)["readonly"] = false
	hooks := object{}
	for _, stage := range stages {
		hooks[stage] = []object{b.hook("nix-closure-hook", stage)}
	}
	b.config["hooks"] = hooks
	return b
}

// from has an engine call the hook, at these stages.
func (b *bundle) from(engine string, stages ...string) {
	hooks := object{}
	for _, stage := range stages {
		hooks[stage] = []object{b.hook("nix-closure-hook", "--engine", engine, stage)}
	}
	b.config["hooks"] = hooks
}

func (b *bundle) hook(args ...string) object {
	return object{"path": filepath.Join(*bin, "nix-closure-hook"), "args": args, "env": []string{"GOMAXPROCS=1"}}
}

func (b *bundle) linux() object { return b.config["linux"].(object) }

func (b *bundle) addMount(m object) { b.config["mounts"] = append(b.config["mounts"].([]any), m) }

// run writes config.json and runs the container to its end.
func (b *bundle) run(t *testing.T, runtime string) (id, stdout, stderr string, err error) {
	t.Helper()
	bundles++
	id = fmt.Sprintf("bundle-%d", bundles)
	cmd := b.command(t, runtime, id)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return id, out.String(), errs.String(), err
}

// command is the runtime's to run the container.
func (b *bundle) command(t *testing.T, runtime, id string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.dir+"/config.json", text, 0o644); err != nil {
		t.Fatal(err)
	}
	return exec.Command(runtime, "run", "--bundle", b.dir, id)
}

// callHook runs the hook as a runtime does, with an environment that it must
// not look at.
func callHook(stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errs strings.Builder
	cmd := exec.Command(filepath.Join(*bin, "nix-closure-hook"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = []string{"PATH=/nowhere", "LD_PRELOAD=/nowhere.so", "HOME=/nowhere", "NIX_STORE_DIR=/nowhere",
		"NIX_CONFIG=nonsense"}
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func state(id string, pid int, bundle string, annotations map[string]string) string {
	text, err := json.Marshal(object{
		"ociVersion": "1.0.2", "id": id, "status": "created", "pid": pid, "bundle": bundle, "annotations": annotations,
	})
	if err != nil {
		panic(err)
	}
	return string(text)
}
