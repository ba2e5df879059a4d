// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// diagnosis is what nix-closure doctor --json prints.
type diagnosis struct {
	Findings []struct {
		ID, Severity, Engine, What, Consequence, Advice string
		Fix                                             []string
	}
	Facts []struct{ Subject, Text string }
}

// doctor runs nix-closure doctor, and makes sure of its exit status.
func doctor(t *testing.T, args ...string) diagnosis {
	t.Helper()
	stdout, stderr, err := call("/usr/local/bin/nix-closure", append([]string{"doctor", "--json"}, args...)...)
	var d diagnosis
	if err := json.Unmarshal([]byte(stdout), &d); err != nil {
		t.Fatalf("%v: %s%s", err, stdout, stderr)
	}
	status := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	}
	open := 0
	for _, f := range d.Findings {
		if f.Severity == "open" {
			open = 1
		}
		if f.What == "" || f.Consequence == "" || len(f.Fix) == 0 && f.Advice == "" && f.Severity != "unknown" {
			t.Errorf("%+v", f)
		}
	}
	if status != open {
		t.Errorf("exit status %d, findings %+v", status, d.Findings)
	}
	return d
}

// find returns the fix of a finding.
func (d diagnosis) find(id string) (severity string, fix []string, ok bool) {
	for _, f := range d.Findings {
		if f.ID == id {
			return f.Severity, f.Fix, true
		}
	}
	return "", nil, false
}

// goodHost installs, and writes a configuration with which doctor finds nothing.
func goodHost(t *testing.T) {
	t.Helper()
	install(t)
	writeConfig(t, goodConfig)
	t.Cleanup(func() { must(t, "/usr/local/bin/nix-closure", "install", "--uninstall", "podman") })
}

const goodConfig = "[[allow]]\nroots = [\"/nix/store/*\"]\n"

// On a host where all is well, doctor prints nothing, and takes less than a second.
func TestDoctorIsSilent(t *testing.T) {
	goodHost(t)
	begin := time.Now()
	stdout, stderr, err := call("/usr/local/bin/nix-closure", "doctor")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %s", took)
	} else {
		t.Logf("it took %s", took)
	}
	if err != nil || stdout != "" || stderr != "" {
		t.Errorf("%v: %s%s", err, stdout, stderr)
	}
	d := doctor(t, "--canary", "--engine", "podman")
	if len(d.Findings) > 0 || !strings.Contains(fmt.Sprint(d.Facts), "the canary is refused") ||
		!strings.Contains(fmt.Sprint(d.Facts), "overlay and bind can be made") {
		t.Errorf("%+v", d)
	}
	nothingLeft(t)
}

// A misconfiguration, and what doctor must find.
type misconfiguration struct {
	name, plant, id, severity string
	starts                    bool   // whether podman starts the canary then
	cleanup                   string // what the fix leaves of the plant
}

const (
	createFile = podmansHooks + "/nix-closure-createRuntime.json"
	endFile    = podmansHooks + "/nix-closure-poststop.json"
)

