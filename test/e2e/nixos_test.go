// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// podmanOfMachine is what podman needs in a machine of the tests, as a NixOS module.
const podmanOfMachine = `{
	virtualisation.containers.containersConf.settings = {
		containers = { default_ulimits = [ "nofile=1024:1024" "nproc=4096:4096" ]; netns = "none"; };
		engine = { cgroup_manager = "cgroupfs"; events_logger = "none"; };
	};
}`

// currentSystem is where a NixOS system has its programs.
const currentSystem = "/run/current-system/sw"

// system is a configuration of NixOS, or of a user of Home Manager, that was built.
type system struct {
	files   string // the directory with /etc, or with what is in the user's home
	pkg     string // nix-closure
	canary  string // the program of the service; empty: there is none
	devices string // hello of the stand-in
}

// buildSystem builds an expression of a configuration, in which s is the stand-in.
func buildSystem(t *testing.T, evaluated, files, canary string) system {
	t.Helper()
	out := nixos.Build(t, `let c = (`+evaluated+`).config; in s.pkgs.runCommand "system" { } ''
		mkdir $out
		ln -s ${c.`+files+`} $out/files
		ln -s ${c.virtualisation.nix-closure.package} $out/pkg
		ln -s ${s.pkgs.hello} $out/devices
		ln -s ${if c.virtualisation.nix-closure.canary.enable then c.`+canary+` else "/none"} $out/canary
	''`)
	at := func(name string) string {
		path, err := os.Readlink(out + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	return system{files: at("files"), pkg: at("pkg"), canary: at("canary"), devices: at("devices")}
}

// buildNixOS builds a NixOS system from modules.
func buildNixOS(t *testing.T, modules ...string) system {
	t.Helper()
	return buildSystem(t, "s.nixos { imports = [ "+strings.Join(modules, " ")+" ]; }", "system.build.etc",
		"systemd.services.nix-closure-canary.serviceConfig.ExecStart")
}

// activate puts links to the files of a directory into another one, for the length of a test:
// as NixOS does with /etc, and Home Manager with a user's home directory.
func activate(t *testing.T, files, dir string) {
	t.Helper()
	err := filepath.WalkDir(files, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		at := filepath.Join(dir, strings.TrimPrefix(path, files))
		before, err := os.ReadFile(at)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		t.Cleanup(func() {
			err := os.Remove(at)
			if before != nil {
				err = errors.Join(err, os.WriteFile(at, before, 0o644))
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
		_ = os.Remove(at)
		return errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(path, at))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// activateSystem is a NixOS system after nixos-rebuild switch, for the length of a test.
func activateSystem(t *testing.T, s system) {
	t.Helper()
	activate(t, s.files, "/etc")
	t.Cleanup(func() { removeAll(t, filepath.Dir(currentSystem)) })
	// As NixOS has it: those who build may add to the store.
	info, err := os.Stat(storeDir)
	err = errors.Join(err, os.MkdirAll(filepath.Dir(currentSystem), 0o755), os.Symlink(s.pkg, currentSystem),
		os.Chmod(storeDir, 0o775|os.ModeSticky))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chmod(storeDir, info.Mode()); err != nil {
			t.Error(err)
		}
	})
}

// decode decodes a file in JSON or TOML.
func decode(t *testing.T, path string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var value map[string]any
	if filepath.Ext(path) == ".json" {
		err = json.Unmarshal(text, &value)
	} else {
		err = toml.Unmarshal(text, &value)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, text)
	}
	return value
}

// readmeModule is a block of nix/README.md as a file.
func readmeModule(t *testing.T, number int) string {
	t.Helper()
	path := t.TempDir() + "/module.nix"
	if err := os.WriteFile(path, []byte(nixBlocks(t)[number]), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A host with the configuration of nix/README.md. podman of root and of every user has the
// hook, the device gives its closure, and the canary's program tells such a host from one
// without the hook.
func TestNixOSPodman(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	alice.withoutConf(t)
	alice.loadImage(t, ordinaryImage(t))
	s := buildNixOS(t, readmeModule(t, 1), podmanOfMachine)
	canary := func() (said string, err error) {
		out, err := exec.Command(s.canary).CombinedOutput()
		return string(out), err
	}
	if said, err := canary(); err == nil || !strings.Contains(said, "podman: the canary was not refused") {
		t.Errorf("the canary's program finds nothing on a host without the hook: %v %s", err, said)
	}
	activateSystem(t, s)

	// What `allow` names.
	const roots = "/nix/var/nix/gcroots/containers"
	if err := errors.Join(os.Mkdir(roots, 0o755), os.Symlink(store["env"], roots+"/env")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, roots) })
	checkFound(t, call, func() []logLine { return readLog(t) })
	nothingLeft(t)
	checkFound(t, alice.call, func() []logLine { return alice.log(t) })
	alice.nothingLeft(t)
	_, _, err := container{runtime: "runc", root: "tools", hooks: "/etc/containers/oci/hooks.d"}.run("/bin/true")
	if said := lastError(t); err == nil || !strings.Contains(said, "allow") {
		t.Errorf("what `allow` does not name starts: %v %s", err, said)
	}

	// The device, for which no rule is needed.
	for name, call := range map[string]caller{"root": call, "alice": alice.call} {
		for _, runtime := range runtimes {
			stdout, stderr, err := call("podman", "--runtime", runtime, "run", "--rm",
				"--device", "nix-closure/closure=hello", bareImage, s.devices+"/bin/ls", "-A", storeDir)
			if got := strings.Fields(stdout); err != nil || !slices.Equal(got, closureOf(t, s.devices)) {
				t.Errorf("%s, %s: %v, the store has %q\n%s", name, runtime, err, got, stderr)
			}
		}
	}
	nothingLeft(t)
	alice.nothingLeft(t)
	// Its closure is part of the system's.
	if !slices.Contains(closureOf(t, s.files), filepath.Base(s.devices)) {
		t.Error("the system does not have the device's root")
	}

	nixClosure := s.pkg + "/bin/nix-closure"
	if out, stderr, err := call(nixClosure, "doctor", "--engine", "podman"); err != nil || out != "" {
		t.Errorf("doctor: %v %s%s", err, out, stderr)
	}
	must(t, nixClosure, "gc", "--dry-run")
	want := map[string]any{
		"writable-size": "512M", "allow": []any{map[string]any{"roots": []any{roots + "/*"}}},
	}
	if got := decode(t, configFile); !reflect.DeepEqual(got, want) {
		t.Errorf("config.toml is %v", got)
	}

	if said, err := canary(); err != nil || !strings.Contains(said, "[ok] podman: the canary is refused\n") {
		t.Errorf("the canary's program: %v %s", err, said)
	}
	// It is refused for another reason: that proves nothing.
	writeConfig(t, "unknown = 1\n")
	if said, err := canary(); err == nil || !strings.Contains(said, "podman: the canary was not refused") {
		t.Errorf("the canary's program, with a wrong config.toml: %v %s", err, said)
	}
	nothingLeft(t)
}

// checkUnits fails unless systemd understands the units of a directory, which are these.
func checkUnits(t *testing.T, dir string, want ...string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, file := range files {
		got = append(got, filepath.Base(file))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the units are %q; want %q", got, want)
	}
	if len(files) == 0 {
		return
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v %s", err, out)
	}
}

// The plugin's unit is the package's, and the canary's service is started by its timer.
func TestNixOSUnits(t *testing.T) {
	s := buildNixOS(t, `{
		virtualisation.podman.enable = true;
		virtualisation.docker.enable = true;
		virtualisation.nix-closure = {
			enable = true;
			nri.enable = true;
			podman.enable = true;
			docker.enable = true;
			canary = { enable = true; interval = "15min"; };
		};
	}`)
	units := s.files + "/systemd/system"
	checkUnits(t, units, "nix-closure-canary.service", "nix-closure-canary.timer", "nix-closure-nri.service")
	if at, err := os.Readlink(units + "/nix-closure-nri.service"); err != nil ||
		at != s.pkg+"/lib/systemd/system/nix-closure-nri.service" {
		t.Errorf("%s %v", at, err)
	}
	for file, want := range map[string]string{
		units + "/nix-closure-canary.service": "ExecStart=" + s.canary + "\nType=oneshot\n",
		units + "/nix-closure-canary.timer":   "[Install]\nWantedBy=timers.target\n",
		s.canary:                              "for engine in 'podman' 'docker'; do",
	} {
		if text := must(t, "cat", file); !strings.Contains(text, want) {
			t.Errorf("%s has no %q:\n%s", file, want, text)
		}
	}
	if text := must(t, "cat", units+"/nix-closure-canary.timer"); !strings.Contains(text, "OnUnitActiveSec=15min\n") {
		t.Errorf("%s", text)
	}
	var wanted []string
	nixos.Evaluate(t, `(s.nixos { virtualisation.nix-closure = { enable = true; nri.enable = true; }; }).config`+
		`.systemd.services.nix-closure-nri.wantedBy`, &wanted)
	if !slices.Equal(wanted, []string{"multi-user.target"}) {
		t.Errorf("the plugin is wanted by %q", wanted)
	}
	// The control: none is there that was not asked for.
	s = buildNixOS(t, "{ virtualisation.nix-closure.enable = true; }")
	checkUnits(t, s.files+"/systemd/system")
}

// The devices of the module are those that cdi generate writes, and cdi list reads them.
func TestNixOSDevices(t *testing.T) {
	for lines, flags := range map[string][]string{
		"":                                    nil,
		`mode = "bind"; registration = true;`: {"--mode", "bind", "--registration"},
	} {
		s := buildNixOS(t, `{ virtualisation.nix-closure = { enable = true; cdi.closures = {
			env = { roots = [ "`+store["env"]+`" ]; `+lines+` };
			two = { roots = [ "`+store["tools"]+`" "`+store["plus"]+`" ]; `+lines+` };
		}; }; }`)
		nixClosure := func(args ...string) string {
			t.Helper()
			return must(t, s.pkg+"/bin/nix-closure", append([]string{"cdi"}, args...)...)
		}
		written := t.TempDir() + "/nix-closure.json"
		nixClosure(append([]string{
			"generate", "--output", written, "env=" + store["env"], "two=" + store["tools"] + ":" + store["plus"],
		}, flags...)...)
		module := s.files + "/cdi/nix-closure.json"
		generated := decode(t, written)
		delete(generated, "containerEdits") // those of all devices: there are none
		same(t, "the devices", decode(t, module), generated)
		list, want := nixClosure("list", "--json", "--file", module), nixClosure("list", "--json", "--file", written)
		if list = strings.ReplaceAll(list, module, written); list != want || strings.Count(list, `"ok"`) != 2 {
			t.Errorf("cdi list says of the module's file\n%s\nand of its own\n%s", list, want)
		}
		nixClosure("remove", "--file", written, "env", "two")
	}
}

// programsAt has the paths of programs in a decoded file changed.
func programsAt(value any, from, to string) any {
	switch v := value.(type) {
	case string:
		return strings.Replace(v, from+"/", to+"/", 1)
	case []any:
		for i := range v {
			v[i] = programsAt(v[i], from, to)
		}
	case map[string]any:
		for k := range v {
			v[k] = programsAt(v[k], from, to)
		}
	}
	return value
}

// installed are the files that nix-closure install writes, decoded, before they are taken
// away again.
func installed(t *testing.T, call caller, s system, paths []string, args ...string) (files []map[string]any) {
	t.Helper()
	if _, stderr, err := call(s.pkg+"/bin/nix-closure", append([]string{"install"}, args...)...); err != nil {
		t.Fatalf("install %q: %v %s", args, err, stderr)
	}
	for _, path := range paths {
		files = append(files, decode(t, path))
	}
	if _, stderr, err := call(s.pkg+"/bin/nix-closure", "install", "--uninstall", args[0]); err != nil {
		t.Fatalf("install --uninstall %s: %v %s", args[0], err, stderr)
	}
	return files
}

// same fails unless two decoded files are equal.
func same(t *testing.T, what string, module, install any) {
	t.Helper()
	if !reflect.DeepEqual(module, install) {
		t.Errorf("%s: the module has\n%v\nand install\n%v", what, module, install)
	}
}

// hookNames are podman's hook files.
var hookNames = []string{"nix-closure-createRuntime.json", "nix-closure-poststop.json"}

// The NixOS module has in force for podman and Docker what install writes.
func TestNixOSInstall(t *testing.T) {
	const others = "/etc/containers/other-hooks.d"
	setEngine(t, fmt.Sprintf("hooks_dir = [%q]", others))
	s := buildNixOS(t, podmanOfMachine, `{
		virtualisation.podman.enable = true;
		virtualisation.docker.enable = true;
		virtualisation.docker.daemon.settings = { log-level = "warn"; };
		virtualisation.containers.containersConf.settings.engine.hooks_dir = [ "`+others+`" ];
		virtualisation.nix-closure = {
			enable = true;
			podman = { enable = true; setAsDefault = true; };
			docker = { enable = true; setAsDefault = true; };
		};
	}`)
	const dropIn = "/etc/containers/containers.conf.d/99-nix-closure.conf"
	podman := installed(t, call, s, []string{
		podmansHooks + "/" + hookNames[0], podmansHooks + "/" + hookNames[1], dropIn,
	}, "podman", "--set-as-default")
	const etc = "/etc/containers/oci/hooks.d"
	for i, name := range hookNames {
		same(t, name, decode(t, s.files+strings.TrimPrefix(etc, "/etc")+"/"+name), podman[i])
	}
	engine := decode(t, s.files+"/containers/containers.conf")["engine"].(map[string]any)
	for key, want := range podman[2]["engine"].(map[string]any) {
		// The directories have other names: NixOS has no /usr/share.
		want = programsAt(want, s.pkg, currentSystem)
		if list, ok := want.([]any); ok {
			list[len(list)-1] = strings.Replace(list[len(list)-1].(string), podmansHooks, etc, 1)
		}
		same(t, "engine."+key+" of containers.conf", engine[key], want)
	}
	if len(podman[2]) != 1 || engine["runtime"] != currentSystem+"/bin/nix-closure-runtime" {
		t.Errorf("install writes %v, and the module %v", podman[2], engine)
	}

	daemon := t.TempDir() + "/daemon.json"
	if err := os.WriteFile(daemon, []byte(`{ "log-level": "warn" }`), 0o644); err != nil {
		t.Fatal(err)
	}
	docker := installed(t, call, s, []string{daemon}, "docker", "--config", daemon, "--set-as-default")
	same(t, "daemon.json", decode(t, s.files+"/standin/daemon.json"), programsAt(docker[0], s.pkg, currentSystem))

	// The control: without the options, nothing of it is there.
	s = buildNixOS(t, podmanOfMachine, `{
		virtualisation.podman.enable = true;
		virtualisation.docker.enable = true;
		virtualisation.nix-closure.enable = true;
	}`)
	for _, file := range []string{"containers/containers.conf", "standin/daemon.json"} {
		if text := must(t, "cat", s.files+"/"+file); strings.Contains(text, "nix-closure") {
			t.Errorf("%s: %s", file, text)
		}
	}
	if _, err := os.Stat(s.files + "/containers/oci"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there are hook files: %v", err)
	}
}

// The wrapper serves podman after it was made the default, by the path that stays.
func TestNixOSWrapper(t *testing.T) {
	s := buildNixOS(t, podmanOfMachine, `{
		virtualisation.podman.enable = true;
		virtualisation.nix-closure = { enable = true; podman = { enable = true; setAsDefault = true; }; };
	}`)
	activateSystem(t, s)
	if got := decode(t, configFile)["runtime"]; !strings.HasSuffix(fmt.Sprint(got), "/bin/runc") {
		t.Errorf("the wrapper becomes %v", got)
	}
	for range 2 {
		out, stderr, err := call("podman", "run", "--rm", "--annotation", "nix-closure/roots="+store["env"], bareImage,
			store["env"]+"/bin/ls", "-A", storeDir)
		if got := strings.Fields(out); err != nil || !slices.Equal(got, closureOf(t, store["env"])) {
			t.Errorf("%v, the store has %q\n%s", err, got, stderr)
		}
		// And without hook files.
		removeAll(t, "/etc/containers/oci/hooks.d")
	}
	nothingLeft(t)
}

// A user of Home Manager has what install writes for that user, and podman has the hook.
func TestHomeManager(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	alice.withoutConf(t)
	alice.loadImage(t, ordinaryImage(t))
	home := func(module string) system {
		return buildSystem(t, `s.home { imports = [ `+module+` ]; home.homeDirectory = "`+alice.home+`"; }`,
			"build.home", "systemd.user.services.nix-closure-canary.Service.ExecStart")
	}
	s := home(`{ virtualisation.nix-closure = { enable = true; podman = {
		enable = true; setAsDefault = true; hooksDirs = [ "` + podmansHooks + `" ];
	}; }; }`)
	hooks, dropIn := "/.local/share/nix-closure/hooks.d/", "/.config/containers/containers.conf.d/99-nix-closure.conf"
	files := []string{hooks + hookNames[0], hooks + hookNames[1], dropIn}
	var paths []string
	for _, file := range files {
		paths = append(paths, alice.home+file)
	}
	for i, install := range installed(t, alice.call, s, paths, "podman", "--set-as-default") {
		module := any(decode(t, s.files+files[i]))
		if files[i] == dropIn {
			module = programsAt(module, alice.home+"/.nix-profile", s.pkg)
		}
		same(t, files[i], module, any(install))
	}

	// The configuration of nix/README.md.
	s = home(readmeModule(t, 2))
	canary := func() (said string, err error) {
		stdout, stderr, err := alice.call(s.canary)
		return stdout + stderr, err
	}
	if said, err := canary(); err == nil || !strings.Contains(said, "podman: the canary was not refused") {
		t.Errorf("the canary's program finds nothing without the hook: %v %s", err, said)
	}
	checkUnits(t, s.files+"/.config/systemd/user", "nix-closure-canary.service", "nix-closure-canary.timer")
	activate(t, s.files, alice.home)
	checkFound(t, alice.call, func() []logLine { return alice.log(t) })
	if said, err := canary(); err != nil || !strings.Contains(said, "[ok] podman: the canary is refused\n") {
		t.Errorf("the canary's program: %v %s", err, said)
	}
	alice.nothingLeft(t)
}
