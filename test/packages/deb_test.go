// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// In a clean Debian, apt installs the deb, and then podman's containers have exactly their
// closure. A removal is refused while one has. After purge, no trace is left.
func TestDebian(t *testing.T) {
	d := newDebian(t)
	d.failsOpen()
	before := d.files()
	deb := "/mnt/" + filepath.Base(dist(t, "*_amd64.deb"))
	d.must("apt-get", "install", "-y", deb)
	d.failsClosed()
	// What install writes is what the package has, and the host is as it should be.
	if _, stderr, err := d.call("nix-closure", "install", "podman"); err != nil ||
		!strings.Contains(stderr, "nothing to change") {
		t.Errorf("nix-closure install podman: %v %s", err, stderr)
	}
	if stdout, stderr, err := d.call("nix-closure", "doctor"); err != nil {
		t.Errorf("nix-closure doctor: %v %s%s", err, stdout, stderr)
	}

	id := d.start()
	d.upgrade(deb)
	for _, verb := range []string{"remove", "purge"} {
		_, stderr, err := d.call("apt-get", verb, "-y", "nix-closure")
		if err == nil || !strings.Contains(stderr, "remove them first:\n"+id) {
			t.Errorf("%s with a container: %v %s", verb, err, stderr)
		}
	}
	d.failsClosed()
	d.must("podman", "rm", "--force", "--time", "0", id)
	d.must("apt-get", "purge", "-y", "nix-closure")
	d.same(before)
	d.failsOpen()
}

// upgrade unpacks a package over itself, as an upgrade does. At each moment, podman finds the
// hook files and the program: if it did not, it would start a container without its closure.
func (d *debian) upgrade(deb string) {
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
	d.must("apt-get", "install", "-y", "--reinstall", deb)
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
	d.must("apt-get", "install", "-y", "/mnt/"+filepath.Base(dist(t, "*_amd64.deb")))
	id := d.start()
	cmd := d.command("apt-get", "purge", "-y", "nix-closure")
	cmd.Env = append(cmd.Env, "NIX_CLOSURE_FORCE_REMOVE=yes")
	_, stderr, err := run(cmd)
	if err != nil || !strings.Contains(stderr, "WITHOUT their closure") || !strings.Contains(stderr, "still in use") {
		t.Errorf("by force: %v %s", err, stderr)
	}
	if out := d.must("podman", "exec", id, d.hello+"/bin/busybox", "ls", "/nix/store"); strings.Contains(out, "foreign") {
		t.Errorf("the container sees %s", out)
	}
	d.must("nix-store", "--gc")
	d.must("podman", "exec", id, d.hello+"/bin/busybox", "cat", d.hello+"/words")
	d.must("podman", "rm", "--force", "--time", "0", id)
	d.must("rm", "-r", "/run/nix-closure", "/nix/var/nix/gcroots/nix-closure")
	d.same(before)
}

// Lintian has nothing to say of the debs but what an override explains.
func TestLintian(t *testing.T) {
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
	args := []string{"--allow-root", "--fail-on", "error,warning", "--show-overrides"}
	out, err := exec.Command("lintian", append(args, dist(t, "*_amd64.deb"), dist(t, "*_arm64.deb"))...).CombinedOutput()
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
