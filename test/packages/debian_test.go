// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// debian is a clean Debian with podman, runc, crun and Nix, with a small store and an
// image. It has no nix-closure.
type debian struct {
	t     *testing.T
	dir   string // its root directory, on this machine
	inner string // the PID of a process of which it is the root
	// Store paths: hello needs words, and neither needs foreign.
	hello, words, foreign string
}

const (
	image   = "localhost/ordinary:latest" // has a /bin/true
	logFile = "/var/log/nix-closure.log"
)

// unpacked is where what test/install.sh made is unpacked.
func unpacked(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(testhost.Dir(), "debian")
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return dir
	}
	found, err := filepath.Glob(filepath.Join(*bin, "debian/*.tar"))
	if err != nil || len(found) != 1 {
		t.Fatalf("debian/*.tar: %q %v; run test/install.sh test", found, err)
	}
	must(t, "tar", "-x", "--numeric-owner", "-C", dir, "-f", found[0])
	return dir
}

func newDebian(t *testing.T) *debian {
	t.Helper()
	work, err := os.MkdirTemp(testhost.Dir(), "root-")
	if err != nil {
		t.Fatal(err)
	}
	d := &debian{t: t, dir: filepath.Join(work, "root")}
	for _, dir := range []string{"root", "upper", "work", "nix", "containers"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		target = d.dir + target
		err := os.MkdirAll(target, 0o755)
		if err := errors.Join(err, syscall.Mount(source, target, kind, flags, data)); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", "", "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", unpacked(t), work, work))
	t.Cleanup(func() {
		if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mount("proc", "/proc", "proc", 0, "")
	mount("/sys", "/sys", "", syscall.MS_BIND|syscall.MS_REC, "")
	mount("/dev", "/dev", "", syscall.MS_BIND|syscall.MS_REC, "")
	mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
	mount(work+"/nix", "/nix", "", syscall.MS_BIND, "")
	mount(work+"/containers", "/var/lib/containers", "", syscall.MS_BIND, "")
	mount(filepath.Join(*bin, "dist"), "/mnt", "", syscall.MS_BIND|syscall.MS_RDONLY, "")
	for path, text := range map[string]string{
		"/etc/nix/nix.conf": "build-users-group =\nsandbox = false\nsubstituters =\n",
		// What a test machine may not do.
		"/etc/containers/containers.conf": "[containers]\n" +
			"default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\nnetns = \"none\"\n" +
			"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
		"/etc/apt/apt.conf.d/yes": "APT::Get::Assume-Yes \"true\";\n",
		"/root/store.nix":         string(read(t, "testdata/store.nix")),
	} {
		err := os.MkdirAll(filepath.Dir(d.dir+path), 0o755)
		if err := errors.Join(err, os.WriteFile(d.dir+path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	d.enter()
	d.furnish()
	return d
}

// enter starts the process inside.
func (d *debian) enter() {
	d.t.Helper()
	// The new root is the only one: runtimes pivot there once more, which a chroot forbids.
	const script = `cd "$1" && pivot_root . media && cd / && busybox umount -l /media &&
		echo inside && exec sleep 1000000`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", d.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	d.inner = fmt.Sprint(cmd.Process.Pid)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "inside\n" {
		d.t.Fatalf("entering %s: %q %v", d.dir, line, err)
	}
}

// furnish makes the store and the image.
func (d *debian) furnish() {
	d.t.Helper()
	d.must("nix-store", "--init")
	d.must("nix-build", "--quiet", "--no-build-output", "--out-link", "/nix/result", "/root/store.nix")
	for attribute, path := range map[string]*string{"hello": &d.hello, "words": &d.words, "foreign": &d.foreign} {
		*path = strings.TrimSpace(d.must("nix-instantiate", "--eval", "--json", "/root/store.nix", "--attr",
			attribute+".outPath"))
		if err := json.Unmarshal([]byte(*path), path); err != nil {
			d.t.Fatal(err)
		}
	}
	busybox := read(d.t, d.dir+"/bin/busybox")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
		{Name: "bin/true", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
	} {
		err := w.WriteHeader(&h)
		if h.Size > 0 {
			_, err2 := w.Write(busybox)
			err = errors.Join(err, err2)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		d.t.Fatal(err)
	}
	cmd := d.command("podman", "import", "--quiet", "-", image)
	cmd.Stdin = &b
	if stdout, stderr, err := run(cmd); err != nil {
		d.t.Fatalf("podman import: %v\n%s%s", err, stdout, stderr)
	}
}

// command is a program of this Debian, as root's shell has it.
func (d *debian) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--mount", "--target", d.inner, "--", program}, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive",
	}
	return cmd
}

func (d *debian) call(program string, args ...string) (stdout, stderr string, err error) {
	return run(d.command(program, args...))
}

// must is call, and what the program printed.
func (d *debian) must(program string, args ...string) string {
	d.t.Helper()
	stdout, stderr, err := d.call(program, args...)
	if err != nil {
		d.t.Fatalf("%s %q: %v\n%s%s", program, args, err, stdout, stderr)
	}
	return stdout
}

// typed is a command line of packaging/README.md, typed where the packages are, and all
// that it printed. README has it as it is here.
func (d *debian) typed(line string) (string, error) {
	d.t.Helper()
	if !strings.Contains(string(read(d.t, repository+"/packaging/README.md")), "\n    "+line+"\n") {
		d.t.Errorf("packaging/README.md does not say: %s", line)
	}
	stdout, stderr, err := run(d.command("sh", "-c", "cd /mnt && "+strings.TrimPrefix(line, "sudo ")))
	return stdout + stderr, err
}

// mustType is typed, which must succeed.
func (d *debian) mustType(line string) {
	d.t.Helper()
	if out, err := d.typed(line); err != nil {
		d.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// apt is apt-get, and all that it and the package's scripts printed.
func (d *debian) apt(args ...string) (string, error) {
	d.t.Helper()
	stdout, stderr, err := d.call("apt-get", args...)
	return strings.ReplaceAll(stdout+stderr, "\r\n", "\n"), err // dpkg is on a terminal of apt's
}

// podman runs a container to its end.
func (d *debian) podman(runtime, roots string, command ...string) (stdout, stderr string, err error) {
	args := []string{"--runtime", runtime, "run", "--rm"}
	if roots != "" {
		args = append(args, "--annotation", "nix-closure/roots="+roots)
	}
	return d.call("podman", slices.Concat(args, []string{image}, command)...)
}

var runtimes = []string{"runc", "crun"}

const canary = "/nix/store/canary"

// failsOpen fails unless the canary starts: nothing is installed. It is the control of
// failsClosed.
func (d *debian) failsOpen() {
	d.t.Helper()
	for _, runtime := range runtimes {
		if _, stderr, err := d.podman(runtime, canary, "/bin/true"); err != nil {
			d.t.Fatalf("%s: without nix-closure, the canary does not start: %v %s", runtime, err, stderr)
		}
	}
}

// failsClosed fails unless the canary is refused with its reason, and a container has
// exactly its closure.
func (d *debian) failsClosed() {
	d.t.Helper()
	want := []string{filepath.Base(d.hello), filepath.Base(d.words)}
	slices.Sort(want)
	for _, runtime := range runtimes {
		_, stderr, err := d.podman(runtime, canary, "/bin/true")
		if err == nil {
			d.t.Errorf("%s: the canary starts", runtime)
		}
		const reason = `annotation nix-closure/roots: "/nix/store/canary": `
		log := strings.Split(strings.TrimSpace(string(read(d.t, d.dir+logFile))), "\n")
		var last struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(log[len(log)-1]), &last); err != nil || last.Level != "error" ||
			!strings.Contains(last.Msg, reason) || runtime == "runc" && !strings.Contains(stderr, reason) {
			d.t.Errorf("%s: the log says %q, and podman %q", runtime, last, stderr)
		}
		stdout, stderr, err := d.podman(runtime, d.hello, d.hello+"/bin/busybox", "ls", "-A", "/nix/store")
		if got := strings.Fields(stdout); err != nil || !slices.Equal(got, want) {
			d.t.Errorf("%s: %v, the store has %q\n%s", runtime, err, got, stderr)
		}
	}
}

// start starts a container with a closure, and returns its ID.
func (d *debian) start() string {
	d.t.Helper()
	return strings.TrimSpace(d.must("podman", "--runtime", "runc", "run", "--detach", "--annotation",
		"nix-closure/roots="+d.hello, image, d.hello+"/bin/busybox", "sleep", "1000"))
}

// files are all files, with their owners and modes, and the contents of those in /etc.
// Left out is what apt, rpm, Nix and podman write for any package and container.
func (d *debian) files() []string {
	d.t.Helper()
	args := []string{"/", "/run", "/nix", "-xdev", "("}
	for _, path := range []string{
		"/var/cache/apt", "/var/lib/apt/lists", "/var/log/apt", "/var/log/dpkg.log", "/var/lib/rpm",
		"/nix/var/nix/db", "/nix/var/nix/gc-socket", "/run/containers", "/run/crun", "/run/libpod", "/run/runc", "/tmp",
	} {
		args = append(args, "-path", path, "-o")
	}
	args = append(args, "-false", ")", "-prune", "-o", "-printf", `%p %y %m %U %G %l\n`)
	text := d.must("find", args...) + d.must("find", "/etc", "-type", "f", "-exec", "sha256sum", "{}", "+")
	all := strings.Split(text, "\n")
	slices.Sort(all)
	return slices.Compact(all)
}

// changed are the files that were made, changed or removed since then.
func (d *debian) changed(since []string) (lines []string) {
	d.t.Helper()
	now := d.files()
	for _, line := range now {
		if _, ok := slices.BinarySearch(since, line); !ok {
			lines = append(lines, "+"+line)
		}
	}
	for _, line := range since {
		if _, ok := slices.BinarySearch(now, line); !ok {
			lines = append(lines, "-"+line)
		}
	}
	return lines
}

// noTrace fails if a file was made, changed or removed since then.
func (d *debian) noTrace(since []string) {
	d.t.Helper()
	for _, line := range d.changed(since) {
		d.t.Errorf("a trace: %s", line)
	}
}

// traces fails unless these paths are there that were not: it is the control of noTrace.
func (d *debian) traces(since []string, paths ...string) {
	d.t.Helper()
	all := d.changed(since)
	for _, path := range paths {
		if !slices.ContainsFunc(all, func(line string) bool { return strings.HasPrefix(line, "+"+path+" ") }) {
			d.t.Errorf("no trace of %s", path)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
