// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/nixos"
)

// nixPackage is the package as the modules have it.
const nixPackage = "s.pkgs.callPackage ../../nix/package.nix { }"

// nixFiles are the Nix files of nix/, the flake and examples/nixos, and an expression that
// evaluates each, in which s is the stand-in and f the file.
var nixFiles = map[string]string{
	"flake.nix": "let i = import f; in i // { outputs = i.outputs { nixpkgs = import " +
		nixos.Standin + "/flake.nix; }; }",
	"nix/canary.nix":       `"${import f { inherit (s) lib pkgs; package = s.pkgs.hello; engines = [ "podman" ]; }}"`,
	"nix/home-manager.nix": `(s.home { home.homeDirectory = "/home/alice"; }).config.virtualisation.nix-closure.podman`,
	"nix/nixos.nix":        "(s.nixos { }).config.virtualisation.nix-closure.cdi",
	"nix/overlay.nix":      "(import f s.pkgs s.pkgs).nix-closure.drvPath",
	"nix/package.nix":      "let p = s.pkgs.callPackage f { }; in { inherit (p) meta name pname version drvPath; }",
	"nix/test.nix":         "let t = import f { inherit (s) pkgs; }; in { inherit (t) name testScript; }",

	"examples/nixos/configuration.nix": "(s.nixos f).config.virtualisation.nix-closure.allow",
	"examples/nixos/flake.nix":         "{ inherit (import f) inputs; }",
	"examples/nixos/home.nix": `(s.home { imports = [ f ]; home.homeDirectory = "/home/alice"; }).config` +
		".virtualisation.nix-closure.podman",
}

