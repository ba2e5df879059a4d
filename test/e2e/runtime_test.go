// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	_ "os/exec"
	"path/filepath"
	_ "regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// wrapper is nix-closure-runtime.
func wrapper() string { return filepath.Join(*bin, "nix-closure-runtime") }

// become makes nix-closure-runtime become a runtime, for the length of a test.
func become(t *testing.T, runtime string) {
	t.Helper()
	writeConfig(t, fmt.Sprintf("runtime = %q\n", runtime))
}

// This program is the runtime where it is called recorder.
func init() {
	if filepath.Base(os.Args[0]) == "recorder" {
		if err := record(filepath.Dir(os.Args[0])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(100)
		}
		os.Exit(42)
	}
}

// recording is all that a runtime could see of how it was started.
type recording struct {
	Cmdline, Environ, Stdin []byte
	Directory               string
	Descriptors             map[string]string // beyond 2: what they are of, and where in it
	Status                  []string
	DeathSignal             int
}

// record writes what this process was started with, reads its standard input and
// answers on the others. Where a file says so, it then waits.
func record(dir string) error {
	var r recording
	const getDeathSignal = 2 // PR_GET_PDEATHSIG
	var errs [6]error
	r.Cmdline, errs[0] = os.ReadFile("/proc/self/cmdline")
	r.Environ, errs[1] = os.ReadFile("/proc/self/environ")
	r.Directory, errs[2] = os.Readlink("/proc/self/cwd")
	r.Stdin, errs[3] = io.ReadAll(os.Stdin)
	r.Descriptors = map[string]string{}
	names, err := os.ReadDir("/proc/self/fd")
	errs[4] = err
	for _, n := range names {
		target, err := os.Readlink("/proc/self/fd/" + n.Name())
		if number, _ := strconv.Atoi(n.Name()); err != nil || number <= 2 || strings.HasPrefix(target, "/proc/") || strings.HasPrefix(target, "anon_inode:") {
			continue // this list, and Go's own
		}
		where, err := os.ReadFile("/proc/self/fdinfo/" + n.Name())
		if err != nil {
			return err
		}
		r.Descriptors[n.Name()] = target + "\n" + string(where)
	}
	status, err := os.ReadFile("/proc/self/status")
	errs[5] = err
	for line := range strings.Lines(string(status)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "PPid", "Uid", "Gid", "Groups", "Umask", "NStgid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed":
			r.Status = append(r.Status, line)
		}
	}
	// Of this thread, which is the first while functions like init run.
	var signal int32
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, getDeathSignal, uintptr(unsafe.Pointer(&signal)), 0); errno != 0 {
		return errno
	}
	r.DeathSignal = int(signal)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	fmt.Print("on standard output")
	fmt.Fprint(os.Stderr, "on standard error")
	if err := os.WriteFile(dir+"/recording", text, 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(dir + "/wait"); err == nil {
		time.Sleep(time.Minute)
	}
	return nil
}

// started is how a process is started, and what it left.
type started struct {
	directory string
	args, env []string
	// signal is sent when the process has recorded; 0: none.
	signal syscall.Signal

	out, errs string
	status    syscall.WaitStatus
}

