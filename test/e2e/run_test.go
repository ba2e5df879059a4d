// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runner is somebody who runs nix-closure run.
type runner struct {
	name    string
	user    *ordinary // nil: root
	runtime string
	mode    string
}

func (r runner) command(args ...string) *exec.Cmd {
	args = append([]string{"run", "--runtime", r.runtime, "--mode", r.mode}, args...)
	if r.user != nil {
		return r.user.command(machineProgram(), args...)
	}
	return exec.Command(filepath.Join(*bin, "nix-closure"), args...)
}

func (r runner) run(args ...string) (stdout, stderr string, status int) {
	cmd := r.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// python runs a script with the python3 of the closure.
func (r runner) python(t *testing.T, script string, flags ...string) string {
	t.Helper()
	args := slices.Concat(flags, []string{store["env"], "--", "python3", "-B", "-c", script})
	out, errs, status := r.run(args...)
	if status != 0 {
		t.Fatalf("run %q: status %d\n%s%s\n%s", args, status, out, errs, lastLog(t))
	}
	return strings.TrimSpace(out)
}

// nothingLeft fails if a container left anything.
func (r runner) nothingLeft(t *testing.T) {
	t.Helper()
	scratch := runtimeDir + "-run"
	if r.user != nil {
		r.user.nothingLeft(t)
		scratch = r.user.own + "-run"
	} else {
		nothingLeft(t)
	}
	if entries, err := os.ReadDir(scratch); err != nil || len(entries) > 0 {
		t.Errorf("%s: %v %v", scratch, entries, err)
	}
	mounts := string(read(t, "/proc/self/mountinfo"))
	if strings.Contains(mounts, "nix-closure-run") {
		t.Errorf("mounts are left: %s", mounts)
	}
}

// eachRunner runs a test as root in each mode, and as an ordinary user, with each runtime.
func eachRunner(t *testing.T, f func(t *testing.T, r runner)) {
	nixDaemon(t)
	dave := userWithoutLogin(t, "dave")
	for _, runtime := range runtimes {
		for _, r := range []runner{
			{name: "root/overlay", runtime: runtime, mode: "overlay"}, {name: "root/bind", runtime: runtime,
				mode: "bind"},
			{name: "user", user: dave, runtime: runtime, mode: "auto"},
		} {
			t.Run(runtime+"/"+r.name, func(t *testing.T) { f(t, r) })
		}
	}
}

const aroundScript = `
import json, os
def names(d): return sorted(os.listdir(d))
def mounts():
    with open('/proc/self/mountinfo') as f: return [l.split()[4] for l in f]
def write(path):
    try:
        with open(path, 'w') as f: return ''
    except OSError as e: return e.strerror
print(json.dumps({
    'store': names('/nix/store'), 'root': names('/'), 'nix': names('/nix'),
    'home': os.environ.get('HOME'), 'path': os.environ['PATH'],
    'environ': sorted(os.environ), 'cwd': os.getcwd(), 'uid': os.getuid(), 'gid': os.getgid(),
    'pid': os.getpid(), 'dev': names('/dev'),
    'net': names('/sys/class/net'), 'writeRoot': write('/new'), 'writeTmp': write('/tmp/new'),
    'writeStore': write('/nix/store/new'),
    'tty': os.isatty(0), 'foreign': [m for m in mounts() if m.startswith('/nix/') and not m.startswith('/nix/store')],
}))
`

// around is what aroundScript prints.
type around struct {
	Store, Root, Nix, Environ, Net, Dev, Foreign []string
	Home, Path, Cwd                              string
	UID, GID, Pid                                int
	WriteRoot, WriteTmp, WriteStore              string
	TTY                                          bool
}

func (r runner) around(t *testing.T, flags ...string) (a around) {
	t.Helper()
	out := r.python(t, aroundScript, flags...)
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return a
}

// The container has exactly its closure, an otherwise empty root and no network.
func TestRun(t *testing.T) {
	eachRunner(t, func(t *testing.T, r runner) {
		a := r.around(t)
		if want := closureOf(t, store["env"]); !slices.Equal(a.Store, want) {
			t.Errorf("the store has %q\nwant %q", a.Store, want)
		}
		if want := []string{"dev", "new", "nix", "proc", "sys", "tmp"}; !slices.Equal(a.Root,
			slices.DeleteFunc(want, func(n string) bool { return n == "new" })) {
			t.Errorf("the root has %q", a.Root)
		}
		if !slices.Equal(a.Net, []string{"lo"}) {
			t.Errorf("the network has %q", a.Net)
		}
		if a.Cwd != "/" || a.UID != 0 || a.GID != 0 || a.Pid != 1 || a.Home != "/" || a.Path != store["env"]+"/bin" ||
			a.TTY {
			t.Errorf("%+v", a)
		}
		if a.WriteRoot != "" || a.WriteTmp != "" || a.WriteStore != "Read-only file system" || len(a.Foreign) > 0 {
			t.Errorf("%+v", a)
		}
		if i := slices.IndexFunc(a.Environ,
			func(n string) bool { return !slices.Contains([]string{"HOME", "LC_CTYPE", "PATH"}, n) }); i >= 0 {
			t.Errorf("the environment has %q", a.Environ)
		}
		r.nothingLeft(t)
	})
}

// With systemd, / is a shared mount. What the container has shows nowhere else.
func TestRunOnSharedRoot(t *testing.T) {
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			const script = `mount --make-rshared / &&
				"$0" run --runtime "$1" --network host --volume /usr:/usr:ro "$2" -- bash -c 'echo /nix/store/*' &&
				grep -c nix-closure-run /proc/self/mountinfo`
			out, errs, err := call("unshare", "--mount", "sh", "-c", script, filepath.Join(*bin, "nix-closure"),
				runtime, store["env"])
			var want []string
			for _, name := range closureOf(t, store["env"]) {
				want = append(want, storeDir+"/"+name)
			}
			got := strings.Fields(out)
			if status(err) != 1 || len(got) == 0 || got[len(got)-1] != "0" || !slices.Equal(got[:len(got)-1], want) {
				t.Errorf("%v: %s%s", err, out, errs)
			}
			nothingLeft(t)
		})
	}
}

