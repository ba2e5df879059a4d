// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// verify is called by the user, in podman's user namespace or outside of it.
func (u *ordinary) verify(t *testing.T, unshare bool, args ...string) (verdicts, int) {
	t.Helper()
	call := append([]string{testhost.Dir() + "/local/bin/nix-closure", "verify", "--json"}, args...)
	if unshare {
		call = append([]string{"podman", "unshare"}, call...)
	}
	return verifyBy(t, u.command(call[0], call[1:]...))
}

func (u *ordinary) plantable(t *testing.T, c container) planted {
	t.Helper()
	id := u.start(t, c)
	pid, err := strconv.Atoi(strings.TrimSpace(u.must(t, "podman", "inspect", "--format", "{{.State.Pid}}", id)))
	if err != nil {
		t.Fatal(err)
	}
	return planted{t: t, id: id, pid: pid, dir: t.TempDir(), record: u.own + "/containers/" + id + ".json"}
}

// An ordinary user verifies their own containers in podman's user namespace. Outside of it,
// the user may not look into them: they are unknown, and not ok.
func TestVerifyRootless(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	for _, runtime := range runtimes {
		for _, c := range append(owned, []struct {
			name  string
			flags []string
		}{
			{"unlisted", []string{unlisted}},
			{"registered", []string{registered}},
			{"volume", []string{"--volume=" + store["foreign"] + ":/other"}},
		}...) {
			t.Run(runtime+"/"+c.name, func(t *testing.T) {
				id := alice.start(t, container{runtime: runtime, root: "env", flags: c.flags})
				found, status := alice.verify(t, true)
				checkOK(t, found, status, id)
				found, status = alice.verify(t, true, "--contents", id)
				checkOK(t, found, status, id)
				found, status = alice.verify(t, false)
				v := found.of(t, id)
				if status != 4 || v.State != "unknown" ||
					!strings.Contains(v.says(), "podman unshare nix-closure verify") {
					t.Errorf("outside of the user namespace: status %d, %s\n%s", status, v.State, v.says())
				}
			})
		}
	}
}

// What is wrong with an ordinary user's container is found.
func TestVerifyRootlessFaults(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	for i, f := range []fault{
		{name: "the store", want: "shows /nix/store of the host",
			plant: func(p planted) error { return p.show(storeDir, "/tmp") }},
		{name: "a path replaced", want: "is mounted on ",
			plant: func(p planted) error { return p.show(store["tools"], store["env"]) }},
		{name: "the view unmounted", want: "nothing is attached to",
			plant: func(p planted) error { return p.unmount(storeDir) }},
		{name: "the view writable", want: "is not ro", plant: func(p planted) error {
			return p.attributes(storeDir, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}},
		{name: "the runtime directory", want: "shows " + alice.own + " of the host",
			plant: func(p planted) error { return p.show(alice.own, "/tmp") }},
		{name: "no GC roots", want: "its GC roots are gone",
			plant: func(p planted) error { return os.RemoveAll(alice.own + "/gcroots/" + p.id) }},
		{name: "a GC root that Nix does not know", want: "Nix does not know the GC root", plant: func(p planted) error {
			links, err := filepath.Glob("/nix/var/nix/gcroots/auto/*")
			for _, link := range links {
				if target, _ := os.Readlink(link); strings.Contains(target, p.id) {
					err = errors.Join(err, os.Remove(link))
				}
			}
			return err
		}},
		{name: "no record", want: "the hook was not called",
			plant: func(p planted) error { return os.Remove(p.record) }},
	} {
		t.Run(f.name, func(t *testing.T) {
			p := alice.plantable(t, container{runtime: runtimes[i%2], root: "env"})
			found, status := alice.verify(t, true)
			checkOK(t, found, status, p.id)
			if err := f.plant(p); err != nil {
				t.Fatal(err)
			}
			found, status = alice.verify(t, true)
			if v := found.of(t, p.id); status != 1 || v.State != "wrong" || !strings.Contains(v.says(), f.want) {
				t.Errorf("status %d, %s\n%s\nwant %q", status, v.State, v.says(), f.want)
			}
		})
	}
}

// The capabilities that the example's service keeps are enough.
func TestVerifyServiceCapabilities(t *testing.T) {
	text, err := os.ReadFile("../../examples/systemd/nix-closure-verify.service")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "\nCapabilityBoundingSet=")
	line, _, _ = strings.Cut(line, "\n")
	kept := strings.ToLower(strings.ReplaceAll(line, "CAP_", "+"))
	if !strings.Contains(kept, "+sys_admin") {
		t.Fatalf("the service keeps %q", line)
	}
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		id := container{runtime: runtime, mode: mode, root: "env", flags: []string{unlisted, "--cap-add=ALL"}}.start(t)
		cmd := exec.Command("setpriv", "--bounding-set=-all,"+strings.Join(strings.Fields(kept), ","),
			"--inh-caps=-all",
			"--no-new-privs", nixClosure(), "verify", "--json", "--contents")
		found, status := verifyBy(t, cmd)
		checkOK(t, found, status, id)
	})
}

// Root without the privilege to look into a container says so.
func TestVerifyUnprivileged(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		id := container{runtime: runtime, mode: mode, root: "env"}.start(t)
		for _, without := range []string{"sys_admin", "sys_chroot"} {
			cmd := exec.Command("setpriv", "--bounding-set=-"+without, "--inh-caps=-"+without, nixClosure(), "verify",
				"--json")
			found, status := verifyBy(t, cmd)
			v := found.of(t, id)
			if status != 4 || v.State != "unknown" || !strings.Contains(v.says(), "with all capabilities") {
				t.Errorf("without %s: status %d, %s\n%s", without, status, v.State, v.says())
			}
		}
	})
}