// by starts a program, called name, with descriptors beyond 2: a pipe, a file read
// in part, and one that is not next to them.
func (s *started) by(t *testing.T, dir, program, name string) recording {
	t.Helper()
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(dir+"/"+name, flags, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	const create = os.O_CREATE | os.O_RDWR | os.O_TRUNC
	out, errs := open("out", create), open("errs", create)
	in, part, log := open("in", os.O_RDONLY), open("in", os.O_RDONLY), open("log", create|os.O_APPEND)
	pipe := open("pipe", os.O_RDWR|syscall.O_NONBLOCK)
	files := []*os.File{in, out, errs, pipe, part, nil, nil, log}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if _, err := part.Seek(3, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	removeAll(t, dir+"/recording")
	// The parent whose death is signalled is a thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Not exec.Cmd: of a variable that is there twice, it passes one.
	p, err := os.StartProcess(program, append([]string{name}, s.args...),
		&os.ProcAttr{Dir: s.directory, Env: s.env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGUSR2}})
	if err != nil {
		t.Fatal(err)
	}
	if s.signal != 0 {
		for range 500 {
			if _, err := os.Stat(dir + "/recording"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := p.Signal(s.signal); err != nil {
			t.Error(err)
		}
	}
	ended, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	s.status = ended.Sys().(syscall.WaitStatus)
	text, err := os.ReadFile(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	s.out = string(text)
	if text, err = os.ReadFile(dir + "/errs"); err != nil {
		t.Fatal(err)
	}
	s.errs = string(text)
	var r recording
	text, err = os.ReadFile(dir + "/recording")
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatalf("%q: %v\n%s", s.args, err, s.errs)
	}
	return r
}

// recorder makes a directory with this program as recorder, and what started.by
// needs.
func recorder(t *testing.T) (dir, program string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(self, dir+"/recorder"), os.WriteFile(dir+"/in", []byte("to standard input\x00\xff"), 0o644), syscall.Mkfifo(dir+"/pipe", 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, dir + "/recorder"
}

// identity is what changes when a file is written, replaced, or given to another.
func identity(t *testing.T, path string) syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	st.Atim = syscall.Timespec{}
	return st
}

// commandLines are of every command of runc and crun, in every form that one of
// them has, and in none. A is a bundle, and so is the current directory.
func commandLines() [][]string {
	var all [][]string
	for _, l := range strings.Split(`
create ID
create --bundle A ID
create --bundle=A ID
create -b A ID
create -b=A ID
create -bA ID
create -bundle A ID
create --bund A ID
create ID --bundle A
create A ID --bundle
create --bundle A --bundle . ID
create --bundle= ID
create --bundle
create
create ID ID2
create -- ID
create --bundle A -- ID
create --bundle A --pid-file p --console-socket s --no-pivot --no-new-keyring --no-subreaper --preserve-fds 3 ID
create --preserve-fds=3 --pidfd-socket s ID
create --config c.json ID
create --config=c.json ID
create -f c.json ID
create -fc.json ID
create --conf c.json ID
create --config none.json ID
create --unknown ID
create --unknown x --bundle A ID
create --unknown=x --bundle=A ID
create --help
create --bundle none ID
create --bundle c.json ID
run ID
run --detach --bundle A ID
run -d -b A ID
run -db A ID
run -dbA ID
run --keep --no-subreaper --bundle A ID
run --root R ID
restore ID
restore --bundle A --image-path i --work-path w --detach ID
restore --tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode soft --empty-ns network --auto-dedup --lazy-pages ID
checkpoint --image-path i --leave-running ID
delete ID
delete --force ID
events --stats ID
exec ID run
exec --tty --cwd / --env A=B --process p.json ID create --bundle A
features
init
kill ID KILL
kill --all ID 9
list --format json
list -q
mounts add ID x
pause ID
ps --format json ID
resume ID
spec --bundle A
spec --rootless
start ID
state ID
update --resources - ID
update --memory 1 ID
help
help create
nothing
--version
-v
-V
--help
-h
-?
--usage
--debug
--root R --log l --log-format json create --bundle A ID
--root=R --log=l --log-format=json --systemd-cgroup state ID
--root R --rootless true --criu c list
--cgroup-manager disabled --log-level debug run ID
--log create state ID
--log
-root R create ID
--unknown create ID
--unknown=x delete ID
-- create ID
-- state ID
--
-
- create ID
`[1:], "\n") {
		all = append(all, strings.Split(l, " "))
	}
	return append(all,
		[]string{}, []string{""}, []string{"", ""}, []string{"create", ""}, []string{"create", "--bundle", "", "ID"}, []string{"", "create", "ID"},
		[]string{"state", "two words"}, []string{"state", "two\nlines\n"}, []string{"state", "\t\r \v"}, []string{"state", "\xff\xfe\x80"}, []string{"state", "日本 \u202e \x1b[31m"},
		[]string{"run", "--bundle", "A", "\xff"}, []string{"run", "--bundle", "not\xffthere\n", "ID"}, []string{"\xff\n"}, []string{"--\xff", "create"},
		[]string{"state", strings.Repeat("x", 100_000)}, slices.Repeat([]string{"run"}, 5_000), []string{`"quoted"`, `\`, `'`, "$HOME", "*", "%s"},
	)
}

// A container without an annotation, and whatever makes no container, is the
// runtime's: nothing between it and the engine can be seen, and no config.json is
// written.
func TestRuntimeIsTransparent(t *testing.T) {
	dir, program := recorder(t)
	become(t, program)
	work := t.TempDir()
	if err := os.Mkdir(work+"/A", 0o755); err != nil {
		t.Fatal(err)
	}
	files := []string{work + "/config.json", work + "/A/config.json", work + "/c.json"}
	identities := map[string]syscall.Stat_t{}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(`{"annotations":{"nix-closures/roots":"x"},"mounts":[{"source":"/nix/store","destination":"/nix/store"}]}`), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing can be written there either.
	bindMount(t, work, work)
	if err := syscall.Mount("", work, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		identities[f] = identity(t, f)
	}
	env := []string{
		"PATH=/usr/bin:/bin", "TWICE=1", "TWICE=2", "EMPTY=", "", "no equals sign", "=name", "LINES=a\nb", "BYTES=\xff\xfe", "LD_PRELOAD=/nowhere.so", "GODEBUG=madvdontneed=1",
		"XDG_RUNTIME_DIR=/nowhere", "NOTIFY_SOCKET=/nowhere", "LISTEN_FDS=1", "_LIBCONTAINER_INITPIPE=3", "PWD=/elsewhere", "HOME=", "TZ=nowhere",
	}
	all := commandLines()
	for _, args := range all {
		for _, env := range [][]string{env, {}} {
			direct := started{directory: work, args: args, env: env}
			wrapped := direct
			want, got := direct.by(t, dir, program, program), wrapped.by(t, dir, wrapper(), "an engine's name for it")
			if !bytes.Equal(got.Cmdline, want.Cmdline) || !strings.HasPrefix(string(want.Cmdline), program+"\x00"+strings.Join(args, "\x00")) {
				t.Errorf("%.200q: arguments %.500q", args, got.Cmdline)
			}
			if !bytes.Equal(got.Environ, want.Environ) || len(env) > 0 && string(want.Environ) != strings.Join(env, "\x00")+"\x00" {
				t.Errorf("%.200q: environment %q\nwant %q", args, got.Environ, want.Environ)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || len(want.Descriptors) != 3 || want.DeathSignal != int(syscall.SIGUSR2) || want.Directory != work {
				t.Errorf("%.200q:\n%.2000q\nwant\n%.2000q", args, fmt.Sprint(got), fmt.Sprint(want))
			}
			if wrapped.out != "on standard output" || wrapped.errs != "on standard error" || string(got.Stdin) != "to standard input\x00\xff" || wrapped.status.ExitStatus() != 42 {
				t.Errorf("%.200q: read %q, wrote %q and %q, exit status %d", args, got.Stdin, wrapped.out, wrapped.errs, wrapped.status.ExitStatus())
			}
			if len(args) > 100 {
				break
			}
		}
	}
	t.Logf("%d command lines", len(all))
	for _, f := range files {
		if now := identity(t, f); now != identities[f] {
			t.Errorf("%s was %+v, is %+v", f, identities[f], now)
		}
	}
	// It is the runtime that gets a signal, in the same process.
	if err := os.WriteFile(dir+"/wait", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGUSR1} {
		s := started{directory: work, args: []string{"run", "ID"}, signal: signal}
		s.by(t, dir, wrapper(), "x")
		if !s.status.Signaled() || s.status.Signal() != signal {
			t.Errorf("signal %v: %+v", signal, s.status)
		}
	}
}