func TestRunFlags(t *testing.T) {
	eachRunner(t, func(t *testing.T, r runner) {
		dir := t.TempDir()
		write(t, dir+"/file", []byte("of the host"))
		for at := dir; at != "/"; at = filepath.Dir(at) {
			if err := os.Chmod(at, 0o777|os.ModeSticky); err != nil {
				t.Fatal(err)
			}
		}
		a := r.around(t, "--read-only", "--workdir", "/tmp", "--env", "A=1 2", "--env", "HOME=/tmp", "--network",
			"host")
		if a.Cwd != "/tmp" || a.WriteRoot != "Read-only file system" || a.WriteTmp != "" || a.Home != "/tmp" ||
			!slices.Contains(a.Environ, "A") {
			t.Errorf("%+v", a)
		}
		if got := r.python(t, "import os; print(sorted(os.listdir('/sys/class/net')) != ['lo'] or "+
			"os.path.exists('/etc/hosts'))", "--network", "host"); got != "True" {
			t.Errorf("with the host's network: %s", got)
		}
		if got := r.python(t, "print(open('/v/file').read()); open('/v/made', 'w')", "--volume",
			dir+":/v"); got != "of the host" {
			t.Errorf("the volume has %q", got)
		}
		if _, err := os.Stat(dir + "/made"); err != nil {
			t.Error(err)
		}
		if got := r.python(t, "try: open('/v/new', 'w')\nexcept OSError as e: print(e.strerror)", "--volume",
			dir+":/v:ro"); got != "Read-only file system" {
			t.Errorf("writing to a volume: %q", got)
		}
		const caps = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0])"
		usual, more := r.python(t, caps), r.python(t, caps, "--cap-add", "net_admin")
		if usual == more {
			t.Errorf("capabilities %s, and with net_admin %s", usual, more)
		}
		if !r.singleUser(t) {
			got := r.python(t, "import os; print(os.getuid(), os.getgid())", "--user", "1000:100")
			if got != "1000 100" {
				t.Errorf("the user is %s", got)
			}
			if got := r.python(t, caps, "--user", "1000:100"); got != "0000000000000000" {
				t.Errorf("another user has capabilities %s", got)
			}
		}
		if got := r.python(t, "import sqlite3; c = sqlite3.connect('file:/nix/var/nix/db/db.sqlite?immutable=1', "+
			"uri=True)\n"+
			"print(c.execute('select count(*) from ValidPaths').fetchone()[0])",
			"--registration"); got != fmt.Sprint(len(closureOf(t, store["env"]))) {
			t.Errorf("the registration has %s paths", got)
		}
		if r.mode == "overlay" {
			if a := r.around(t, "--writable"); a.WriteStore != "" {
				t.Errorf("writing to a writable store: %s", a.WriteStore)
			}
		}
		r.nothingLeft(t)
	})
}

// singleUser tells whether an ordinary user has no subordinate users.
func (r runner) singleUser(t *testing.T) bool {
	t.Helper()
	return r.user != nil && !strings.Contains(string(read(t, "/etc/subuid")), r.user.name+":")
}

