// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

// finding is one of nix-closure doctor --json.
type finding struct {
	ID, Severity, What, Consequence, Advice string
	Fix                                     []string
}

// doctor runs nix-closure doctor for one engine.
func doctor(t *testing.T, engine string, args ...string) []finding {
	t.Helper()
	begin := time.Now()
	args = append([]string{"doctor", "--json", "--engine", engine}, args...)
	out, err := exec.Command(filepath.Join(*bin, "nix-closure"), args...).Output()
	if took := time.Since(begin); len(args) == 4 && took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	var d struct{ Findings []finding }
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	open := false
	for _, f := range d.Findings {
		open = open || f.Severity == "open"
	}
	if open != (err != nil) {
		t.Errorf("%v: %s", err, out)
	}
	return d.Findings
}

// has returns the finding with this ID.
func has(findings []finding, id string) *finding {
	for i := range findings {
		if findings[i].ID == id {
			return &findings[i]
		}
	}
	return nil
}

// apply does what findings say; restart is the service manager's part.
func apply(t *testing.T, findings []finding, manager string, restart func()) {
	t.Helper()
	for _, f := range findings {
		for _, command := range f.Fix {
			if command == manager {
				restart()
				continue
			}
			if out, err := exec.Command("sh", "-euc", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", command, err, out)
			}
		}
	}
}

// nixClosure runs the program, and returns what it prints.
func nixClosure(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(*bin, "nix-closure"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v %s%s", args, err, &out, &errs)
	}
	return out.String(), errs.String()
}

// restart ends containerd, and starts it again.
func (n *node) restart(t *testing.T) {
	t.Helper()
	_, _ = n.client.Close(), n.connection.Close()
	_ = n.process.Process.Signal(syscall.SIGTERM)
	_ = n.process.Wait()
	n.start(t)
}

// configure adds to config.toml, and starts containerd with it.
func (n *node) configure(t *testing.T, before []byte, more string) {
	t.Helper()
	if err := os.WriteFile(n.dir+"/config.toml", append(bytes.Clone(before), more...), 0o644); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
}

// handlers is a part of a config.toml: the wrapper as a handler, with lines in it.
func wrapperHandler(program, lines string) string {
	const table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nix-closure"
	return "\n" + table + "]\nruntime_type = 'io.containerd.runc.v2'\n" + lines +
		table + ".options]\nBinaryName = '" + program + "'\n"
}

const (
	isDefault  = "\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nix-closure'\n"
	passesBoth = "pod_annotations = ['nix-closure/*', '*.nix-closure/*']\ncontainer_annotations = ['nix-closure/*', " +
		"'*.nix-closure/*']\n"
)

