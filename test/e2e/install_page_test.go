// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// installRow is a row of docs/install.md: a system, the lines to type, and what shows that
// the host fails closed.
type installRow struct {
	system    string
	lines     []string
	canary    string // the command that must fail; empty: that of the row above
	elsewhere string // where the row is run, or why it cannot be
}

const (
	noCluster = "there is no API server; TestExampleChart and TestExampleOverlays judge what the chart makes"
	noNixOS   = "there is no NixOS; TestNixReadme and TestNixOSPodman evaluate the same lines"
)

// installRows are the rows in their order. Commands are compared with the page's text, and
// run from that.
var installRows = []installRow{
	{system: "Debian, Ubuntu", elsewhere: "TestInstallPage of packages"},
	{system: "Fedora, RHEL, openSUSE", elsewhere: "there is no dnf; TestRPMInstalled installs the rpm"},
	{system: "any other Linux, from an archive", elsewhere: "TestInstallPage of packages"},
	{system: "any Linux, from source"},
	{system: "podman, one user without root"},
	{system: "podman, with a CDI device: no hook files, no configuration, also for every user"},
	{system: "NixOS", elsewhere: noNixOS},
	{system: "Home Manager", elsewhere: noNixOS},
	{system: "containerd", elsewhere: "TestInstallContainerd, with a containerd"},
	{system: "Docker", elsewhere: "TestInstallDocker, with a Docker"},
	{system: "CRI-O (not tested)", elsewhere: "there is no CRI-O; TestInstallCRIO looks at the files"},
	{system: "Kubernetes (REGISTRY is yours)", elsewhere: noCluster},
	{system: "k3s, RKE2, k0s (also `rke2`, `k0s`)", elsewhere: noCluster},
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// readInstallRows reads the table of docs/install.md.
func readInstallRows(t *testing.T) (rows []installRow) {
	t.Helper()
	for line := range strings.Lines(readDocument(t, "docs/install.md")) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 3 || strings.HasPrefix(line, "|--") || strings.HasPrefix(line, "| your system") {
			continue
		}
		row := installRow{system: strings.TrimPrefix(cells[0], "| ")}
		for _, m := range codeSpan.FindAllStringSubmatch(cells[1], -1) {
			row.lines = append(row.lines, m[1])
		}
		if m := codeSpan.FindStringSubmatch(cells[2]); m != nil {
			row.canary = m[1]
		} else if len(rows) > 0 && strings.HasPrefix(cells[2], "the same") {
			row.canary = rows[len(rows)-1].canary
		}
		rows = append(rows, row)
	}
	return rows
}

// What docs/install.md has a line for is run from its text, where the system is here: after
// the lines of a row, a container has its closure, and the canary fails.
func TestInstallPage(t *testing.T) {
	if os.Getenv(ownMachine) == "" {
		inOwnMachine(t)
		return
	}
	rows := readInstallRows(t)
	var systems, known []string
	for _, r := range rows {
		systems = append(systems, r.system)
	}
	for _, r := range installRows {
		known = append(known, r.system)
	}
	if !slices.Equal(systems, known) {
		t.Fatalf("docs/install.md has the systems\n%q\nand this test knows\n%q", systems, known)
	}
	nixDaemon(t)
	h := &readmeHost{runtime: "runc", paths: map[string]string{}, alice: user(t, "alice")}
	h.alice.withoutConf(t)
	h.alice.loadImage(t, ordinaryImage(t))
	setEngine(t, `runtime = "runc"`)
	h.paths["/nix/store/…-hello-2.12"] = buildProgram(t, "hello-2.12")
	for i, r := range rows {
		if len(r.lines) == 0 || r.canary == "" {
			t.Errorf("%s: it has the lines %q and the canary %q", r.system, r.lines, r.canary)
		}
		if reason := installRows[i].elsewhere; reason != "" {
			t.Logf("not run: %s: %s", r.system, reason)
			continue
		}
		t.Run(r.system, func(t *testing.T) {
			switch {
			case strings.Contains(r.canary, "--device"):
				h.installsDevice(t, r)
			case strings.Contains(r.system, "one user"):
				h.installsForAlice(t, r)
			default:
				for _, line := range r.lines {
					h.must(t, h.script(t, line))
				}
				h.canary(t, h.script(t, r.canary))
				greets(h, t, h.script(t, greetCommand))
				h.must(t, "make uninstall")
			}
			nothingLeft(t)
		})
	}
}

// installsForAlice: the tree is root's here, so root calls make; the rest is Alice's.
func (h *readmeHost) installsForAlice(t *testing.T, r installRow) {
	t.Helper()
	canary := h.script(t, r.canary)
	if _, stderr, err := h.alice.call("/bin/sh", "-c", canary); err != nil {
		t.Fatalf("before: the canary does not start: %s", stderr)
	}
	h.must(t, r.lines[0], h.homeOf(t, h.alice)...)
	must(t, "chown", "--recursive", h.alice.name, h.alice.home+"/.local")
	for _, line := range r.lines[1:] {
		if stdout, stderr, err := h.alice.call("/bin/sh", "-c", line); err != nil {
			t.Errorf("%s: %v\n%s%s", line, err, stdout, stderr)
		}
	}
	_, stderr, err := h.alice.call("/bin/sh", "-c", canary)
	if said := newestError(h.alice.log(t)); err == nil || !strings.Contains(said, canaryReason) {
		t.Errorf("the canary: %v %s, and the log %q", err, stderr, said)
	}
	if out := h.alice.must(t, "/bin/sh", "-c", h.script(t, greetCommand)); out != greeting {
		t.Errorf("%q", out)
	}
	h.alice.must(t, "podman", "rm", "--all", "--force", "--time", "0")
	h.alice.nothingLeft(t)
}

// installsDevice: for root and for Alice, who has nothing of nix-closure.
func (h *readmeHost) installsDevice(t *testing.T, r installRow) {
	t.Helper()
	removeAll(t, h.alice.home+"/.config/containers/containers.conf.d")
	removeAll(t, h.alice.home+"/.local/share/nix-closure")
	h.must(t, "make install HOOKSDIR="+t.TempDir())
	defer h.must(t, "nix-closure cdi remove hello && make uninstall")
	run := h.script(t, r.lines[len(r.lines)-1])
	for _, line := range r.lines[:len(r.lines)-1] {
		h.must(t, h.script(t, line))
	}
	greets(h, t, run)
	if out := h.alice.must(t, "/bin/sh", "-c", run); out != greeting {
		t.Errorf("for a user: %q", out)
	}
	canary := h.script(t, r.canary)
	_, stderr, err := h.sh(canary)
	_, stderrUser, errUser := h.alice.call("/bin/sh", "-c", canary)
	for who, said := range map[string]string{"root": stderr, "a user": stderrUser} {
		if err == nil || errUser == nil || !strings.Contains(said, "unresolvable CDI devices") {
			t.Errorf("the canary of %s: %v %v %s", who, err, errUser, said)
		}
	}
	must(t, "podman", "rm", "--all", "--force", "--time", "0")
}