var misconfigurations = []misconfiguration{
	{name: "no hook files", plant: "rm " + podmansHooks + "/*", id: "no-hook", severity: "open", starts: true},
	{name: "no hook file for createRuntime", plant: "rm " + createFile, id: "no-hook", severity: "open", starts: true},
	{
		name: "hooks_dir names another directory", id: "no-hook", severity: "open", starts: true,
		plant: `mkdir -p /etc/containers/containers.conf.d; printf '[engine]\nhooks_dir = ["/etc/hooks"]\n' ` +
			`>/etc/containers/containers.conf.d/10-own.conf`,
		cleanup: "rm -r /etc/containers/containers.conf.d",
	},
	{
		name: "hooks_dir is empty", id: "no-hook", severity: "open", starts: true,
		plant: `mkdir -p /etc/containers/containers.conf.d; printf '[engine]\nhooks_dir = []\n' ` +
			`>/etc/containers/containers.conf.d/10-own.conf`,
		cleanup: "rm -r /etc/containers/containers.conf.d",
	},
	{name: "the program is missing", plant: "sed -i s,/usr/local/bin/,/usr/local/gone/, " + podmansHooks + "/*",
		id: "program-missing", severity: "open", starts: true},
	{name: "another program", plant: "sed -i s,/usr/local/bin/nix-closure-hook,/bin/true, " + createFile,
		id: "program-other", severity: "open", starts: true},
	{name: "the program cannot be started", plant: "chmod 0644 /usr/local/bin/nix-closure-hook", id: "program-mode",
		severity: "closed"},
	{name: "others can write the program", plant: "chmod g+w /usr/local/bin/nix-closure-hook", id: "writable",
		severity: "open"},
	{name: "another user's program", plant: "chown 1000 /usr/local/bin/nix-closure-hook", id: "writable",
		severity: "open"},
	{name: "others can write nix-closure", plant: "chmod o+w /usr/local/bin/nix-closure", id: "writable",
		severity: "open"},
	{name: "others can write beside the program", plant: "chmod o+w /usr/local/bin", id: "writable", severity: "open"},
	{name: "others can write a hook file", plant: "chmod o+w " + endFile, id: "writable", severity: "open"},
	{name: "another user's hook directory", plant: "chown 1000 " + podmansHooks, id: "writable", severity: "open"},
	{
		name: "the program alone in its directory", id: "program-apart", severity: "closed",
		plant: "mkdir /opt/apart; cp /usr/local/bin/nix-closure-hook /opt/apart; sed -i " +
			"s,/usr/local/bin/,/opt/apart/, " + podmansHooks + "/*",
		cleanup: "rm -r /opt/apart; sed -i s,/opt/apart/,/usr/local/bin/, " + podmansHooks + "/*",
	},
	{name: "the pattern is not anchored",
		plant: replaceIn(createFile, `^([^/]+\\.)?nix-closure/(?s:.*)$`, "nix-closure/"), id: "hook-anchors",
		severity: "warning"},
	{name: "the pattern misses one container's keys",
		plant: replaceIn(createFile, `^([^/]+\\.)?nix-closure`, "^nix-closure"), id: "hook-annotations",
		severity: "open"},
	{name: "the pattern is of roots only", plant: replaceIn(createFile, `/(?s:.*)$": `, `/roots$": `),
		id: "hook-annotations", severity: "open"},
	{name: "the pattern is of closure-info only", plant: replaceIn(createFile, `/(?s:.*)$": `, `/closure-info$": `),
		id: "hook-annotations", severity: "open", starts: true},
	{name: "the value's pattern", plant: replaceIn(createFile, `"^(?s:.*)$"`, `"^/nix/store/[a-z0-9]{32}-.*$"`),
		id: "hook-annotations", severity: "open", starts: true},
	{name: "only with bind mounts", plant: replaceIn(createFile, `"when": {`, `"when": {"hasBindMounts": true,`),
		id: "hook-when", severity: "open"},
	{name: "only some commands", plant: replaceIn(createFile, `"when": {`, `"when": {"commands": ["^/bin/sh$"],`),
		id: "hook-when", severity: "open", starts: true},
	{name: "the stage in the arguments", plant: replaceIn(createFile, `"createRuntime"],`, `"poststop"],`),
		id: "hook-stage", severity: "open", starts: true},
	{name: "CRI-O's hook file", plant: replaceIn(createFile, `"podman"`, `"cri-o"`), id: "hook-engine",
		severity: "warning"},
	{name: "no environment", plant: replaceIn(createFile, `"env": ["GOMAXPROCS=1"]`, `"env": []`), id: "hook-env",
		severity: "warning"},
	{name: "no hook file for poststop", plant: "rm " + endFile, id: "no-poststop", severity: "warning"},
	{name: "a hook file that is cut off", plant: "truncate -s 100 " + createFile, id: "hook-file", severity: "closed"},
	{name: "a stage that there is not", plant: replaceIn(endFile, `["poststop"]
}`, `["postStop"]
}`), id: "hook-file", severity: "closed"},
	{name: "users cannot read a hook file", plant: "chmod 0600 " + createFile, id: "hook-file-mode",
		severity: "closed"},
	{
		name: "the wrapper becomes what is not there", id: "runtime", severity: "closed",
		plant: `mkdir -p /etc/containers/containers.conf.d
			printf '[engine]\nruntime = "/usr/local/bin/nix-closure-runtime"\n' \
				>/etc/containers/containers.conf.d/10-own.conf
			sed -i '1i runtime = "no-such-runc"' ` + configFile,
		cleanup: "rm -r /etc/containers/containers.conf.d",
	},
	{name: "the runtime directory's mode", plant: "mkdir -p " + runtimeDir + "; chmod 0755 " + runtimeDir,
		id: "runtime-dir-mode", severity: "closed"},
	{name: "the runtime directory's owner", plant: "mkdir -p -m 0700 " + runtimeDir + "; chown 1000 " + runtimeDir,
		id: "runtime-dir-owner", severity: "closed"},
	{name: "the runtime directory is a link", plant: "rm -rf " + runtimeDir + "; ln -s /tmp " + runtimeDir,
		id: "runtime-dir", severity: "closed"},
	{
		name: "the runtime directory is read-only", id: "runtime-dir-read-only", severity: "closed",
		plant:   "mkdir -p -m 0700 " + runtimeDir + "; mount -t tmpfs -o ro,mode=0700 tmpfs " + runtimeDir,
		cleanup: "umount " + runtimeDir,
	},
	{name: "an unknown key", plant: "sed -i '1i mdoe = \"bind\"' " + configFile, id: "config", severity: "closed"},
	{name: "others can write the configuration", plant: "chmod o+w " + configFile, id: "config-mode",
		severity: "warning"},
	{name: "another user's configuration", plant: "chown 1000 " + configFile, id: "config-owner", severity: "warning"},
	{name: "nix-store is elsewhere", plant: "sed -i '1i nix-store = \"/usr/bin/no-such-nix-store\"' " + configFile,
		id: "nix-store", severity: "warning"},
	{name: "the log's directory is missing", plant: "sed -i '1i log-file = \"/var/log/no/such/log\"' " + configFile,
		id: "log-dir", severity: "warning", cleanup: "rm -r /var/log/no"},
	{name: "others can write the log", plant: "touch " + logFile + "; chmod 0666 " + logFile, id: "log-mode",
		severity: "warning"},
	{name: "others can write the state directory", plant: "chmod g+w /nix/var/nix", id: "state-dir-mode",
		severity: "closed"},
	{name: "another user's state directory", plant: "chown 1000 /nix/var/nix", id: "state-dir-owner",
		severity: "closed"},
	{name: "others can hold gc.lock", plant: "touch /nix/var/nix/gc.lock; chmod 0666 /nix/var/nix/gc.lock",
		id: "gc-lock-mode", severity: "warning"},
	{name: "gc.lock is a directory", plant: "rm -f /nix/var/nix/gc.lock; mkdir /nix/var/nix/gc.lock", id: "gc-lock",
		severity: "closed"},
	{name: "everybody can write to the store", plant: "chmod 1777 /nix/store", id: "store-mode", severity: "warning"},
	{name: "the store is noexec", plant: "mount -o remount,bind,noexec /nix", id: "store-noexec", severity: "warning"},
	{name: "a mount in the store", plant: "mount -t tmpfs tmpfs /nix/store/.links", id: "store-mounts",
		severity: "warning"},
	{name: "a device's program is missing",
		plant: plantDevice + "sed -i s,/usr/local/bin/,/usr/local/gone/, " + cdiFile,
		id:    "program-missing", severity: "closed", cleanup: removeDevice},
	{name: "a device is not pinned", plant: plantDevice + "rm -r " + cdiRoots, id: "cdi-unpinned", severity: "warning",
		cleanup: removeDevice},
	{name: "others can write devices", plant: plantDevice + "chmod o+w " + cdiFile, id: "writable", severity: "open",
		cleanup: removeDevice},
	{
		name: "a rule's links that others can change", id: "policy-links", severity: "warning",
		plant: "mkdir -p /etc/teams; ln -s $(ls -d /nix/store/*-* | head -1) /etc/teams/a; chmod 0777 /etc/teams; " +
			`printf '[[allow]]\nroots = ["/etc/teams/*"]\n' >>` + configFile,
		cleanup: "rm -r /etc/teams",
	},
}