// Nix parses every file of nix/ and examples/nixos, and evaluates it to its last attribute.
func TestNixFiles(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.nix", "nix/*.nix", "examples/nixos/*.nix"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			files = append(files, strings.TrimPrefix(path, repository+"/"))
		}
	}
	if known := slices.Sorted(maps.Keys(nixFiles)); !slices.Equal(slices.Sorted(slices.Values(files)), known) {
		t.Errorf("the files are %q, and this test knows %q", files, known)
	}
	for _, file := range files {
		path, err := filepath.Abs(filepath.Join(repository, file))
		if err != nil {
			t.Fatal(err)
		}
		must(t, "nix-instantiate", "--parse", path)
		if file == "flake.nix" {
			continue // TestNixFlake
		}
		var value any
		nixos.Evaluate(t, "let f = "+path+"; in "+nixFiles[file], &value)
	}
	// It would not have parsed.
	if _, _, err := call("nix-instantiate", "--parse", "-E", "{ a = 1 }"); err == nil {
		t.Error("Nix parses everything")
	}
}

// nixOption is an option that a module declares.
type nixOption struct {
	Name, Type, Description string
	Default                 *string // as Nix prints it; nil: there is none
}

// nixOptions are the options that a module declares below virtualisation.nix-closure, those of
// submodules with `<name>` or `*` for what the user names.
func nixOptions(t *testing.T, options string) map[string]nixOption {
	t.Helper()
	var list []nixOption
	nixos.Evaluate(t, `
		let
			below = t: if t ? below then [ t.below ] else [ ];
			walk = path: o:
				if o._type or null != "option" then
					builtins.concatLists (builtins.attrValues (builtins.mapAttrs (n: walk (path ++ [ n ])) o))
				else [ {
					Name = builtins.concatStringsSep "." path;
					Type = o.type.description;
					Description = o.description or "";
					Default =
						if o ? defaultText then o.defaultText.text
						else if o ? default then builtins.toJSON o.default
						else null;
				} ] ++ (
					if o.type.options or null != null then walk (path ++ below o.type) o.type.options else [ ]
				);
		in walk [ ] `+options+".virtualisation.nix-closure", &list)
	all := map[string]nixOption{}
	for _, o := range list {
		all[o.Name] = o
	}
	return all
}

// documentedOptions are the options in the tables of a part of nix/README.md, and their
// defaults.
func documentedOptions(t *testing.T, part string) map[string]string {
	t.Helper()
	_, text, ok := strings.Cut(readDocument(t, "nix/README.md"), "\n## "+part+"\n")
	if !ok {
		t.Fatalf("nix/README.md has no part %s", part)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	all := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\| [^|]+ \\|$")
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		all[m[1]] = m[2]
	}
	return all
}

// Each option of the modules has a type and a description, and is in nix/README.md with its
// default. The keys of settings are those of docs/configuration.md.
func TestNixOptions(t *testing.T) {
	for part, options := range map[string]string{
		"NixOS":        "(s.nixos { }).options",
		"Home Manager": `(s.home { home.homeDirectory = "/home/alice"; }).options`,
	} {
		declared, documented := nixOptions(t, options), documentedOptions(t, part)
		var keys []string
		for name, o := range declared {
			if o.Type == "" || len(o.Description) < 10 || !strings.HasSuffix(strings.TrimSpace(o.Description), ".") {
				t.Errorf("%s: %+v", part, o)
			}
			if key, ok := strings.CutPrefix(name, "settings."); ok {
				keys = append(keys, key)
				continue
			}
			if above, below, ok := strings.Cut(name, ".*."); ok {
				if !strings.Contains(readDocument(t, "nix/README.md"), "`"+below+"`") || documented[above] == "" {
					t.Errorf("nix/README.md does not document %s", name)
				}
				continue
			}
			if above, below, ok := strings.Cut(name, ".<name>."); ok {
				if !strings.Contains(readDocument(t, "nix/README.md"), "`"+below+"`") || documented[above] == "" {
					t.Errorf("nix/README.md does not document %s", name)
				}
				continue
			}
			want := documented[name]
			if name == "package" || name == "podman.hooksDirs" {
				if want == "" {
					t.Errorf("nix/README.md does not document %s", name)
				}
				continue
			}
			value := strings.NewReplacer("[]", "[ ]", "{}", "{ }").Replace(*o.Default)
			if want != "`"+value+"`" {
				t.Errorf("%s: the default of %s is %s, and nix/README.md says %s", part, name, value, want)
			}
		}
		for name := range documented {
			if _, ok := declared[name]; !ok {
				t.Errorf("nix/README.md documents %s for %s, which is not declared", name, part)
			}
		}
		if part == "NixOS" {
			var want []string
			row := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|")
			for _, m := range row.FindAllStringSubmatch(readDocument(t, "docs/configuration.md"), -1) {
				want = append(want, m[1])
			}
			slices.Sort(want)
			if slices.Sort(keys); !slices.Equal(keys, want) {
				t.Errorf("settings has the keys %q, and docs/configuration.md %q", keys, want)
			}
		}
	}
}

// A wrong configuration is an error when it is evaluated, with a message that names what is
// wrong.
func TestNixRefuses(t *testing.T) {
	const path = `/nix/store/00000000000000000000000000000000-a`
	evaluate := func(lines string) error {
		var value any
		return nixos.TryEvaluate(t, `let c = (s.nixos { virtualisation.nix-closure = { enable = true; `+lines+
			` }; }).config; n = c.virtualisation.nix-closure; in n // { package = "${n.package}"; }`, &value)
	}
	for _, right := range []string{
		"", `allow = [ { roots = [ "/a/*" ]; } ];`, `cdi.closures."a.b".roots = [ "` + store["env"] + `" ];`,
		"settings.substitute = true;", "settings.another-key = 3;",
		`settings.writable-size = 65536; settings.runtime-size = "64M";`, "nri.enable = true;",
	} {
		if err := evaluate(right); err != nil {
			t.Errorf("%s: %v", right, err)
		}
	}
	for wrong, want := range map[string]string{
		"unknown = 1;":                                                 "unknown' does not exist",
		"podman.unknown = 1;":                                          "podman.unknown' does not exist",
		"podman.enable = 1;":                                           "podman.enable' is not of type `boolean'",
		`package = "nix-closure";`:                                     "package' is not of type `package'",
		`settings = [ ];`:                                              "settings' is not of type",
		`settings.mode = "overlays";`:                                  "settings.mode' is not of type",
		`settings.max-paths = "50";`:                                   "settings.max-paths' is not of type",
		`settings.substitute = "yes";`:                                 "settings.substitute' is not of type",
		"settings.writable-size = true;":                               "settings.writable-size' is not of type",
		"settings.another-key = x: x;":                                 "another-key' is not of type",
		"settings.allow = [ ];":                                        "use virtualisation.nix-closure.allow instead",
		"allow = [ { } ];":                                             "roots' is used but not defined",
		"allow = [ { roots = [ ]; } ];":                                "roots' is not of type `non-empty list",
		`allow = [ { root = [ "a" ]; roots = [ "a" ]; } ];`:            "root' does not exist",
		`allow = [ { roots = [ "a" ]; namespaces = [ ]; } ];`:          "namespaces' is not of type",
		"cdi.closures.a.roots = [ ];":                                  "roots' is not of type",
		`cdi.closures.a.roots = [ "hello" ];`:                          "roots.*' is not of type `package'",
		`cdi.closures.a.roots = [ "` + path + `/bin" ];`:               "roots.*' is not of type `package'",
		`cdi.closures."a b".roots = [ "` + store["env"] + `" ];`:       "no name of a CDI device",
		`cdi.closures.a = { roots = [ "` + path + `" ]; mode = ""; };`: "mode' is not of type",
		"canary.interval = 3600;":                                      "canary.interval' is not of type `string'",
		"canary.enable = true;":                                        "needs an engine",
		"podman.enable = true;":                                        "needs virtualisation.podman.enable",
		"docker.enable = true;":                                        "needs virtualisation.docker.enable",
		"containerd.enable = true;":                                    "needs virtualisation.containerd.enable",
		"docker.setAsDefault = true;":                                  "setAsDefault needs virtualisation.nix-closure",
	} {
		if err := evaluate(wrong); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", wrong, err, want)
		}
	}
}

// Nix builds the package from the modules that go.mod names and from nothing else, and twice
// the same. It has the programs, the manual, the hook files and the plugin's unit.
func TestNixPackage(t *testing.T) {
	if text := readDocument(t, "nix/package.nix"); !strings.Contains(readDocument(t, "Makefile"),
		"\nVERSION := "+regexp.MustCompile(`version = "(.*)"`).FindStringSubmatch(text)[1]+"\n") {
		t.Error("nix/package.nix has another version than the Makefile")
	}
	out, err := nixos.TryBuild(t, nixPackage)
	if err != nil && strings.Contains(err.Error(), "hash mismatch") {
		t.Fatalf("nix/package.nix has another vendorHash than go.mod's modules: make nixhash writes it\n%v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if _, err := nixos.TryBuild(t, nixPackage, "--check"); err != nil {
		t.Errorf("the second time: %v", err)
	}
	// The controls: other modules, and what is not the same twice.
	_, err = nixos.TryBuild(t, `import ../../nix/package.nix {
		inherit (s.pkgs) lib installShellFiles testers;
		buildGoModule = a: s.pkgs.buildGoModule (a // {
			vendorHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
		});
	}`)
	if err == nil || !strings.Contains(err.Error(), "hash mismatch") {
		t.Errorf("with another vendorHash: %v", err)
	}
	const now = `s.pkgs.runCommand "now" { } "date +%N >$out"`
	nixos.Build(t, now)
	_, err = nixos.TryBuild(t, now, "--check")
	if err == nil || !strings.Contains(err.Error(), "not be deterministic") {
		t.Errorf("what is not the same twice: %v", err)
	}

	var stages []string
	for _, stage := range []string{"createRuntime", "poststop"} {
		file := out + "/share/containers/oci/hooks.d/nix-closure-" + stage + ".json"
		stages = append(stages, checkHookFile(t, file, out+"/bin/nix-closure-hook")...)
	}
	if !slices.Equal(stages, []string{"createRuntime", "poststop"}) {
		t.Errorf("the hook files are for %q", stages)
	}
	var got []string
	err = filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, out+"/")
		if err != nil || d.IsDir() {
			return err
		}
		if page, ok := strings.CutPrefix(name, "share/"); ok {
			if page = strings.TrimSuffix(page, ".bash"); slices.Contains(manualFiles, page) {
				got = append(got, page)
				return nil
			}
		}
		got = append(got, name)
		return nil
	})
	want := append([]string{
		"bin/nix-closure", "bin/nix-closure-device-plugin", "bin/nix-closure-hook", "bin/nix-closure-nri",
		"bin/nix-closure-runtime",
		"lib/systemd/system/nix-closure-nri.service",
		"share/containers/oci/hooks.d/nix-closure-createRuntime.json",
		"share/containers/oci/hooks.d/nix-closure-poststop.json",
	}, manualFiles...)
	slices.Sort(want)
	if slices.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v: the package has %q; want %q", err, got, want)
	}
	// Nothing that built it is in its closure.
	if closure := closureOf(t, out); len(closure) != 1 {
		t.Errorf("the closure of the package is %q", closure)
	}
	version := strings.TrimSpace(must(t, out+"/bin/nix-closure", "--version"))
	if own := strings.TrimSpace(must(t, *bin+"/nix-closure", "--version")); version != own {
		t.Errorf("it is %q, and make's is %q", version, own)
	}
	// The unit is the example's, with these programs.
	unit := out + "/lib/systemd/system/nix-closure-nri.service"
	must(t, "systemd-analyze", "verify", "--man=no", unit)
	text, err := os.ReadFile(unit)
	example := readDocument(t, "examples/systemd/nix-closure-nri.service")
	if err != nil || string(text) != strings.ReplaceAll(example, "/usr/local/bin/", out+"/bin/") {
		t.Errorf("%v: the unit is\n%s", err, text)
	}
}

// The flake has what its users expect, and a flake of a user gets the NixOS module from it.
// The stand-in takes the place of nixpkgs.
func TestNixFlake(t *testing.T) {
	// Not all of the tree: it has what was built.
	dir := t.TempDir()
	for _, file := range []string{
		"flake.nix", "nix", "go.mod", "go.sum", "closure", "cmd", "hook", "internal", "spec", "examples",
	} {
		must(t, "cp", "-r", filepath.Join(repository, file), dir)
	}
	standin, err := filepath.Abs(nixos.Standin)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir()) // what Nix remembers of flakes
	user := filepath.Join(dir, "examples/nixos")
	show := func(flake, attribute, apply string, inputs ...string) string {
		t.Helper()
		args := []string{
			"--extra-experimental-features", "nix-command flakes", "eval", "--json", "--no-write-lock-file",
			"--offline", "path:" + flake + "#" + attribute, "--apply", apply,
			"--override-input", "nixpkgs", "path:" + standin,
		}
		return strings.TrimSpace(must(t, "nix", append(args, inputs...)...))
	}
	const names = "builtins.mapAttrs (_: builtins.attrNames)"
	for attribute, want := range map[string]string{
		"packages": `{"aarch64-linux":["default","nix-closure"],"x86_64-linux":["default","nix-closure"]}`,
		"checks":   `{"aarch64-linux":["nixos","package"],"x86_64-linux":["nixos","package"]}`,
	} {
		if got := show(dir, attribute, names); got != want {
			t.Errorf("%s: %s", attribute, got)
		}
	}
	for attribute, want := range map[string]string{
		"overlays": `["default"]`, "nixosModules": `["default"]`, "homeManagerModules": `["default"]`,
	} {
		if got := show(dir, attribute, "builtins.attrNames"); got != want {
			t.Errorf("%s: %s", attribute, got)
		}
	}
	got := show(user, "nixosConfigurations.host.config.virtualisation.nix-closure", "n: [ n.package.pname n.allow ]",
		"--override-input", "nix-closure", "path:"+dir)
	if got != `["nix-closure",[{"namespaces":null,"roots":["/nix/var/nix/gcroots/containers/*"]}]]` {
		t.Errorf("a user's flake has %s", got)
	}
	args := []string{
		"--extra-experimental-features", "nix-command flakes", "flake", "check", "--no-build", "--no-write-lock-file",
		"--offline", "path:" + dir, "--override-input", "nixpkgs", "path:" + standin,
	}
	must(t, "nix", args...)
}

// nixBlocks are the blocks of Nix in nix/README.md.
func nixBlocks(t *testing.T) []string {
	t.Helper()
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```nix\n(.*?)^```$").FindAllStringSubmatch(
		readDocument(t, "nix/README.md"), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// The files in nix/README.md are those of examples/nixos, but for their first comments.
func TestNixReadme(t *testing.T) {
	blocks := nixBlocks(t)
	for i, file := range []string{"flake.nix", "configuration.nix", "home.nix"} {
		text := readDocument(t, "examples/nixos/"+file)
		text = strings.TrimLeft(regexp.MustCompile(`\A(#.*\n|\n)*`).ReplaceAllString(text, ""), "\n")
		if len(blocks) != 3 || blocks[i] != text {
			t.Errorf("%s is in nix/README.md as\n%s", file, blocks[i])
		}
	}
}
