// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/nix-closure/nix-closure/test/nixos"
)

// nixosWrapper is the path of the wrapper on NixOS.
const nixosWrapper = "/run/current-system/sw/bin/nix-closure-runtime"

// buildNixOS builds a NixOS system, whose nix-closure has the programs of *bin, and returns
// its /etc and the canary's program, if there is one.
func buildNixOS(t *testing.T, module, options string) (etc, canary string) {
	t.Helper()
	out := nixos.Build(t, fmt.Sprintf(`let
		c = (s.nixos {
			imports = [ %s ];
			virtualisation.nix-closure = {
				enable = true;
				package = s.pkgs.runCommand "programs" { } "mkdir -p $out/bin; ln -s %s/nix-closure* $out/bin/";
				%s
			};
		}).config;
		in s.pkgs.runCommand "system" { } ''
			mkdir $out
			ln -s ${c.system.build.etc} $out/etc
			ln -s ${c.systemd.services.nix-closure-canary.serviceConfig.ExecStart or "/none"} $out/canary
		''`, module, *bin, options))
	canary, err := os.Readlink(out + "/canary")
	if err != nil {
		t.Fatal(err)
	}
	return out + "/etc", canary
}

// nixosContainerd builds containerd's configuration of a NixOS system, and the canary's
// program.
func nixosContainerd(t *testing.T, settings map[string]any, options string) (config, canary string) {
	t.Helper()
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/settings.json"
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	etc, canary := buildNixOS(t, fmt.Sprintf(`(
		let settings = builtins.fromJSON (builtins.readFile %s); in {
			virtualisation.containerd.enable = true;
			virtualisation.containerd.settings = settings // {
				version = s.lib.mkForce settings.version;
				plugins = s.lib.mkForce settings.plugins;
			};
		}
	)`, file), options)
	return etc + "/standin/containerd.toml", canary
}

// runCanary runs the canary's program.
func runCanary(canary string) (said string, err error) {
	out, err := exec.Command(canary).CombinedOutput()
	return string(out), err
}

// readTOML decodes a file.
func readTOML(t *testing.T, path string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseTOML(t, text)
}

func parseTOML(t *testing.T, text []byte) (value map[string]any) {
	t.Helper()
	if err := toml.Unmarshal(text, &value); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return value
}

// at is a value in nested tables; nil: there is none.
func at(value any, keys ...string) any {
	for _, key := range keys {
		table, _ := value.(map[string]any)
		value = table[key]
	}
	return value
}

// inForce is what containerd has of a configuration.
func inForce(t *testing.T, config string) map[string]any {
	t.Helper()
	out, err := exec.Command(filepath.Join(*bin, "stack/containerd"), "--config", config, "config", "dump").Output()
	if err != nil {
		t.Fatalf("containerd --config %s config dump: %v", config, err)
	}
	return parseTOML(t, out)
}

// link makes a link, for the length of a test.
func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
}

