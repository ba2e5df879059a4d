// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The rpm has what the deb has, its config.toml stays when it was edited, and it requires
// nothing.
func TestRPM(t *testing.T) {
	for rpmArch, debArch := range map[string]string{"x86_64": "amd64", "aarch64": "arm64"} {
		rpm := dist(t, "*."+rpmArch+".rpm")
		has := func(query ...string) []string {
			t.Helper()
			return strings.Fields(must(t, "rpm", append(append([]string{"-qp"}, query...), rpm)...))
		}
		if got := has("--queryformat", "%{NAME} %{ARCH} %{LICENSE}"); !slices.Equal(got,
			[]string{"nix-closure", rpmArch, "Apache-2.0"}) {
			t.Errorf("%q", got)
		}
		for query, want := range map[string][]string{
			"--configfiles": {"/etc/nix-closure/config.toml"},
			"--licensefiles": {
				"/usr/share/licenses/nix-closure/LICENSE", "/usr/share/licenses/nix-closure/third-party-licenses",
			},
			"--requires":   nil,
			"--recommends": nil, // dnf would install it
			"--suggests":   {"containerd", "nix", "podman"},
		} {
			got := has(query)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", query, got, want)
			}
		}
		files := has("-l")
		list := must(t, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -t`, "sh", dist(t, "*_"+debArch+".deb"))
		for file := range strings.FieldsSeq(list) {
			file = strings.TrimPrefix(file, ".")
			switch {
			case strings.HasSuffix(file, "/"): // also directories of other packages
			case strings.HasPrefix(file, "/usr/share/doc/nix-closure/"), strings.HasPrefix(file, "/usr/share/lintian/"):
			case strings.HasPrefix(file, "/usr/share/zsh/"):
				if other := "/usr/share/zsh/site-functions/_nix-closure"; !slices.Contains(files, other) {
					t.Errorf("the rpm has no %s", other)
				}
			case !slices.Contains(files, file):
				t.Errorf("the rpm has no %s", file)
			}
		}
		// A directory of package filesystem, with another mode there, would be a conflict.
		for _, file := range files {
			if file == "/usr" || file == "/usr/bin" || file == "/usr/share" || file == "/etc" {
				t.Errorf("the rpm has %s", file)
			}
		}
	}
}

// Installed by rpm, and removed by it: as by apt.
func TestRPMInstalled(t *testing.T) {
	d := newDebian(t)
	rpm := func(args ...string) (string, error) {
		args = append([]string{"--root", d.dir, "--dbpath", "/var/lib/rpm", "--nodeps", "--force-debian"}, args...)
		out, err := exec.Command("rpm", args...).CombinedOutput()
		return string(out), err
	}
	d.failsOpen()
	d.must("mkdir", "/usr/share/licenses") // where rpm is at home, package filesystem has it
	before := d.files()
	if out, err := rpm("--install", dist(t, "*.x86_64.rpm")); err != nil || out != "" {
		t.Fatalf("%v %s", err, out)
	}
	d.failsClosed()
	if out, err := rpm("--verify", "nix-closure"); err != nil {
		t.Errorf("%v %s", err, out)
	}
	id := d.start()
	if out, err := rpm("--erase", "nix-closure"); err == nil || !strings.Contains(out, "remove them first:\n"+id) {
		t.Errorf("with a container: %v %s", err, out)
	}
	d.failsClosed()
	d.must("podman", "rm", "--force", "--time", "0", id)
	d.traces(before, "/usr/bin/nix-closure", "/etc/nix-closure/config.toml", "/run/nix-closure", logFile)
	if out, err := rpm("--erase", "nix-closure"); err != nil || !strings.Contains(out, "WITHOUT their closure") {
		t.Fatalf("%v %s", err, out)
	}
	d.noTrace(before)
	d.failsOpen()
}
