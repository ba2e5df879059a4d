// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "embed"
)

// guestModules are what the guest's kernel needs, in ../install.sh's copy of Debian's.
const guestModules = "kernel/lib/modules/*/kernel/"

// virtiofsInit is the guest's init.
//
//go:embed testdata/virtiofs_init.sh
var virtiofsInit []byte

// virtiofsd is where Debian's QEMU has it.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// A virtual machine has a view of the host as its store, by virtiofs: exactly the closure,
// to be read and executed, also after the host has got another store path.
func TestVirtiofs(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := hostView(t, mode, "script")
		socket := serveView(t, dir)
		p := bootGuest(t, socket)
		seen := p.until(t, "ready .\n", olderTimeout)
		later := addStorePath(t, "later-virtiofs-"+mode)
		if _, err := p.in.WriteString(later + "\n"); err != nil {
			t.Fatal(err)
		}
		seen += p.until(t, "end .\n", olderTimeout)
		if status := p.wait(); status != 0 {
			t.Errorf("QEMU ends with status %d", status)
		}
		values := map[string][]string{}
		for line := range strings.Lines(seen) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			values[key] = append(values[key], value)
		}
		names := closureOf(t, store["script"])
		for key, want := range map[string][]string{
			"name": names,
			"runs": {"Hello, guest!"},
			"write": {
				"touch: /nix/store/new: Read-only file system",
				"touch: " + store["bash"] + "/new: Read-only file system",
			},
			"foreign": {"stat: can't stat '" + store["foreign"] + "': No such file or directory"},
			"later":   {"stat: can't stat '" + later + "': No such file or directory"},
			"count":   {fmt.Sprint(len(names))},
		} {
			if key == "name" {
				slices.Sort(values[key])
			}
			if !slices.Equal(values[key], want) {
				t.Errorf("%s: %q\nwant %q", key, values[key], want)
			}
		}
	})
}

// serveView starts virtiofsd for a directory, and returns its socket.
func serveView(t *testing.T, dir string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	command := []string{virtiofsd, "--socket-path=" + socket, "-o", "source=" + dir, "-o", "cache=auto"}
	exampleHas(t, strings.NewReplacer(socket, "/run/guest-store.sock", dir,
		"/srv/views/guest").Replace(strings.Join(command, " ")))
	cmd := exec.Command(command[0], append(command[1:], "-f")...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("virtiofsd says %s", text)
		}
	})
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("virtiofsd makes no socket")
	return ""
}

// bootGuest boots a virtual machine with the file system of a socket. What it says on its
// second serial port can be read.
func bootGuest(t *testing.T, socket string) *talking {
	t.Helper()
	kernel := only(t, filepath.Join(*bin, olderKernel))
	root := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev", "nix"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", root+"/bin/sh"); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"init": virtiofsInit, "bin/busybox": read(t, "/bin/busybox"),
		"test": fmt.Appendf(nil, "program=%s\ndirectory=%s\nforeign=%s\n", store["script"], store["bash"],
			store["foreign"]),
	}
	for _, dir := range []string{"drivers/virtio", "fs/fuse"} {
		modules, err := filepath.Glob(filepath.Join(*bin, guestModules, dir, "*.ko"))
		if err != nil || len(modules) == 0 {
			t.Fatalf("no modules in %s: %v; run test/install.sh as root, which fetches the kernel", dir, err)
		}
		for _, m := range modules {
			files["modules/"+filepath.Base(m)] = read(t, m)
		}
	}
	for name, content := range files {
		write(t, filepath.Join(root, name), content)
	}
	initramfs, err := os.Create(filepath.Join(t.TempDir(), "initramfs"))
	if err != nil {
		t.Fatal(err)
	}
	defer initramfs.Close()
	archive(t, initramfs, root, []string{root})
	console := filepath.Join(t.TempDir(), "console")
	t.Cleanup(func() {
		if text, err := os.ReadFile(console); err == nil && t.Failed() {
			t.Logf("console:\n%s", text)
		}
	})
	share := []string{
		"-object", "memory-backend-memfd,id=memory,size=512M,share=on", "-numa", "node,memdev=memory",
		"-chardev", "socket,id=view,path=" + socket, "-device", "vhost-user-fs-pci,chardev=view,tag=nix-store",
	}
	exampleHas(t, strings.ReplaceAll(strings.Join(share[:4], " "), socket, "/run/guest-store.sock"))
	exampleHas(t, strings.ReplaceAll(strings.Join(share[4:], " "), socket, "/run/guest-store.sock"))
	// Emulated, for where this runs there may be no KVM. virtiofsd reads the guest's memory.
	return startTalking(t, exec.Command("qemu-system-x86_64", slices.Concat([]string{
		"-accel", "tcg", "-machine", "pc", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot",
		"-serial", "file:" + console, "-serial", "stdio",
		"-kernel", kernel, "-initrd", initramfs.Name(), "-append", "console=ttyS0 loglevel=4 panic=-1",
	}, share)...))
}

// exampleHas fails if the example for users has no such line.
func exampleHas(t *testing.T, line string) {
	t.Helper()
	if text := string(read(t, "../../examples/virtiofs/README.md")); !strings.Contains(text, "    "+line+"\n") {
		t.Errorf("examples/virtiofs has no line %s", line)
	}
}