// The NixOS module's file for containerd is what install writes, in both versions of
// containerd's configuration, and containerd has the same in force. Pods of the default
// handler have their closure then, and the canary's program says so.
func TestNixOSContainerd(t *testing.T) {
	const cri, oldCRI = "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	n := newNode(t, nodeOptions{})
	options := map[string]any{"BinaryName": filepath.Join(*bin, "stack/runc"), "NoNewKeyring": true}
	runc := map[string]any{
		"runtime_type": "io.containerd.runc.v2", "pod_annotations": []any{"example.org/*"},
		"privileged_without_host_devices": true,
		"options":                         options,
	}
	handlers := map[string]any{"runtimes": map[string]any{"runc": runc}}
	settings := readTOML(t, n.dir+"/config.toml")
	delete(settings, "imports")
	at(settings, "plugins", cri).(map[string]any)["containerd"] = handlers
	old := map[string]any{
		"version": 2, "plugins": map[string]any{oldCRI: map[string]any{"containerd": handlers}},
	}
	wrapped := filepath.Join(*bin, "nix-closure-runtime")
	// install looks for a program in the usual places, which nothing runs with these files.
	link(t, filepath.Join(*bin, "stack/containerd"), "/usr/local/bin/containerd")

	var served, canary string
	for name, settings := range map[string]map[string]any{"2": old, "3": settings} {
		config, program := nixosContainerd(t, settings, `
			containerd = { enable = true; setAsDefault = true; }; canary.enable = true;`)
		if name == "3" {
			served, canary = config, program
		}
		without, _ := nixosContainerd(t, settings, "")
		if dump := inForce(t, without); at(dump, "plugins", cri, "containerd", "runtimes", "nix-closure") != nil {
			t.Errorf("version %s: there is a handler without the option", name)
		}
		dir := t.TempDir()
		text, err := os.ReadFile(without)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/config.toml", text, 0o644); err != nil {
			t.Fatal(err)
		}
		nixClosure(t, "install", "containerd", "--set-as-default", "--config", dir+"/config.toml")
		want, wantInForce := readTOML(t, "/etc/containerd/conf.d/50-nix-closure.toml"), inForce(t, dir+"/config.toml")
		nixClosure(t, "install", "--uninstall", "containerd")

		imports, _ := readTOML(t, config)["imports"].([]any)
		if len(imports) != 1 {
			t.Fatalf("version %s: the module's configuration imports %v", name, imports)
		}
		got, gotInForce := readTOML(t, imports[0].(string)), inForce(t, config)
		for _, file := range []map[string]any{got, gotInForce} {
			options := at(file, "plugins", cri, "containerd", "runtimes", "nix-closure", "options").(map[string]any)
			if options["BinaryName"] != nixosWrapper {
				t.Errorf("version %s: the handler is %v", name, options)
			}
			options["BinaryName"] = wrapped
		}
		delete(gotInForce, "imports")
		delete(wantInForce, "imports")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("version %s: the module's file has\n%v\nand install's\n%v", name, got, want)
		}
		if !reflect.DeepEqual(gotInForce, wantInForce) {
			t.Errorf("version %s: with the module, containerd has\n%v\nand with install\n%v", name, gotInForce,
				wantInForce)
		}
	}

	sees := func() []string {
		t.Helper()
		p := n.run(t, "", podConfig(t, roots("env")))
		defer p.remove(t)
		return n.sees(t, p.start(t, "a", wholeStore))
	}
	if !slices.Contains(sees(), filepath.Base(store["foreign"])) {
		t.Error("a container has its closure before the module is in force")
	}
	if said, err := runCanary(canary); err == nil || !strings.Contains(said, "containerd: the canary was not refused") {
		t.Errorf("the canary's program finds nothing without the wrapper: %v %s", err, said)
	}
	text, err := os.ReadFile(served)
	if err != nil {
		t.Fatal(err)
	}
	link(t, wrapped, nixosWrapper)
	n.configure(t, text, "")
	if got, want := sees(), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if said, err := runCanary(canary); err != nil || !strings.Contains(said, "[ok] containerd: the canary is refused") {
		t.Errorf("the canary's program: %v %s", err, said)
	}
	nothingLeft(t)
}

// Docker has the wrapper, and the devices, by the file that NixOS gives it.
func TestNixOSDocker(t *testing.T) {
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	etc, canary := buildNixOS(t, "{ virtualisation.docker.enable = true; }", `
		docker = { enable = true; setAsDefault = true; };
		canary.enable = true;
		cdi.closures.tools.roots = [ "`+store["tools"]+`" ];`)
	text, err := os.ReadFile(etc + "/standin/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	link(t, filepath.Join(*bin, "nix-closure-runtime"), nixosWrapper)
	link(t, etc+"/cdi/nix-closure.json", cdiFile)
	d := newDockerWith(t, text)
	for attribute, devices := range map[string][]string{"env": nil, "tools": {"nix-closure/closure=tools"}} {
		var says map[string]string
		if devices == nil {
			says = roots(attribute)
		}
		sees, err := d.runOnce(t, "busybox", says, devices...)
		if want := closureOf(t, store[attribute]); err != nil || !slices.Equal(sees, want) {
			t.Errorf("%s: %v: it sees %q", attribute, err, sees)
		}
	}
	sees, err := d.runOnce(t, "busybox", nil)
	if err != nil || !slices.Contains(sees, filepath.Base(store["foreign"])) {
		t.Errorf("without both: %v: it sees %q", err, sees)
	}
	if said, err := runCanary(canary); err != nil || !strings.Contains(said, "[ok] docker: the canary is refused") {
		t.Errorf("the canary's program: %v %s", err, said)
	}
}
