// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const installDeb = "apt install ./nix-closure_0.1.0-1_amd64.deb"

// In a clean Debian, apt installs the deb, and then podman's containers have exactly their
// closure. A removal is refused while one has. After purge, no trace is left.
func TestDebian(t *testing.T) {
	d := newDebian(t)
	d.failsOpen()
	before := d.files()
	d.mustType(installDeb)
	d.failsClosed()
	// As systemctl enable does it.
	const enabled = "/etc/systemd/system/multi-user.target.wants"
	d.must("mkdir", "-p", enabled)
	d.must("ln", "-s", "/usr/lib/systemd/system/nix-closure-nri.service", enabled)
	// What install writes is what the package has, and the host is as it should be.
	if _, stderr, err := d.call("nix-closure", "install", "podman"); err != nil ||
		!strings.Contains(stderr, "nothing to change") {
		t.Errorf("nix-closure install podman: %v %s", err, stderr)
	}
	if stdout, stderr, err := d.call("nix-closure", "doctor"); err != nil {
		t.Errorf("nix-closure doctor: %v %s%s", err, stdout, stderr)
	}

	d.must("nix-closure", "cdi", "generate", "hello="+d.hello)
	d.must("podman", "--runtime", "runc", "run", "--rm", "--device", "nix-closure/closure=hello", image,
		d.hello+"/bin/busybox", "true")

	id := d.start()
	d.upgrade()
	for _, verb := range []string{"remove", "purge"} {
		if out, err := d.apt(verb, "nix-closure"); err == nil || !strings.Contains(out, "remove them first:\n"+id) {
			t.Errorf("%s with a container: %v %s", verb, err, out)
		}
	}
	d.failsClosed()
	d.must("podman", "rm", "--force", "--time", "0", id)
	d.traces(before, "/usr/bin/nix-closure", "/etc/nix-closure/config.toml", "/run/nix-closure", logFile)
	out, err := d.apt("remove", "nix-closure")
	if err != nil || !strings.Contains(out, "WITHOUT their closure") {
		t.Errorf("remove: %v %s", err, out)
	}
	d.traces(before, "/etc/nix-closure/config.toml", "/run/nix-closure", logFile)
	d.must("apt-get", "purge", "nix-closure")
	d.noTrace(before)
	d.failsOpen()
}

// A removal is refused while an engine's configuration names the programs, while a view is
// mounted, and if the program cannot tell.
func TestDebianInUse(t *testing.T) {
	d := newDebian(t)
	before := d.files()
	d.mustType(installDeb)
	refused := func(reason string) {
		t.Helper()
		if out, err := d.apt("purge", "nix-closure"); err == nil || !strings.Contains(out, reason) {
			t.Errorf("%v, it does not say %q: %s", err, reason, out)
		}
	}
	d.must("nix-closure", "install", "--set-as-default", "podman")
	refused("nix-closure install --uninstall podman")
	d.must("nix-closure", "install", "--uninstall", "podman")

	d.must("mkdir", "/root/view")
	d.must("nix-closure", "view", "mount", d.hello, "/root/view")
	refused("`nix-closure view umount` them first:\n/root/view")
	d.must("nix-closure", "view", "umount", "/root/view")
	d.must("rmdir", "/root/view")

	config := d.dir + "/etc/nix-closure/config.toml"
	if err := os.WriteFile(config, []byte("nonsense = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("cannot be told")
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d.must("apt-get", "purge", "nix-closure")
	d.noTrace(before)
}

// upgrade unpacks a package over itself, as an upgrade does. At each moment, podman finds the
// hook files and the program: if it did not, it would start a container without its closure.
func (d *debian) upgrade() {
	d.t.Helper()
	root := filepath.Join("/proc", d.inner, "root")
	stop, looked := make(chan struct{}), make(chan int)
	go func() {
		looks := 0
		for {
			select {
			case <-stop:
				looked <- looks
				return
			default:
			}
			for _, file := range []string{
				"/usr/bin/nix-closure-hook", "/usr/bin/nix-closure",
				"/usr/share/containers/oci/hooks.d/nix-closure-createRuntime.json",
			} {
				if info, err := os.Stat(root + file); err != nil || info.Size() == 0 {
					d.t.Errorf("during an upgrade: %v %v", info, err)
				}
			}
			looks++
		}
	}()
	d.must("apt-get", "install", "--reinstall", "/mnt/"+filepath.Base(dist(d.t, "*_amd64.deb")))
	close(stop)
	if looks := <-looked; looks < 1000 {
		d.t.Errorf("%d looks only", looks)
	}
}

// Whoever insists removes the package while a container runs. The container keeps its
// closure; it needs its GC roots, which purge leaves and names.
func TestDebianForced(t *testing.T) {
	d := newDebian(t)
	before := d.files()
	d.mustType(installDeb)
	id := d.start()
	out, err := d.typed("sudo NIX_CLOSURE_FORCE_REMOVE=yes apt purge nix-closure")
	if err != nil || !strings.Contains(out, "WITHOUT their closure") || !strings.Contains(out, "still in use") {
		t.Errorf("by force: %v %s", err, out)
	}
	if names := d.must("podman", "exec", id, d.hello+"/bin/busybox", "ls", "/nix/store"); strings.Contains(names,
		filepath.Base(d.foreign)) {
		t.Errorf("the container sees %s", names)
	}
	d.must("nix-store", "--gc")
	d.must("podman", "exec", id, d.hello+"/bin/busybox", "cat", d.hello+"/words")
	d.must("podman", "rm", "--force", "--time", "0", id)
	d.must("rm", "-r", "/run/nix-closure", "/nix/var/nix/gcroots/nix-closure")
	d.noTrace(before)
}

// Lintian has nothing to say of the debs but what an override explains.
func TestLintian(t *testing.T) {
	t.Parallel()
	// Each override has a line that explains it above it.
	var overrides []string
	explained := false
	for line := range strings.Lines(string(read(t, repository+"/packaging/lintian-overrides"))) {
		comment := strings.HasPrefix(line, "#")
		if !comment {
			overrides = append(overrides, strings.Fields(line)[1])
			if !explained {
				t.Errorf("nothing explains %s", line)
			}
		}
		explained = comment
	}
	out, err := exec.Command("lintian", "--allow-root", "--fail-on", "none", "--show-overrides",
		dist(t, "*_amd64.deb"), dist(t, "*_arm64.deb")).CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	used := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		kind, rest, _ := strings.Cut(line, ": nix-closure: ")
		switch {
		case kind == "O":
			used[strings.Fields(rest)[0]] = true
		case !strings.HasPrefix(line, "N:"):
			t.Error(line)
		}
	}
	for _, override := range overrides {
		if !used[override] {
			t.Errorf("%s is overridden, and lintian does not say it", override)
		}
	}
}