// The exit status is the command's, or says why there is none.
func TestRunStatus(t *testing.T) {
	const denied = "[[allow]]\nroots = [\"/nix/store/*-nothing\"]\n"
	eachRunner(t, func(t *testing.T, r runner) {
		env := store["env"]
		for _, c := range []struct {
			name   string
			args   []string
			config string
			status int
			says   string
		}{
			{name: "success", args: []string{env, "--", "bash", "-c", "exit 0"}},
			{name: "failure", args: []string{env, "--", "bash", "-c", "exit 42"}, status: 42},
			{name: "signal",
				args:   []string{env, "--", "bash", "-c", "trap - TERM; bash -c 'kill -TERM $PPID; sleep 1'; exit 7"},
				status: 7},
			{name: "killed", args: []string{env, "--", "python3", "-c",
				"import os, signal; os.fork() or os.kill(os.getpid(), signal.SIGKILL); print(os.wait()[1])"}},
			{name: "no such program", args: []string{env, "--", "nothing"}, status: 127,
				says: "not found in the bin/ of"},
			{name: "no such file", args: []string{env, "--", "/nothing"}, status: 127},
			{name: "a directory", args: []string{env, "--", env + "/bin"}, status: 126, says: "is a directory"},
			{name: "foreign program", args: []string{env, "--", store["foreign"] + "/bin/busybox"}, status: 127,
				says: "not found in the closure"},
			{name: "not valid", args: []string{unknown, "--", "sh"}, status: 125, says: "is not valid"},
			{name: "no store path", args: []string{"/etc/passwd", "--", "sh"}, status: 125,
				says: "/etc/passwd is not below the store directory /nix/store"},
			{name: "many programs", args: []string{env}, status: 125, says: "more than one program: "},
			{name: "no program", args: []string{store["data"]}, status: 126, says: "cannot be executed"},
			{name: "script", args: []string{store["script"]}},
			{name: "no volume", args: []string{"--volume", "/none:/v", env, "--", "bash"}, status: 125,
				says: "no such file"},
			{name: "named volume", args: []string{"--volume", "data:/v", env, "--", "bash"}, status: 125,
				says: "there are no named volumes"},
			{name: "capability", args: []string{"--cap-add", "everything", env, "--", "bash"}, status: 125,
				says: "no capability of Linux"},
			{name: "network", args: []string{"--network", "bridge", env, "--", "bash"}, status: 125,
				says: "neither none nor host"},
			{name: "no terminal", args: []string{"--tty", env, "--", "bash"}, status: 125, says: "not a terminal"},
			{name: "the store", args: []string{"--volume", "/nix/store:/other", env, "--", "bash"}, status: 126,
				says: "and with it more than the closure"},
			{name: "not allowed", args: []string{env, "--", "bash"}, config: denied, status: 126, says: "allow"},
		} {
			t.Run(c.name, func(t *testing.T) {
				if c.config != "" {
					writeConfig(t, c.config)
				}
				out, errs, status := r.run(c.args...)
				if status != c.status || !strings.Contains(errs, c.says) {
					t.Errorf("status %d, %s%s\nwant %d and %s", status, out, errs, c.status, c.says)
				}
			})
		}
		if out, _, _ := r.run(store["script"]); out != "Hello, world!\n" {
			t.Errorf("the only program says %q", out)
		}
		r.nothingLeft(t)
	})
}

// A signal is the command's, once.
func TestRunSignals(t *testing.T) {
	const script = `
import signal, sys, time
seen = []
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1): signal.signal(s, lambda n, _: seen.append(n))
print('ready', flush=True)
while signal.SIGTERM not in seen: time.sleep(0.01)
time.sleep(0.2)
print(*[int(n) for n in seen], flush=True)
sys.exit(9)
`
	eachRunner(t, func(t *testing.T, r runner) {
		cmd := r.command(store["env"], "--", "python3", "-B", "-c", script)
		p := startTalking(t, cmd)
		p.expect(t, "ready\n")
		for _, s := range []syscall.Signal{unix.SIGUSR1, unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		p.expect(t, "10 1 2 15\n")
		if status := p.wait(); status != 9 {
			t.Errorf("status %d, want 9", status)
		}
		r.nothingLeft(t)
	})
}

// What is killed leaves nothing, though the runtime cannot clean up.
func TestRunKilled(t *testing.T) {
	eachRunner(t, func(t *testing.T, r runner) {
		cmd := r.command(store["env"], "--", "bash", "-c", "echo ready; read -r line; exit 3")
		p := startTalking(t, cmd)
		p.expect(t, "ready\n")
		runtime := strings.Fields(must(t, "pgrep", "--parent", fmt.Sprint(cmd.Process.Pid)))
		if len(runtime) != 1 {
			t.Fatalf("children %q", runtime)
		}
		must(t, "kill", "-KILL", runtime[0])
		if status := p.wait(); status != 128+9 {
			t.Errorf("status %d, want 137", status)
		}
		r.nothingLeft(t)
	})
}

// talking is a program that a test reads from and writes to.
type talking struct {
	cmd  *exec.Cmd
	in   *os.File
	out  *os.File
	seen strings.Builder
}

// startTalking starts a program with pipes, or, where its standard input is set already,
// with that.
func startTalking(t *testing.T, cmd *exec.Cmd) *talking {
	t.Helper()
	p := &talking{cmd: cmd}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, write, os.Stderr
	p.in, p.out = to, read
	p.start(t)
	_ = write.Close()
	_ = in.Close()
	return p
}

func (p *talking) start(t *testing.T) {
	t.Helper()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.in.Close()
		_ = p.out.Close()
	})
}

