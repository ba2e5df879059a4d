// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "embed"
)

// What ../install.sh takes out of Debian's package of the kernel, below -bin.
const (
	olderKernel  = "kernel/boot/vmlinuz-*"
	olderOverlay = "kernel/lib/modules/*/kernel/fs/overlayfs/overlay.ko"
)

// olderTimeout is some ten times what booting and all that follows takes.
const olderTimeout = 120 * time.Second

// olderInit is the machine's init.
//
//go:embed testdata/older_kernel_init.sh
var olderInit []byte

// guest is a container for olderInit to start.
type guest struct {
	id          string
	mode        string // annotation; empty: none
	unshare     string // its namespaces, as options of unshare
	ownStore    bool   // the image has a /nix/store
	writable    bool   // and with a registration
	wantMode    string
	annotations map[string]string
	dir         string // of the bundle
}

// Linux 6.1 is the kernel of Debian 12. Before 6.15 a part of a mount that is
// attached nowhere cannot be cloned, and an overlay is attached another way
// than on newer kernels. The programs, Nix's database and the store paths are
// the real ones.
func TestOlderKernel(t *testing.T) {
	roots := []string{store["script"], store["link"]}
	names := slices.Concat(closureOf(t, roots[0]), closureOf(t, roots[1]))
	slices.Sort(names)
	names = slices.Compact(names)

	const plain, userns = "-m --propagation slave", "-m --propagation slave -U -r"
	guests := []guest{
		{id: "auto", unshare: plain, wantMode: "overlay"},
		{id: "overlay", mode: "overlay", unshare: plain, ownStore: true, wantMode: "overlay"},
		{id: "overlay-userns", mode: "overlay", unshare: userns, wantMode: "overlay"},
		{id: "bind", mode: "bind", unshare: plain, ownStore: true, wantMode: "bind"},
		{id: "bind-userns", mode: "bind", unshare: userns, wantMode: "bind"},
		{id: "writable", unshare: plain, ownStore: true, writable: true, wantMode: "overlay"},
		{id: "writable-userns", unshare: userns, writable: true, wantMode: "overlay"},
		{id: "refused", unshare: plain},
	}
	for i := range guests {
		g := &guests[i]
		g.annotations = map[string]string{"nix-closure/roots": strings.Join(roots, ",")}
		if g.wantMode == "" {
			g.annotations["nix-closure/roots"] = unknown
		}
		if g.mode != "" {
			g.annotations["nix-closure/mode"] = g.mode
		}
		if g.writable {
			g.annotations["nix-closure/writable"] = "true"
			g.annotations["nix-closure/registration"] = "true"
		}
	}
	release, saw := bootOlder(t, guests, names)
	if !strings.HasPrefix(release, "6.1.") {
		t.Errorf("the kernel is %s, and not Linux 6.1", release)
	}
	saw.check(t, "machine", "kernel", release)
	saw.check(t, "machine", "mount")
	for _, g := range guests {
		t.Run(g.id, func(t *testing.T) {
			if g.wantMode == "" {
				saw.checkRefused(t, g.id)
			} else {
				saw.checkStarted(t, g, roots, names)
			}
			saw.check(t, g.id, "poststop", "0 ")
			saw.check(t, g.id, "left")
		})
	}
}

// sawInside is what olderInit printed: container, key, values.
type sawInside map[string]map[string][]string

func (s sawInside) check(t *testing.T, id, key string, want ...string) {
	t.Helper()
	if got := s[id][key]; !slices.Equal(got, want) {
		t.Errorf("%s: %q\nwant %q", key, got, want)
	}
}

func (s sawInside) checkRefused(t *testing.T, id string) {
	t.Helper()
	s.check(t, id, "createRuntime", "1 nix-closure: container "+id+": resolving "+unknown+": "+unknown+
		" is not valid: Nix has no such path registered; fetch or build it first, for example with `nix-store "+
		"--realise "+unknown+"`")
	for _, key := range []string{"name", "mount", "kept"} {
		s.check(t, id, key)
	}
}