// Each is found in a containerd that runs, with commands that mend it as they are
// printed. Where it starts a container without its closure then, that is seen too.
func TestDoctorContainerd(t *testing.T) {
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	n := newNode(t, nodeOptions{})
	before, err := os.ReadFile(n.dir + "/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(*bin, "nix-closure-runtime")
	for _, c := range []struct {
		name, config, id, severity string
		plugin, starts             bool
		disabled                   bool // NRI
		advice                     bool // no command mends it
	}{
		{name: "no way", id: "containerd-no-way", severity: "open", starts: true},
		{name: "not the default", config: wrapperHandler(program, passesBoth), id: "containerd-default",
			severity: "open", starts: true},
		{name: "no annotations", config: isDefault + wrapperHandler(program, ""), id: "containerd-annotations",
			severity: "open", starts: true},
		{
			name: "annotations of the pod only", id: "containerd-annotations", severity: "open",
			config: isDefault + wrapperHandler(program,
				"pod_annotations = ['nix-closure/*']\ncontainer_annotations = ['nix-closure/*', '*.nix-closure/*']\n"),
		},
		{
			name: "a star does not match a slash", id: "containerd-annotations", severity: "open", starts: true,
			config: isDefault + wrapperHandler(program, "pod_annotations = ['*']\ncontainer_annotations = ['*']\n"),
		},
		{
			name: "no annotations of the container", id: "containerd-container-annotations", severity: "open",
			config: isDefault + wrapperHandler(program, "pod_annotations = ['nix-closure/*', '*.nix-closure/*']\n"),
		},
		{name: "the wrapper is missing", config: isDefault + wrapperHandler("/gone/nix-closure-runtime", passesBoth),
			id: "program-missing", severity: "closed"},
		{name: "the plugin is not required", plugin: true, id: "nri-not-required", severity: "open"},
		{
			name: "the plugin is required, and no validator", plugin: true, id: "nri-not-validated", severity: "open",
			config: "[plugins.'io.containerd.nri.v1.nri'.default_validator]\nrequired_plugins = ['nix-closure']\n",
		},
		{name: "NRI is disabled", disabled: true, id: "nri-disabled", severity: "open", starts: true},
		{
			name: "another cgroup driver than runc's", id: "containerd-cgroup", severity: "warning", advice: true,
			config: isDefault + wrapperHandler(program, passesBoth) + "SystemdCgroup = true\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := before
			if c.disabled {
				base = bytes.Replace(before, []byte("  socket_path ="), []byte("  disable = true\n  socket_path ="), 1)
				// It waits for an engine that has none.
				plugin := exec.Command(filepath.Join(*bin, "nix-closure-nri"), "--socket", n.nriSocket())
				if err := plugin.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _, _ = plugin.Process.Kill(), plugin.Wait() })
			}
			n.configure(t, base, c.config)
			if c.plugin {
				n.startPlugin(t)
			}
			findings := doctor(t, "containerd")
			f := has(findings, c.id)
			if f == nil || f.Severity != c.severity || (len(f.Fix) == 0) != c.advice {
				t.Errorf("want %s %s: %+v", c.severity, c.id, findings)
			}
			if c.advice {
				return
			}
			if started := has(doctor(t, "containerd", "--canary"), "canary") != nil; started != c.starts {
				t.Errorf("the canary started: %v", started)
			}
			apply(t, findings, "systemctl restart containerd", func() { n.restart(t) })
			if findings := doctor(t, "containerd", "--canary"); len(findings) > 0 {
				t.Errorf("after %+v: %+v", f, findings)
			}
			nixClosure(t, "install", "--uninstall", "containerd")
			if _, err := os.Stat("/etc/containerd/conf.d"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after --uninstall: %v", err)
			}
		})
	}
	nothingLeft(t)
}

// What the files say holds when containerd is started again, and not before.
func TestDoctorStale(t *testing.T) {
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	n := newNode(t, nodeOptions{})
	t.Cleanup(func() { nixClosure(t, "install", "--uninstall", "containerd") })
	nixClosure(t, "install", "containerd", "--set-as-default", "--config", n.dir+"/config.toml")
	findings := doctor(t, "containerd")
	if f := has(findings, "containerd-stale"); len(findings) != 1 || f == nil || f.Severity != "open" {
		t.Errorf("%+v", findings)
	}
	apply(t, findings, "systemctl restart containerd", func() { n.restart(t) })
	if findings := doctor(t, "containerd"); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	// And what it runs with may be better than what it will have.
	nixClosure(t, "install", "--uninstall", "containerd")
	if f := has(doctor(t, "containerd"), "containerd-no-way"); f == nil || f.Severity != "open" {
		t.Errorf("%+v", f)
	}
}

