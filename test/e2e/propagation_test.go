// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// sharedDir makes a directory that is a mount of the host with shared propagation, with a
// directory in it.
func sharedDir(t *testing.T, inside string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/"+inside, 0o755); err != nil {
		t.Fatal(err)
	}
	shared(t, dir)
	return dir
}

// shared makes a directory a mount of the host with shared propagation.
func shared(t *testing.T, dir string) {
	t.Helper()
	bindMount(t, dir, dir)
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
}

// whileRunning starts a container whose script says that it started and reads /go, and
// lets it go on when f has returned. It returns what the script prints then.
func whileRunning(t *testing.T, b *bundle, runtime, id string, f func()) string {
	t.Helper()
	fifo := t.TempDir() + "/go"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	b.addMount(object{"destination": "/go", "type": "bind", "source": fifo, "options": []string{"bind"}})
	cmd := b.command(t, runtime, id)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "started" {
		_ = cmd.Wait()
		t.Fatalf("%s: it says %q: %s", runtime, lines.Text(), lastLog(t))
	}
	f()
	if err := os.WriteFile(fifo, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", runtime, err)
	}
	return strings.Join(said, " ")
}

// A volume with rslave receives what the host mounts later, and no other does: also
// where the container's root is on a shared mount, as on most hosts, and where a link in
// the image leads a volume into the one with rslave.
func TestPropagationAskedFor(t *testing.T) {
	for _, runtime := range runtimes {
		for _, covered := range []bool{false, true} {
			asks, other, later := sharedDir(t, "later"), sharedDir(t, "later"), t.TempDir()
			if err := os.Mkdir(asks+"/x", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(later+"/file", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			script := "echo started; read x </go; ls /asks/later; echo and; ls /asks/x/later"
			b := newBundle(t, roots(store["env"]), script, "createRuntime", "poststop")
			if runtime == "crun" {
				// It makes all private before it mounts anything, unless this is given.
				b.linux()["rootfsPropagation"] = "rslave"
			}
			shared(t, b.dir)
			if covered { // as an engine does with an overlay
				shared(t, b.dir+"/rootfs")
			}
			if err := os.Symlink("/asks/x", b.dir+"/rootfs/other"); err != nil {
				t.Fatal(err)
			}
			b.addMount(object{"destination": "/asks", "type": "bind", "source": asks,
				"options": []string{"rbind", "rslave"}})
			b.addMount(object{"destination": "/other", "type": "bind", "source": other, "options": []string{"rbind"}})
			out := whileRunning(t, b, runtime, "asked-"+runtime, func() {
				for _, dir := range []string{asks, other} {
					if text, err := exec.Command("mount", "--bind", later, dir+"/later").CombinedOutput(); err != nil {
						t.Fatalf("%v %s", err, text)
					}
					t.Cleanup(func() { _ = syscall.Unmount(dir+"/later", syscall.MNT_DETACH) })
				}
			})
			if out != "file and" {
				t.Errorf("%s, covered %v: %q", runtime, covered, out)
			}
			nothingLeft(t)
		}
	}
}