func (s sawInside) checkStarted(t *testing.T, g guest, roots, names []string) {
	t.Helper()
	s.check(t, g.id, "createRuntime", "0 ")
	s.check(t, g.id, "mode", g.wantMode)
	s.check(t, g.id, "name", names...)
	kept := []string{runtimeDir + "/containers/" + g.id + ".json"}
	for _, r := range roots {
		kept = append(kept, filepath.Join(gcRoots, g.id, filepath.Base(r)))
	}
	slices.Sort(kept[1:])
	s.check(t, g.id, "kept", kept...)

	s.check(t, g.id, "foreign", "ls: "+store["foreign"]+": No such file or directory")
	if g.writable {
		s.check(t, g.id, "write")
	} else {
		s.check(t, g.id, "write",
			"touch: /nix/store/new: Read-only file system",
			"touch: "+store["bash"]+"/new: Read-only file system")
	}
	s.check(t, g.id, "sum", sum(t, store["script"]), sum(t, store["bash"]+"/bin/bash"))
	s.check(t, g.id, "link", store["bash"])
	s.check(t, g.id, "runs", "Hello, "+g.id+"!")
	s.checkMounts(t, g, names)
}

// checkMounts reads the container's lines of mountinfo (proc_pid_mountinfo(5)).
func (s sawInside) checkMounts(t *testing.T, g guest, names []string) {
	t.Helper()
	target := g.dir + "/rootfs" + storeDir
	want := []string{target + " /store overlay"}
	options := []string{"ro", "nosuid", "nodev"}
	if g.writable {
		want = append(want, g.dir+"/rootfs/nix/var/nix / tmpfs")
		options[0] = "rw"
	}
	if g.wantMode == "bind" {
		want = []string{target + " / tmpfs"}
		for _, n := range names {
			if path := storeDir + "/" + n; path != store["link"] { // a symlink is no mount
				want = append(want, target+"/"+n+" "+path+" rootfs")
			}
		}
	}
	var got []string
	for _, line := range s[g.id]["mount"] {
		mount, super, _ := strings.Cut(line, " - ")
		m, kind := strings.Fields(mount), strings.Fields(super)
		if len(m) < 6 || len(kind) == 0 {
			t.Fatalf("mountinfo: %q", line)
		}
		got = append(got, m[4]+" "+m[3]+" "+kind[0])
		for _, option := range options {
			if !slices.Contains(strings.Split(m[5], ","), option) {
				t.Errorf("%s is mounted %s, without %s", m[4], m[5], option)
			}
		}
		if len(m) > 6 {
			t.Errorf("%s propagates: %s", m[4], m[6:])
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("mounts: %q\nwant %q", got, want)
	}
}

// sum is the line of sha256sum.
func sum(t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("%x  %s", sha256.Sum256(read(t, path)), path)
}

// bootOlder boots the older kernel with the store paths of these names, Nix's
// database and containers, and returns its release and what olderInit saw.
func bootOlder(t *testing.T, guests []guest, names []string) (release string, _ sawInside) {
	t.Helper()
	kernel, module := only(t, filepath.Join(*bin, olderKernel)), only(t, filepath.Join(*bin, olderOverlay))
	root := t.TempDir()
	// The database may have a write-ahead log beside it. Nobody writes now, so
	// the two files together are the database.
	host := []string{"/nix/var"}
	for _, n := range slices.Concat(names, []string{filepath.Base(store["foreign"])}) {
		host = append(host, storeDir+"/"+n)
	}
	for i := range guests {
		host = append(host, prepare(t, root, &guests[i]))
	}
	for _, dir := range []string{"bin", "usr/local/bin", "proc", "dev", "run", "var/log", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", root+"/bin/sh"); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"init":                           olderInit,
		"bin/busybox":                    read(t, "/bin/busybox"),
		"usr/local/bin/nix-closure":      read(t, *bin+"/nix-closure"),
		"usr/local/bin/nix-closure-hook": read(t, *bin+"/nix-closure-hook"),
		"overlay.ko":                     read(t, module),
		"store-paths": fmt.Appendf(nil, "foreign=%s\ndirectory=%s\ninside_directory=%s\nregular=%s\nsymlink=%s\n",
			store["foreign"], store["bash"], store["bash"]+"/bin/bash", store["script"], store["link"]),
	} {
		write(t, filepath.Join(root, name), content)
	}

	// Linux takes several archives in one file.
	initramfs := t.TempDir() + "/initramfs"
	f, err := os.Create(initramfs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	archive(t, f, "/", host)
	archive(t, f, root, []string{root})
	release = strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	return release, runMachine(t, kernel, initramfs)
}

// prepare makes the bundle of a container, which it returns, and what olderInit
// reads of it.
func prepare(t *testing.T, root string, g *guest) string {
	t.Helper()
	b := newBundle(t, g.annotations, "true", "createRuntime", "poststop")
	g.dir = b.dir
	config, err := json.Marshal(b.config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, b.dir+"/config.json", config)
	if g.ownStore {
		write(t, b.dir+"/rootfs/nix/store/of-the-image", nil)
	}
	for name, content := range map[string]string{
		"bundle": b.dir, "unshare": g.unshare, "state.json": state(g.id, 0, b.dir, g.annotations),
	} {
		write(t, filepath.Join(root, "containers", g.id, name), []byte(content))
	}
	return b.dir
}

// runMachine boots, waits until the machine switches itself off, and returns
// what came over its second serial port.
func runMachine(t *testing.T, kernel, initramfs string) sawInside {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), olderTimeout)
	defer cancel()
	// Emulated, for where this runs there may be no KVM. A kernel that panics
	// ends too.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+dir+"/console", "-serial", "file:"+dir+"/saw",
		"-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 loglevel=4 panic=-1")
	errs, err := cmd.CombinedOutput()
	console, _ := os.ReadFile(dir + "/console")
	text, _ := os.ReadFile(dir + "/saw")
	if ctx.Err() != nil {
		err = fmt.Errorf("still runs after %v", olderTimeout)
	}
	if err == nil && !bytes.HasSuffix(text, []byte("machine end .\n")) {
		err = errors.New("its init did not run to the end")
	}
	if err != nil {
		t.Fatalf("the machine with the older kernel: %v\n%s\nconsole:\n%s\nseen until then:\n%s", err, errs, console,
			text)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", console)
		}
	})
	saw := sawInside{}
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
		if len(part) < 3 {
			t.Fatalf("the machine's init wrote %q", line)
		}
		if saw[part[0]] == nil {
			saw[part[0]] = map[string][]string{}
		}
		saw[part[0]][part[1]] = append(saw[part[0]][part[1]], part[2])
	}
	return saw
}

// archive writes what is in these directories and files, with the directories
// above them, as the kind of archive that Linux unpacks before it starts init.
// The names in it begin at dir.
func archive(t *testing.T, to *os.File, dir string, paths []string) {
	t.Helper()
	var list []string
	for _, p := range paths {
		for up := filepath.Dir(p); up != "/" && strings.HasPrefix(up, dir); up = filepath.Dir(up) {
			list = append(list, up)
		}
		err := filepath.WalkDir(p, func(path string, _ fs.DirEntry, err error) error {
			list = append(list, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// What is above comes first.
	slices.Sort(list)
	var names strings.Builder
	for _, path := range slices.Compact(list) {
		if name := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/"); name != "" {
			fmt.Fprintln(&names, name)
		}
	}
	cmd := exec.Command("/bin/busybox", "cpio", "-o", "-H", "newc")
	cmd.Dir, cmd.Stdin, cmd.Stdout = dir, strings.NewReader(names.String()), to
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, errs.String())
	}
}

// only is the one file that the pattern matches.
func only(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %d files, want 1; run test/install.sh as root, which fetches the kernel", pattern, len(files))
	}
	return files[0]
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// write makes a file that can be executed, and the directories above it.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}