// install adds a file to containerd's, twice; what the node has stays, and it is as the
// node's own runtime is. A pod that names no RuntimeClass has its closure then.
func TestInstallContainerd(t *testing.T) {
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	own := "\n# ours\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n" +
		"runtime_type = 'io.containerd.runc.v2'\npod_annotations = " +
		"['example.org/*']\nprivileged_without_host_devices = true\n" +
		"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = '" +
		filepath.Join(*bin, "stack/runc") + "'\nNoNewKeyring = true\n"
	n := newNode(t, nodeOptions{})
	text, err := os.ReadFile(n.dir + "/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	n.configure(t, text, own)
	before, err := os.ReadFile(n.dir + "/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	config := []string{"--config", n.dir + "/config.toml"}
	install := append([]string{"install", "containerd", "--set-as-default"}, config...)
	diff, _ := nixClosure(t, append(install, "--dry-run")...)
	printed, said := nixClosure(t, install...)
	if printed != diff || !strings.Contains(said, "systemctl restart containerd") {
		t.Errorf("%s\n%s\n%s", diff, printed, said)
	}
	for _, want := range []string{"example.org/*", "privileged_without_host_devices = true", "NoNewKeyring = true",
		"default_runtime_name = 'nix-closure'"} {
		if !strings.Contains(diff, want) {
			t.Errorf("%s is not in\n%s", want, diff)
		}
	}
	if again, said := nixClosure(t, install...); again != "" || !strings.Contains(said, "nothing to change") {
		t.Errorf("the second time: %s%s", again, said)
	}
	n.restart(t)
	if again, said := nixClosure(t, install...); again != "" || !strings.Contains(said, "nothing to change") {
		t.Errorf("the third time: %s%s", again, said)
	}
	if findings := doctor(t, "containerd", "--canary"); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	p := n.run(t, "", podConfig(t, roots("env")))
	if got, want := n.sees(t, p.start(t, "a", wholeStore)),
		closureOf(t, store["env"]); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q\nwant %q", got, want)
	}
	p.remove(t)
	nothingLeft(t)
	nixClosure(t, "install", "--uninstall", "containerd")
	after, err := os.ReadFile(n.dir + "/config.toml")
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("%v: config.toml was\n%s\nand is\n%s", err, before, after)
	}
	for _, left := range []string{"/etc/containerd/conf.d", "/etc/nix-closure/installed"} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after --uninstall, %s: %v", left, err)
		}
	}
}

// Docker's file keeps every byte that was there, and is as before afterwards. doctor sees
// what the daemon has in force, and not the file alone.
func TestInstallDocker(t *testing.T) {
	writeConfig(t, "runtime = \""+filepath.Join(*bin, "stack/runc")+"\"\n")
	before := []byte("{ \"log-level\":\"warn\",\n   \"labels\" : [\"a=b\",  \"c=d\"],\n   \"runtimes\": {},\n   " +
		"\"debug\": false\n}\n")
	d := newDockerWith(t, before)
	if err := os.Chmod(dockerConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	reload := func() {
		if err := d.process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			got, err := d.Info(t.Context(), client.InfoOptions{})
			if err == nil && got.Info.DefaultRuntime == "nix-closure" {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatal("Docker does not reload")
	}
	findings := doctor(t, "docker")
	if f := has(findings, "docker-no-way"); len(findings) != 1 || f == nil || f.Severity != "open" {
		t.Errorf("%+v", findings)
	}
	if has(doctor(t, "docker", "--canary"), "canary") == nil {
		t.Error("the canary is refused")
	}
	nixClosure(t, "install", "docker")
	if f := has(doctor(t, "docker"), "docker-default"); f == nil || f.Severity != "open" {
		t.Errorf("%+v", f)
	}
	install := []string{"install", "docker", "--set-as-default"}
	diff, _ := nixClosure(t, append(install, "--dry-run")...)
	if printed, _ := nixClosure(t, install...); printed != diff {
		t.Errorf("%s\n%s", diff, printed)
	}
	if again, said := nixClosure(t, install...); again != "" || !strings.Contains(said, "nothing to change") {
		t.Errorf("the second time: %s%s", again, said)
	}
	want := "{ \"log-level\":\"warn\",\n   \"labels\" : [\"a=b\",  \"c=d\"],\n   \"runtimes\": {\n    " +
		"\"nix-closure\": {\"path\": \"" +
		filepath.Join(*bin, "nix-closure-runtime") +
		"\"}\n  },\n   \"debug\": false,\n   \"default-runtime\": \"nix-closure\"\n}\n"
	if now, err := os.ReadFile(dockerConfig); err != nil || string(now) != want {
		t.Errorf("%v: %s\nwant %s", err, now, want)
	}
	findings = doctor(t, "docker")
	if f := has(findings, "docker-stale"); len(findings) != 1 || f == nil || f.Severity != "open" {
		t.Errorf("%+v", findings)
	}
	apply(t, findings, "systemctl reload docker", reload)
	if findings := doctor(t, "docker", "--canary"); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	nixClosure(t, "install", "--uninstall", "docker")
	info, statErr := os.Stat(dockerConfig)
	after, err := os.ReadFile(dockerConfig)
	if err != nil || statErr != nil || !bytes.Equal(before, after) || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v: %s", err, statErr, after)
	}
	nothingLeft(t)
}