// expect waits until the program has written a text since the last call.
func (p *talking) expect(t *testing.T, text string) {
	t.Helper()
	p.until(t, text, 20*time.Second)
}

// until waits until the program has written a text, and returns what it wrote before.
func (p *talking) until(t *testing.T, text string, timeout time.Duration) (before string) {
	t.Helper()
	if err := p.out.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for !strings.Contains(p.seen.String(), text) {
		n, err := p.out.Read(buf)
		p.seen.Write(buf[:n])
		if err != nil && n == 0 {
			t.Fatalf("%v; it wrote %q, want %q", err, p.seen.String(), text)
		}
	}
	before, after, _ := strings.Cut(p.seen.String(), text)
	p.seen.Reset()
	p.seen.WriteString(after)
	return before
}

func (p *talking) wait() int {
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// terminal makes a pseudo-terminal (pts(4)).
func terminal(t *testing.T) (ours, its *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	its, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ours, its
}

func resize(t *testing.T, ours *os.File, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ,
		&unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// With --tty the command has a terminal of its own: with the size of the outer one, whose
// keys it gets, and which is as it was afterwards.
func TestRunTerminal(t *testing.T) {
	const script = `
import os, signal, sys, time
def say(*words): os.write(1, (' '.join(map(str, words)) + '\n').encode())
def size(*_): say('size', *os.get_terminal_size(0))
signal.signal(signal.SIGWINCH, size)
signal.signal(signal.SIGINT, lambda *_: say('interrupted'))
for _ in range(100):
    if tuple(os.get_terminal_size(0)) == (101, 33): break
    time.sleep(0.02)
size()
say(os.ttyname(0), os.environ['TERM'])
for line in sys.stdin:
    if line.strip() == 'end': sys.exit(5)
    say('got', line.strip())
`
	eachRunner(t, func(t *testing.T, r runner) {
		ours, its := terminal(t)
		resize(t, ours, 33, 101)
		if r.user != nil {
			if err := its.Chown(r.user.id, r.user.id); err != nil {
				t.Fatal(err)
			}
		}
		before, err := unix.IoctlGetTermios(int(its.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		cmd := r.command("--tty", "--env", "TERM=vt100", store["env"], "--", "python3", "-B", "-c", script)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = its, its, its
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		p := &talking{cmd: cmd, in: ours, out: ours}
		p.start(t)
		p.expect(t, "size 101 33\r\n")
		p.expect(t, "/dev/")
		p.expect(t, "vt100\r\n")
		say := func(text string) {
			if _, err := ours.WriteString(text); err != nil {
				t.Fatal(err)
			}
		}
		say("hello\r")
		p.expect(t, "got hello\r\n")
		say("\x03") // Ctrl-C
		p.expect(t, "interrupted\r\n")
		if r.runtime != "crun" { // crun 1.8.1 passes the signal on, and not the size
			resize(t, ours, 20, 60)
			p.expect(t, "size 60 20\r\n")
		}
		say("end\r")
		if status := p.wait(); status != 5 {
			t.Errorf("status %d, want 5", status)
		}
		after, err := unix.IoctlGetTermios(int(its.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("the terminal is another than before: %v %+v, want %+v", err, after, before)
		}
		_ = its.Close()
		r.nothingLeft(t)
	})
}

// Without --tty, Ctrl-C on the terminal reaches the command once.
func TestRunInterrupted(t *testing.T) {
	const script = `
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print('ready', flush=True)
while not seen: time.sleep(0.01)
time.sleep(0.3)
print('seen', len(seen), flush=True)
`
	eachRunner(t, func(t *testing.T, r runner) {
		ours, its := terminal(t)
		if r.user != nil {
			if err := its.Chown(r.user.id, r.user.id); err != nil {
				t.Fatal(err)
			}
		}
		cmd := r.command(store["env"], "--", "python3", "-B", "-c", script)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = its, its, its
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		p := &talking{cmd: cmd, in: ours, out: ours}
		p.start(t)
		p.expect(t, "ready\r\n")
		if _, err := ours.WriteString("\x03"); err != nil {
			t.Fatal(err)
		}
		p.expect(t, "seen 1\r\n")
		if status := p.wait(); status != 0 {
			t.Errorf("status %d", status)
		}
		r.nothingLeft(t)
	})
}