// plantDevice adds a device, and removeDevice removes it.
const (
	plantDevice = "/usr/local/bin/nix-closure cdi generate planted=" +
		"$(nix-store --query --requisites /nix/store/*-test-env | tail -1); "
	removeDevice = "/usr/local/bin/nix-closure cdi remove planted"
)

// replaceIn is a command that replaces a text in a file.
func replaceIn(file, old, new string) string {
	return fmt.Sprintf("python3 - <<'PYTHON'\nold, new = %q, %q\ntext = open(%q).read()\nassert old in text\n"+
		"open(%[3]q, 'w').write(text.replace(old, new))\nPYTHON", old, new, file)
}

// Each is found, with commands that mend it as they are printed. Where podman starts a
// container without its closure then, that is seen too.
func TestDoctorFinds(t *testing.T) {
	goodHost(t)
	for _, m := range misconfigurations {
		t.Run(m.name, func(t *testing.T) {
			if d := doctor(t); len(d.Findings) > 0 {
				t.Fatalf("before: %+v", d.Findings)
			}
			must(t, "sh", "-euc", m.plant)
			d := doctor(t)
			severity, fix, ok := d.find(m.id)
			if !ok || severity != m.severity || len(fix) == 0 {
				t.Errorf("want %s %s: %+v", m.severity, m.id, d.Findings)
			}
			if m.severity != "warning" {
				_, _, started := doctor(t, "--canary", "--engine", "podman").find("canary")
				if started != m.starts {
					t.Errorf("the canary started: %v", started)
				}
			}
			for _, f := range d.Findings {
				must(t, "sh", "-euc", strings.Join(f.Fix, "\n"))
			}
			if d := doctor(t); len(d.Findings) > 0 {
				t.Errorf("after %q: %+v", fix, d.Findings)
			}
			if m.severity == "open" {
				if d := doctor(t, "--canary", "--engine", "podman"); len(d.Findings) > 0 {
					t.Errorf("after: %+v", d.Findings)
				}
			}
			if m.cleanup != "" {
				must(t, "sh", "-euc", m.cleanup)
			}
			if err := os.WriteFile(configFile, []byte(goodConfig), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What no command mends is found too, and says what to do, or that it is not known.
func TestDoctorAdvises(t *testing.T) {
	goodHost(t)
	const conf = "/etc/containers/containers.conf"
	for _, m := range []misconfiguration{
		{name: "another schema", plant: "printf 9 >/nix/var/nix/db/schema", id: "schema", severity: "unknown",
			cleanup: "printf 10 >/nix/var/nix/db/schema"},
		{name: "no database", plant: "mv /nix/var/nix/db /nix/var/nix/away", id: "database", severity: "warning",
			cleanup: "mv /nix/var/nix/away /nix/var/nix/db"},
		{name: "no rules, and podman 4.3.1", plant: "rm " + configFile, id: "podman-images", severity: "warning"},
		{name: "a rule that allows nothing",
			plant: `printf '[[allow]]\nroots = ["/nix/store/*-no-such"]\n' >>` + configFile, id: "policy",
			severity: "warning"},
		{name: "a mode that there is not", plant: "sed -i '1i mode = \"copy\"' " + configFile, id: "config",
			severity: "closed"},
		{name: "no state directory", plant: "mv /nix/var/nix /nix/var/away", id: "state-dir", severity: "closed",
			cleanup: "mv /nix/var/away /nix/var/nix"},
		{name: "a device that is not valid", plant: plantDevice + "sed -i s,=/nix/store/.,=/nix/store/0, " + cdiFile,
			id: "cdi-not-valid", severity: "closed", cleanup: "rm -r " + cdiFile + " " + cdiRoots},
		{name: "a file of devices that is cut off", plant: plantDevice + "truncate -s 100 " + cdiFile,
			id: "cdi", severity: "closed", cleanup: "rm -r " + cdiFile + " " + cdiRoots},
		{name: "a device of another program", plant: plantDevice + replaceIn(cdiFile, `"containerEdits": {
        "hooks"`, `"containerEdits": {"env": ["A=b"], "hooks"`),
			id: "cdi-other", severity: "warning", cleanup: "rm -r " + cdiFile + " " + cdiRoots},
		{name: "no store", plant: "sed -i '1i store-dir = \"/gone/store\"' " + configFile, id: "store",
			severity: "closed"},
		{name: "containers.conf is not TOML", plant: "cp " + conf + " /tmp/kept; echo '[' >>" + conf, id: "podman-conf",
			severity: "closed", cleanup: "mv /tmp/kept " + conf},
		{name: "the installed hook is gone", plant: "mv /usr/local/bin/nix-closure-hook /usr/local/",
			id: "program-missing", severity: "open", starts: true,
			cleanup: "mv /usr/local/nix-closure-hook /usr/local/bin/"},
		{name: "the hook is a script", plant: "mv /usr/local/bin/nix-closure-hook /usr/local/; printf " +
			"'#!/bin/sh\\nexec /usr/local/nix-closure-hook\\n' >/usr/local/bin/nix-closure-hook; chmod 0755 " +
			"/usr/local/bin/nix-closure-hook", id: "unknown", severity: "unknown",
			cleanup: "mv /usr/local/nix-closure-hook /usr/local/bin/"},
	} {
		t.Run(m.name, func(t *testing.T) {
			must(t, "sh", "-euc", m.plant)
			d := doctor(t)
			severity, _, ok := d.find(m.id)
			if !ok || severity != m.severity {
				t.Errorf("want %s %s: %+v", m.severity, m.id, d.Findings)
			}
			if m.starts {
				if _, _, started := doctor(t, "--canary", "--engine", "podman").find("canary"); !started {
					t.Error("the canary is refused")
				}
			}
			if m.cleanup != "" {
				must(t, "sh", "-euc", m.cleanup)
			}
			if err := os.WriteFile(configFile, []byte(goodConfig), 0o644); err != nil {
				t.Fatal(err)
			}
			if d := doctor(t); len(d.Findings) > 0 {
				t.Errorf("afterwards: %+v", d.Findings)
			}
		})
	}
}

// An ordinary user's doctor looks at the user's podman and at root's, and says what it
// could not find out.
func TestDoctorForOneUser(t *testing.T) {
	nixDaemon(t)
	goodHost(t)
	alice := user(t, "alice")
	alice.withoutConf(t)
	examine := func() (stdout string, err error) {
		stdout, stderr, err := alice.call("/usr/local/bin/nix-closure", "doctor")
		t.Logf("%v: %s%s", err, stdout, stderr)
		return stdout, err
	}
	if stdout, err := examine(); err != nil || strings.Contains(stdout, "[open]") ||
		strings.Contains(stdout, "[closed]") {
		t.Errorf("%v: %s", err, stdout)
	}
	alice.setHooksDir(t, "/nowhere")
	stdout, err := examine()
	if err == nil || !strings.Contains(stdout, "[open] podman: podman of user") ||
		strings.Contains(stdout, "podman of root has") {
		t.Errorf("%v: %s", err, stdout)
	}
	alice.must(t, "/usr/local/bin/nix-closure", "install", "podman")
	if stdout, err := examine(); err != nil || strings.Contains(stdout, "[open]") {
		t.Errorf("%v: %s", err, stdout)
	}
	// Root, who was called by alice with sudo, sees the same: what is hers in her own
	// directory may be hers.
	sudo := func() (stdout string, err error) {
		stdout, stderr, err := call("env", fmt.Sprintf("SUDO_UID=%d", alice.id), "/usr/local/bin/nix-closure", "doctor")
		t.Logf("%v: %s%s", err, stdout, stderr)
		return stdout, err
	}
	if stdout, err := sudo(); err != nil || stdout != "" {
		t.Errorf("%v: %s", err, stdout)
	}
	alice.must(t, "/usr/local/bin/nix-closure", "install", "--uninstall", "podman")
	if stdout, err := sudo(); err == nil || !strings.Contains(stdout, "podman of "+alice.name+" has no hook file") {
		t.Errorf("%v: %s", err, stdout)
	}
	if stdout, err := examine(); err == nil {
		t.Errorf("after uninstall: %s", stdout)
	}
}

// The examples of --help do what they say.
func TestDoctorAndInstallExamples(t *testing.T) {
	goodHost(t)
	must(t, "rm", createFile, endFile)
	for _, command := range []string{"install", "doctor"} {
		help := must(t, "/usr/local/bin/nix-closure", command, "--help")
		_, rest, _ := strings.Cut(help, "\nExamples:\n")
		examples, _, _ := strings.Cut(rest, "\n\n")
		if !strings.Contains(examples, "nix-closure "+command) {
			t.Errorf("%s", help)
		}
		for line := range strings.Lines(examples) {
			script := strings.TrimSpace(line)
			stdout, stderr, err := call("sh", "-c", "PATH=/usr/local/bin:$PATH; "+script)
			var exit *exec.ExitError
			if errors.As(err, &exit) && (command == "install" || exit.ExitCode() != 1) ||
				strings.Contains(stderr, "nknown") {
				t.Errorf("%s: %v %s%s", script, err, stdout, stderr)
			}
		}
	}
	if _, err := os.Stat(createFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after install and --uninstall: %v", err)
	}
}

// snapshot is what find tells of files: name, kind, owner, mode, content.
func snapshot(t *testing.T, dirs ...string) string {
	t.Helper()
	var there []string
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	if len(there) == 0 {
		return ""
	}
	out := must(t, "sh", append([]string{"-euc",
		`find "$@" ! -type d -printf '%p %y %U %G %m\n' | sort; find "$@" -type d -printf '%p\n' | sort; find "$@" ` +
			`-type f -exec sha256sum {} + | sort`, "sh"}, there...)...)
	return out
}

// install puts podman's hook files beside what the host has, twice, and takes them out:
// then all is as before. In between the canary is refused.
func TestInstallPodman(t *testing.T) {
	install(t)
	must(t, "rm", createFile, endFile)
	const conf = "/etc/containers/containers.conf.d"
	own := map[string]string{
		conf + "/10-own.conf":  "# ours\n[engine]\nhooks_dir = [\"/etc/own-hooks\"]   # as it is\n",
		"/etc/own-hooks/a.txt": "not a hook file\n",
	}
	for path, text := range own {
		must(t, "sh", "-euc", `mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"`, "sh", path, text)
	}
	must(t, "chmod", "0640", conf+"/10-own.conf")
	t.Cleanup(func() { must(t, "rm", "-r", conf, "/etc/own-hooks") })
	dirs := []string{"/etc/containers", "/etc/own-hooks", "/usr/share/containers", "/etc/nix-closure"}
	before := snapshot(t, dirs...)
	nixClosure := func(args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, err := call("/usr/local/bin/nix-closure", args...)
		if err != nil {
			t.Fatalf("%q: %v %s%s", args, err, stdout, stderr)
		}
		return stdout, stderr
	}
	diff, _ := nixClosure("install", "--dry-run", "podman")
	if snapshot(t, dirs...) != before {
		t.Error("--dry-run changes something")
	}
	printed, _ := nixClosure("install", "podman")
	if printed != diff {
		t.Errorf("--dry-run printed\n%s\nand then\n%s", diff, printed)
	}
	installed := snapshot(t, "/etc/containers", "/usr/share/containers")
	again, said := nixClosure("install", "podman")
	if again != "" || !strings.Contains(said, "nothing to change") ||
		snapshot(t, "/etc/containers", "/usr/share/containers") != installed {
		t.Errorf("the second time: %s%s", again, said)
	}
	canary := append(append([]string{"run", "--rm"}, flags(roots("/nix/store/canary"))...), ordinaryImage(t),
		"/bin/true")
	if _, stderr, err := call("podman", canary...); err == nil {
		t.Errorf("the canary starts: %s", stderr)
	}
	if said := newestError(readLog(t)); !strings.Contains(said, canaryReason) {
		t.Errorf("the canary fails with %q", said)
	}
	if d := doctor(t, "--canary"); slices.ContainsFunc(d.Findings, func(f struct {
		ID, Severity, Engine, What, Consequence, Advice string
		Fix                                             []string
	}) bool {
		return f.Severity != "warning"
	}) {
		t.Errorf("%+v", d.Findings)
	}
	nixClosure("install", "--uninstall", "podman")
	if after := snapshot(t, dirs...); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if _, _, err := call("podman", canary...); err != nil {
		t.Errorf("after uninstall the canary is refused: %v", err)
	}
	// The diff is one for patch.
	must(t, "sh", "-euc", `printf %s "$1" | patch -s -p1 -d /`, "sh", diff)
	if now := snapshot(t, "/etc/containers", "/usr/share/containers"); now != installed {
		t.Errorf("patched\n%s\ninstalled\n%s", now, installed)
	}
	// What is there, and what others wrote, is left alone.
	if again, said := nixClosure("install", "podman"); again != "" || !strings.Contains(said, "nothing to change") {
		t.Errorf("after patch: %s%s", again, said)
	}
	must(t, "sh", "-c", "echo >>"+createFile)
	if _, stderr, err := call("/usr/local/bin/nix-closure", "install", "podman"); err == nil ||
		!strings.Contains(stderr, createFile+" is there and was not written by") {
		t.Errorf("%v %s", err, stderr)
	}
}

// CRI-O is not to be had here: this is about its files alone, and not about what CRI-O
// makes of them.
func TestInstallCRIO(t *testing.T) {
	install(t)
	writeConfig(t, goodConfig)
	const own = "/etc/crio/crio.conf.d/10-own.conf"
	must(t, "sh", "-euc", "mkdir -p /etc/crio/crio.conf.d; printf '[crio.runtime]\\nhooks_dir = "+
		"[\"/etc/own-hooks\"]\\n' >"+own)
	t.Cleanup(func() { must(t, "rm", "-r", "/etc/crio") })
	before := snapshot(t, "/etc/crio", "/etc/nix-closure")
	d := doctor(t, "--engine", "cri-o")
	if severity, fix, ok := d.find("no-hook"); !ok || severity != "open" || len(fix) != 2 ||
		fix[1] != "systemctl restart crio" {
		t.Fatalf("%+v", d.Findings)
	}
	must(t, "sh", "-euc", d.Findings[0].Fix[0])
	if d := doctor(t, "--engine", "cri-o"); len(d.Findings) > 0 {
		t.Errorf("%+v", d.Findings)
	}
	text, err := os.ReadFile("/etc/crio/crio.conf.d/99-nix-closure.conf")
	if err != nil || !strings.Contains(string(text),
		`hooks_dir = ["/etc/own-hooks", "/etc/nix-closure/crio-hooks.d"]`) {
		t.Errorf("%v %s", err, text)
	}
	if again := must(t, "/usr/local/bin/nix-closure", "install", "cri-o"); again != "" {
		t.Errorf("the second time: %s", again)
	}
	// The default, too: then the wrapper must be told of CRI-O.
	must(t, "/usr/local/bin/nix-closure", "install", "cri-o", "--set-as-default")
	d = doctor(t, "--engine", "cri-o")
	if severity, fix, ok := d.find("crio-engine"); !ok || severity != "closed" || len(fix) != 1 {
		t.Fatalf("%+v", d.Findings)
	}
	must(t, "sh", "-euc", d.Findings[0].Fix[0])
	if d := doctor(t, "--engine", "cri-o"); len(d.Findings) > 0 {
		t.Errorf("%+v", d.Findings)
	}
	must(t, "sh", "-euc", "sed -i '/^engine/d' "+configFile)
	must(t, "/usr/local/bin/nix-closure", "install", "--uninstall", "cri-o")
	if after := snapshot(t, "/etc/crio", "/etc/nix-closure"); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}
