// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
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

// closedOnExec is in the fdinfo of what no program inherits.
var closedOnExec = regexp.MustCompile(`(?m)^flags:\t02\d{6}$`)

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
		if number, _ := strconv.Atoi(n.Name()); err != nil || number <= 2 {
			continue
		}
		where, err := os.ReadFile("/proc/self/fdinfo/" + n.Name())
		if err != nil {
			return err
		}
		if closedOnExec.Match(where) {
			continue // this program's own
		}
		r.Descriptors[n.Name()] = target + "\n" + string(where)
	}
	status, err := os.ReadFile("/proc/self/status")
	errs[5] = err
	for line := range strings.Lines(string(status)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "PPid", "Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
			"Seccomp", "Cpus_allowed":
			r.Status = append(r.Status, line)
		}
	}
	// Of this thread, which is the first while functions like init run.
	var signal int32
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, getDeathSignal, uintptr(unsafe.Pointer(&signal)),
		0); errno != 0 {
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
		os.Symlink(self, dir+"/recorder"), os.WriteFile(dir+"/in", []byte("to standard input\x00\xff"), 0o644),
		syscall.Mkfifo(dir+"/pipe", 0o644),
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

// ended is the form of /proc/*/cmdline: each argument with a NUL after it.
func ended(all []string) string {
	var b strings.Builder
	for _, s := range all {
		b.WriteString(s + "\x00")
	}
	return b.String()
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
restore --tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode soft`+
		` --empty-ns network --auto-dedup --lazy-pages ID
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
		[]string{}, []string{""}, []string{"", ""}, []string{"create", ""}, []string{"create", "--bundle", "", "ID"},
		[]string{"", "create", "ID"},
		[]string{"state", "two words"}, []string{"state", "two\nlines\n"}, []string{"state", "\t\r \v"},
		[]string{"state", "\xff\xfe\x80"}, []string{"state", "日本 \u202e \x1b[31m"},
		[]string{"run", "--bundle", "A", "\xff"}, []string{"run", "--bundle", "not\xffthere\n", "ID"},
		[]string{"\xff\n"}, []string{"--\xff", "create"},
		[]string{"state", strings.Repeat("x", 100_000)}, slices.Repeat([]string{"run"}, 5_000),
		[]string{`"quoted"`, `\`, `'`, "$HOME", "*", "%s"},
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
		if err := os.WriteFile(f, []byte(`{"annotations":{"nix-closures/roots":"x"},"mounts":[{"source":"/nix/store",`+
			`"destination":"/nix/store"}]}`), 0o640); err != nil {
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
		"PATH=/usr/bin:/bin", "TWICE=1", "TWICE=2", "EMPTY=", "", "no equals sign", "=name", "LINES=a\nb",
		"BYTES=\xff\xfe", "LD_LIBRARY_PATH=/nowhere", "GODEBUG=madvdontneed=1",
		"XDG_RUNTIME_DIR=/nowhere", "NOTIFY_SOCKET=/nowhere", "LISTEN_FDS=1", "_LIBCONTAINER_INITPIPE=3",
		"PWD=/elsewhere", "HOME=", "TZ=nowhere",
	}
	all := commandLines()
	for _, args := range all {
		for _, env := range [][]string{env, {}} {
			direct := started{directory: work, args: args, env: env}
			wrapped := direct
			want, got := direct.by(t, dir, program, program), wrapped.by(t, dir, wrapper(), "an engine's name for it")
			if !bytes.Equal(got.Cmdline, want.Cmdline) ||
				string(got.Cmdline) != ended(append([]string{program}, args...)) {
				t.Errorf("%.200q: arguments %.500q", args, got.Cmdline)
			}
			if !bytes.Equal(got.Environ, want.Environ) || string(got.Environ) != ended(env) {
				t.Errorf("%.200q: environment %q\nwant %q", args, got.Environ, want.Environ)
			}
			got.Cmdline, got.Environ, want.Cmdline, want.Environ = nil, nil, nil, nil
			if !reflect.DeepEqual(got, want) || len(got.Descriptors) < 3 || got.DeathSignal != int(syscall.SIGUSR2) ||
				got.Directory != work {
				t.Errorf("%.200q:\n%+v\nwant\n%+v", args, got, want)
			}
			if wrapped.out != "on standard output" || wrapped.errs != "on standard error" ||
				string(got.Stdin) != "to standard input\x00\xff" || wrapped.status.ExitStatus() != 42 {
				t.Errorf("%.200q: read %q, wrote %q and %q, exit status %d", args, got.Stdin, wrapped.out, wrapped.errs,
					wrapped.status.ExitStatus())
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
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGHUP} {
		s := started{directory: work, args: []string{"run", "ID"}, signal: signal}
		s.by(t, dir, wrapper(), "x")
		if !s.status.Signaled() || s.status.Signal() != signal {
			t.Errorf("signal %v: %+v", signal, s.status)
		}
	}
}

// Go raises the limit of open files for itself. The runtime has the one that it was
// given, and what a parent has ignored for it.
func TestRuntimeLimits(t *testing.T) {
	become(t, "/bin/busybox")
	show := func(program string) string {
		return must(t, "/bin/sh", "-c", `ulimit -Sn 512; trap "" HUP INT; shift; exec "$@"`, "sh", "", program, "grep",
			"-E", "^(Max open files|SigIgn)", "/proc/self/limits", "/proc/self/status")
	}
	if got, want := show(wrapper()), show("/bin/busybox"); got != want || !strings.Contains(got, " 512 ") ||
		!strings.Contains(got, "0000003\n") {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// fails runs nix-closure-runtime, which is to fail with one line, and returns that.
func fails(t *testing.T, directory, program string, args ...string) string {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = directory, &out, &errs
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 || out.Len() > 0 || strings.Count(errs.String(), "\n") != 1 ||
		!strings.HasSuffix(errs.String(), "\n") {
		t.Errorf("%q: %v, wrote %q and %q", args, err, out.String(), errs.String())
	}
	return strings.TrimSuffix(errs.String(), "\n")
}

// entry is an error as a runtime writes it to the file that --log names.
type entry struct {
	keys       string // sorted
	level, msg string
	age        time.Duration
}

var textEntry = regexp.MustCompile(`^time=("[^ ]+") level=([a-z]+) msg=("(?:[^"\\]|\\.)*")\n$`)

// readEntry reads a file with one error.
func readEntry(t *testing.T, path, format string) entry {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	if format == "json" {
		err = json.Unmarshal(text, &fields)
	} else if m := textEntry.FindStringSubmatch(string(text)); m != nil {
		fields["level"] = m[2]
		if fields["time"], err = strconv.Unquote(m[1]); err == nil {
			fields["msg"], err = strconv.Unquote(m[3])
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	when, err := time.Parse(time.RFC3339, fields["time"])
	if err != nil || bytes.Count(text, []byte("\n")) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	return entry{keys: fmt.Sprint(slices.Sorted(maps.Keys(fields))), level: fields["level"], msg: fields["msg"],
		age: time.Since(when)}
}

// An error is where the runtime's own would be, in the form that they have, which
// is where engines look for it.
func TestRuntimeLogsAsRunc(t *testing.T) {
	become(t, "runc")
	b := newBundle(t, roots("none\nof \"these\""), "true")
	b.command(t, wrapper(), "")
	for _, log := range []struct {
		format string
		args   []string
	}{
		{"json", []string{"--log", "FILE", "--log-format", "json"}},
		{"json", []string{"--log-format=json", "--log=FILE"}},
		{"text", []string{"--log", "FILE", "--log-format", "text"}},
		{"text", []string{"--log", "FILE"}},
		{"text", []string{"--log=FILE", "--log-format="}},
	} {
		dir := t.TempDir()
		for _, file := range []string{dir + "/absolute", "relative"} {
			var all []entry
			for _, program := range []string{"runc", wrapper()} {
				args := slices.Clone(log.args)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "FILE", file+filepath.Base(program))
				}
				bundle := b.dir
				if program == "runc" {
					bundle = "/nowhere"
				}
				errs := fails(t, dir, program, append(args, "create", "--bundle", bundle, "web")...)
				e := readEntry(t, filepath.Join(dir, filepath.Base(file)+filepath.Base(program)), log.format)
				if e.msg != errs {
					t.Errorf("%q: in the file %q, on standard error %q", args, e.msg, errs)
				}
				all = append(all, e)
			}
			// runc writes no fractions of a second.
			if runc, own := all[0], all[1]; own.keys != runc.keys || own.level != runc.level || own.age < 0 ||
				own.age > time.Minute ||
				!strings.HasPrefix(own.msg,
					`nix-closure: container web: reading the annotations: annotation nix-closure/roots: "none": `) {
				t.Errorf("%q: %+v; runc's own: %+v", log.args, own, runc)
			}
		}
	}
	// After what is there.
	file := t.TempDir() + "/log"
	for range 2 {
		fails(t, "/", wrapper(), "--log", file, "--log-format", "json", "create", "--bundle", b.dir, "web")
	}
	if text, err := os.ReadFile(file); err != nil || bytes.Count(text, []byte("\n")) != 2 {
		t.Errorf("%s%v", text, err)
	}
	// No file, no place for it, and places that are no file: on standard error all the same.
	for _, args := range [][]string{nil, {"--log", ""}, {"--log", "/nowhere/log"}, {"--log", "/"},
		{"--log", "syslog:x"}, {"--log", "journald:x"}} {
		if errs := fails(t, t.TempDir(), wrapper(),
			append(args, "create", "--bundle", b.dir, "web")...); !strings.HasPrefix(errs,
			"nix-closure: container web: ") {
			t.Errorf("%q: %s", args, errs)
		}
	}
	// As crun says it.
	crunFile := t.TempDir() + "/log"
	errs := fails(t, "/", wrapper(), "--log=file:"+crunFile, "--log-format=json", "create", "--bundle", b.dir, "web")
	if e := readEntry(t, crunFile, "json"); e.msg != errs {
		t.Errorf("in the file %q, on standard error %q", e.msg, errs)
	}
}

// What keeps nix-closure-runtime from becoming the runtime is said in one line, and
// nothing was changed.
func TestRuntimeFails(t *testing.T) {
	good := newBundle(t, roots(store["env"]), "true")
	good.command(t, wrapper(), "")
	before := identity(t, good.dir+"/config.json")
	alone := t.TempDir() + "/alone"
	copyFile(t, wrapper(), alone)
	link := t.TempDir() + "/runc"
	if err := os.Symlink(wrapper(), link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, config, program, want string }{
		{name: "configuration broken", config: "runtime = 7\n", program: wrapper(),
			want: "reading the configuration: " + configFile + ": line 1: "},
		{name: "unknown key", config: "runtimes = \"runc\"\n", program: wrapper(),
			want: "reading the configuration: " + configFile + ": line 1: unknown key \"runtimes\""},
		{name: "not there", config: "runtime = \"/nowhere/runc\"\n", program: wrapper(),
			want: "looking for the runtime: runtime = \"/nowhere/runc\": no such file or directory"},
		{name: "not found", config: "runtime = \"nowhere\"\n", program: wrapper(),
			want: "looking for the runtime: runtime = \"nowhere\": neither on PATH nor in the usual places"},
		{name: "none", config: "runtime = \"\"\n", program: wrapper(),
			want: "looking for the runtime: runtime = \"\": neither a name nor an absolute path"},
		{name: "relative", config: "runtime = \"bin/runc\"\n", program: wrapper(),
			want: "looking for the runtime: runtime = \"bin/runc\": neither a name nor an absolute path"},
		{name: "itself", config: fmt.Sprintf("runtime = %q\n", wrapper()), program: wrapper(),
			want: "looking for the runtime: runtime = \"" + wrapper() +
				"\": is nix-closure-runtime itself; name runc or crun"},
		{name: "itself by a link", config: fmt.Sprintf("runtime = %q\n", link), program: wrapper(),
			want: "looking for the runtime: runtime = " +
				"\"" + link + "\": is nix-closure-runtime itself; name runc or crun"},
		{name: "a file that is none", config: fmt.Sprintf("runtime = %q\n", logFile), program: wrapper(),
			want: "looking for the runtime: runtime = \"" + logFile + "\": permission denied"},
		{name: "a directory", config: "runtime = \"/usr/bin\"\n", program: wrapper(),
			want: "looking for the runtime: runtime = \"/usr/bin\": not a file"},
		{name: "no hook", config: "runtime = \"runc\"\n", program: alone,
			want: "looking for the hook: access " +
				"" + filepath.Dir(alone) + "/nix-closure-hook: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			writeConfig(t, c.config)
			file := t.TempDir() + "/log"
			want := "nix-closure: container web: " + c.want
			if errs := fails(t, "/", c.program, "--log", file, "--log-format", "json", "create", "--bundle", good.dir,
				"web"); !strings.HasPrefix(errs, want) {
				t.Errorf("%s\nwant\n%s", errs, want)
			}
			if e := readEntry(t, file, "json"); !strings.HasPrefix(e.msg, want) {
				t.Errorf("in the file: %s\nwant\n%s", e.msg, want)
			}
			if last := lastError(t); !strings.HasPrefix(last, want) {
				t.Errorf("in the log: %s\nwant\n%s", last, want)
			}
			if after := identity(t, good.dir+"/config.json"); after != before {
				t.Errorf("config.json was %+v, is %+v", before, after)
			}
		})
	}
	if entries, err := os.ReadDir(good.dir); err != nil || len(entries) != 2 {
		t.Errorf("in the bundle: %v, %v", entries, err)
	}
	nothingLeft(t)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The runtime is found by the engine's PATH, and without one; where the first of the
// name is this program, it is not taken.
func TestRuntimeIsFound(t *testing.T) {
	dir, program := recorder(t)
	become(t, "recorder")
	first := t.TempDir()
	if err := os.Symlink(wrapper(), first+"/runc"); err != nil {
		t.Fatal(err)
	}
	s := started{directory: "/", args: []string{"list"}, env: []string{"PATH=relative:/nowhere:" + dir}}
	if r := s.by(t, dir, wrapper(), "x"); string(r.Cmdline) != ended([]string{program, "list"}) {
		t.Errorf("became %q", r.Cmdline)
	}
	for _, c := range []struct{ config, path string }{
		{"runtime = \"runc\"\n", "PATH=" + first}, {"runtime = \"runc\"\n", "HOME=/"},
		{"runtime = \"runc\"\n", "PATH="}, {"", "PATH=/nowhere"},
	} {
		writeConfig(t, c.config)
		for _, program := range []string{wrapper(), first + "/runc"} {
			cmd := exec.Command(program, "--version")
			cmd.Env = []string{c.path}
			if text, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(text), "runc version ") {
				t.Errorf("%s: %v\n%s", c.path, err, text)
			}
		}
	}
}

// list prints the store's names, and on standard error how the store is mounted.
const list = `busybox=/bin/busybox; echo started; $busybox ls /nix/store; $busybox grep -m 1 ' /nix' ` +
	`/proc/self/mountinfo >&2`

// isStore fails if what list printed is not of exactly this closure, in this mode.
func isStore(t *testing.T, stdout, mountinfo, mode string, closure []string) {
	t.Helper()
	if got := strings.Fields(strings.TrimPrefix(stdout, "started\n")); !slices.Equal(got, closure) {
		t.Errorf("the store has %q\nwant %q", got, closure)
	}
	kinds := map[string]string{"overlay": " - overlay ", "bind": " - tmpfs nix-closure "}
	if !strings.Contains(mountinfo, kinds[mode]) || !strings.Contains(mountinfo, " /nix/store ro,nosuid,nodev") {
		t.Errorf("mounted: %s", mountinfo)
	}
}

// Any bundle with an annotation, from any engine: its closure, and what took the
// closure's place is gone.
func TestRuntimeGivesTheClosure(t *testing.T) {
	closure := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		become(t, runtime)
		b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), list)
		bind := func(source, destination string) object {
			return object{"type": "bind", "source": source, "destination": destination, "options": []string{"rbind"}}
		}
		data := t.TempDir()
		b.addMount(bind("/nix/store", "/nix/store"))
		b.addMount(bind("/nix", "/nix"))
		b.addMount(bind(data, "/data"))
		// Other hooks, which run before.
		other := object{"path": "/bin/sh", "args": []string{"sh", "-c", "cat >>" + data + "/createRuntime"}}
		b.config["hooks"] = object{"createRuntime": []object{other}}
		_, stdout, stderr, err := b.run(t, wrapper())
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		isStore(t, stdout, stderr, mode, closure)
		nothingLeft(t)
		if state, err := os.ReadFile(data + "/createRuntime"); err != nil || !json.Valid(state) {
			t.Errorf("the other hook read %q, %v", state, err)
		}
		// Of config.json the rest is as it was.
		text, err := os.ReadFile(b.dir + "/config.json")
		if err != nil {
			t.Fatal(err)
		}
		var got object
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		mounts := b.config["mounts"].([]any)
		b.config["mounts"] = append(slices.Clone(mounts[:len(mounts)-3]), mounts[len(mounts)-1])
		b.config["hooks"] = object{"createRuntime": []object{other, b.hook("nix-closure-hook", "createRuntime")},
			"poststop": []object{b.hook("nix-closure-hook", "poststop")}}
		want, err := json.Marshal(b.config)
		if err != nil {
			t.Fatal(err)
		}
		var wanted object
		if err := json.Unmarshal(want, &wanted); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, wanted) {
			t.Errorf("config.json is\n%s\nwant\n%s", text, want)
		}
	})
}

// A container's life as containerd's shim leads it: create, start, state, kill,
// delete, and once more.
func TestRuntimeLifecycle(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		become(t, runtime)
		b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), list+"; exec $busybox sleep 600")
		b.command(t, wrapper(), "")
		id := "lifecycle-" + runtime + "-" + mode
		dir := t.TempDir()
		call := func(args ...string) string {
			t.Helper()
			args = append([]string{"--root", dir + "/root", "--log", dir + "/log.json", "--log-format", "json"},
				args...)
			var out bytes.Buffer
			cmd := exec.Command(wrapper(), args...)
			stdout, err := os.OpenFile(dir+"/stdout", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			defer stdout.Close()
			// The container has the same, and lives longer.
			cmd.Stdout, cmd.Stderr = stdout, stdout
			if slices.Contains(args, "state") {
				cmd.Stdout = &out
			}
			if err := cmd.Run(); err != nil {
				log, _ := os.ReadFile(dir + "/log.json")
				t.Fatalf("%q: %v\n%s", args, err, log)
			}
			return out.String()
		}
		for range 2 {
			call("create", "--bundle", b.dir, "--pid-file", dir+"/pid", id)
			if _, err := os.Stat(gcRoots + "/" + id); err != nil {
				t.Error(err)
			}
			call("start", id)
			var state struct{ Status, Bundle string }
			if err := json.Unmarshal([]byte(call("state", id)), &state); err != nil || state.Status != "running" ||
				state.Bundle != b.dir {
				t.Errorf("%+v, %v", state, err)
			}
			call("kill", id, "KILL")
			call("delete", "--force", id)
			nothingLeft(t)
		}
		text, err := os.ReadFile(b.dir + "/config.json")
		if err != nil || strings.Count(string(text), `"nix-closure-hook"`) != 2 {
			t.Errorf("%s, %v", text, err)
		}
	})
}

// A container is stopped and removed by the runtime that made it, also when another is
// configured by then, or none that is there.
func TestRuntimeChanged(t *testing.T) {
	closure := closureOf(t, store["env"])
	for i, runtime := range runtimes {
		other := runtimes[1-i]
		for _, config := range []string{fmt.Sprintf("runtime = %q\n", other), "runtime = \"crum\"\n", "runtime = 7\n"} {
			become(t, runtime)
			b := newBundle(t, roots(store["env"]), list+"; exec $busybox sleep 600")
			b.command(t, wrapper(), "")
			root := t.TempDir()
			var out bytes.Buffer
			call := func(args ...string) {
				t.Helper()
				cmd := exec.Command(wrapper(), append([]string{"--root", root}, args...)...)
				if slices.Contains(args, "state") {
					cmd.Stdout = &out
				}
				if err := cmd.Run(); err != nil {
					t.Errorf("%s, then %s: %q: %v", runtime, config, args, err)
				}
			}
			id := "changed-" + runtime
			call("create", "--bundle", b.dir, id)
			writeConfig(t, config)
			call("start", id)
			call("state", id)
			var state struct {
				Status string
				Pid    int
			}
			if err := json.Unmarshal(out.Bytes(), &state); err != nil || state.Status != "running" {
				t.Errorf("%+v, %v", state, err)
			}
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/nix/store", state.Pid)); err != nil ||
				len(entries) != len(closure) {
				t.Errorf("it sees %v %v", entries, err)
			}
			call("kill", id, "KILL")
			writeConfig(t, config)
			call("delete", "--force", id)
			if left, err := os.ReadDir(root); err != nil ||
				slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == id }) {
				t.Errorf("in the runtime's directory: %v %v", left, err)
			}
			if config == "runtime = 7\n" {
				// Nor did the hook read it: what it left is for a sweep.
				become(t, runtime)
				sweep(t)
			}
			nothingLeft(t)
		}
	}
}

// What leaks, and what is not understood, is refused before there is a container,
// and with the reason where the engine shows it.
func TestRuntimeRefuses(t *testing.T) {
	for _, runtime := range runtimes {
		become(t, runtime)
		for _, c := range []struct {
			name   string
			change func(b *bundle)
			want   string
		}{
			{"leak", func(b *bundle) {
				b.addMount(object{"type": "bind", "source": "/nix/store", "destination": "/mnt",
					"options": []string{"rbind"}})
			}, "looking at the container's mounts: mount of /nix/store on /mnt: shows /nix/store of the host"},
			{"mistake", func(b *bundle) { b.config["annotations"] = map[string]string{"nix-closure/root": "x"} },
				"reading the annotations: annotation nix-closure/root: unknown"},
			{"annotations in other letters", func(b *bundle) {
				b.config["Annotations"] = b.config["annotations"]
				delete(b.config, "annotations")
			}, `reading config.json: field "Annotations": some runtimes take it for "annotations" and some do not`},
			// It sorts after the right one, and runc takes the last.
			{"hooks in other letters", func(b *bundle) { b.config["hooks"] = object{"createruntime": []object{}} },
				`rewriting config.json: field "hooks.createruntime": some runtimes take it for "hooks.createRuntime"`},
		} {
			b := newBundle(t, roots(store["env"]), list)
			c.change(b)
			b.command(t, wrapper(), "")
			before := identity(t, b.dir+"/config.json")
			if errs := fails(t, b.dir, wrapper(), "run", "web"); !strings.HasPrefix(errs,
				"nix-closure: container web: "+c.want) {
				t.Errorf("%s: %s: %s\nwant\n%s", runtime, c.name, errs, c.want)
			}
			if after := identity(t, b.dir+"/config.json"); after != before {
				t.Errorf("%s: %s: config.json was %+v, is %+v", runtime, c.name, before, after)
			}
		}
		// A bundle that cannot be written: its annotation is not forgotten for that.
		b := newBundle(t, roots(store["env"]), list)
		b.command(t, wrapper(), "")
		bindMount(t, b.dir, b.dir)
		if err := syscall.Mount("", b.dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		if errs := fails(t, "/", wrapper(), "run", "--bundle", b.dir, "web"); !strings.Contains(errs,
			"writing config.json: open "+b.dir+"/.config.json.") ||
			!strings.HasSuffix(errs, ": read-only file system") {
			t.Errorf("%s: read-only: %s", runtime, errs)
		}
	}
	nothingLeft(t)
}

// A container whose root is an overlay, as engines make it: the wrapper leaves judging it to
// the hook if no name says that the store is concerned. It has its closure, and a mount that
// shows more is refused all the same.
func TestRuntimeOverlayRoot(t *testing.T) {
	closure := closureOf(t, store["env"])
	elsewhere := t.TempDir()
	bindMount(t, "/nix", elsewhere)
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		become(t, runtime)
		b := newBundle(t, with(roots(store["env"]), "nix-closure/mode", mode), list)
		layer, upper, work := b.dir+"/layer", t.TempDir(), t.TempDir()
		if err := errors.Join(os.Rename(b.dir+"/rootfs", layer), os.Mkdir(b.dir+"/rootfs", 0o755),
			syscall.Mount("overlay", b.dir+"/rootfs", "overlay", 0,
				"lowerdir="+layer+",upperdir="+upper+",workdir="+work)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(b.dir+"/rootfs", syscall.MNT_DETACH) })
		data := t.TempDir()
		b.addMount(bindOf(data, "/data"))
		_, stdout, stderr, err := b.run(t, wrapper())
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		isStore(t, stdout, stderr, mode, closure)
		mounts := b.config["mounts"].([]any)
		// Who refuses: the hook, or the wrapper, which says why where crun would not.
		for source, stage := range map[string]string{
			elsewhere: "createRuntime", elsewhere + "/store": "createRuntime",
			"/nix/store": "runtime", "/nix": "runtime",
		} {
			b.config["mounts"] = append(slices.Clone(mounts), bindOf(source, "/x"))
			before := len(readLog(t))
			_, stdout, stderr, err := b.run(t, wrapper())
			said := slices.DeleteFunc(readLog(t)[before:], func(l logLine) bool { return l.Level != "error" })
			if err == nil || stdout != "" || len(said) != 1 || said[0].Stage != stage ||
				!strings.Contains(said[0].Msg, ": shows /nix") {
				t.Errorf("%s: %v %q %q; the log says %+v, want stage %s", source, err, stdout, stderr, said, stage)
			}
		}
		// What is on the store is removed, and what is mounted there by another name too.
		b.config["mounts"] = append(slices.Clone(mounts), bindOf("/nix/store", "/nix/store"), bindOf(elsewhere, "/nix"))
		if _, stdout, stderr, err = b.run(t, wrapper()); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		isStore(t, stdout, stderr, mode, closure)
	})
	nothingLeft(t)
}

// However a command line is written, a container with an annotation has its
// closure, or does not start: whichever config.json has one, of those in A, in B and
// in the current directory, and c.json.
func TestRuntimeIsNotEvaded(t *testing.T) {
	closure := closureOf(t, store["env"])
	lines := strings.Split(`
run ID
run --bundle A ID
run --bundle=A ID
run -b A ID
run -b=A ID
run -bA ID
run -bundle A ID
run -bundle=A ID
run --b A ID
run --bund=A ID
run ID --bundle A
run A ID --bundle
run A ID -b
run --bundle=B A ID --bundle
run --bundle A --bundle B ID
run -b A --bundle B ID
run --bundle= ID
run --pid-file --bundle=A ID
run --pid-file --bundle A ID
run --pid-file=p -b A ID
run --no-pivot --bundle A ID
run --no-pivot=false ID -b A
run -- ID
run --bundle A -- ID
run --bundle elsewhere/../A ID
run --bundle elsewhere/.. ID
run --bundle link ID
run -f c.json ID
run -fc.json ID
run --conf c.json -b A ID
run --config=c.json ID
run --config A/config.json ID
run -f /proc/self/fd/3 ID
run --unknown ID
--debug run -b A ID
--root R run -b A ID
--root=R run ID
-root R run -b A ID
--unknown run -b A ID
-- run -b A ID
--log run run -b A ID
--rootless true run -b A ID
--systemd-cgroup=false run -b A ID
--program-name x run -b A ID
restore --bundle A ID
restore -b=A ID`[1:], "\n")
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			become(t, runtime)
			work := newBundle(t, roots(store["env"]), list)
			work.config["root"].(object)["path"] = work.dir + "/rootfs"
			annotated, err := json.Marshal(work.config)
			if err != nil {
				t.Fatal(err)
			}
			delete(work.config, "annotations")
			work.config["process"].(object)["args"] = []string{"/bin/busybox", "echo", "of no concern"}
			other, err := json.Marshal(work.config)
			if err != nil {
				t.Fatal(err)
			}
			files := []string{"config.json", "A/config.json", "B/config.json", "c.json", "below/config.json"}
			for _, d := range []string{"A", "B", "below", "below/inner"} {
				if err := os.Mkdir(work.dir+"/"+d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// Cleaned, elsewhere/.. is the current directory; it is below.
			if err := os.Symlink("below/inner", work.dir+"/elsewhere"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("B", work.dir+"/link"); err != nil {
				t.Fatal(err)
			}
			id := "evade-" + runtime
			run := func(t *testing.T, line string, with func(file string) bool) (stdout, stderr string, err error) {
				t.Helper()
				for _, f := range files {
					text := other
					if with(f) {
						text = annotated
					}
					if err := os.WriteFile(work.dir+"/"+f, text, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				config, err := os.Open(work.dir + "/c.json")
				if err != nil {
					t.Fatal(err)
				}
				defer config.Close()
				var out, errs strings.Builder
				cmd := exec.Command(wrapper(), strings.Split(strings.ReplaceAll(line, "ID", id), " ")...)
				cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = work.dir, &out, &errs, []*os.File{config}
				err = cmd.Run()
				return out.String(), errs.String(), err
			}
			count := map[string]int{}
			for _, l := range lines {
				for _, only := range []string{"", "A/config.json", "c.json", "config.json"} {
					stdout, stderr, err := run(t, l, func(f string) bool { return only == "" || f == only })
					switch {
					case stdout == "started\n"+strings.Join(closure, "\n")+"\n":
						count["with its closure"]++
					case strings.HasPrefix(stdout, "started\n"):
						t.Errorf("%s: with an annotation in %q: started, and has\n%s%s", l, only, stdout, stderr)
					case stdout == "of no concern\n":
						count["of no concern"]++
					case err == nil:
						t.Errorf("%s: with an annotation in %q: no error, and nothing ran\n%s", l, only, stderr)
					default:
						count["refused"]++
					}
				}
			}
			t.Logf("%d command lines: %v", len(lines), count)
			if count["with its closure"] < 20 || count["of no concern"] < 20 || count["refused"] < 50 {
				t.Errorf("of %d command lines only: %v", len(lines), count)
			}
			nothingLeft(t)
		})
	}
}

// podman, with no hooks of its own, names it as its runtime.
func TestRuntimeOfPodman(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		become(t, runtime)
		c := container{runtime: wrapper(), mode: mode, root: "tools", hooks: t.TempDir(),
			flags: []string{"-v", "/nix:/nix"}}
		got := strings.Fields(c.mustRun(t, store["tools"]+"/bin/ls", "/nix/store"))
		if want := closureOf(t, store["tools"]); !slices.Equal(got, want) {
			t.Errorf("the store has %q\nwant %q", got, want)
		}
		id := c.start(t)
		if got := execute(t, id, store["tools"]+"/bin/ls", "/nix"); got != "store\n" {
			t.Errorf("/nix has %q", got)
		}
		remove(t, id)
		c.flags = []string{"-v", "/nix:/mnt"}
		if _, stderr, err := c.run(store["tools"]+"/bin/ls", "/mnt"); err == nil ||
			!strings.Contains(stderr, "mount of /nix on /mnt: shows /nix of the host") {
			t.Errorf("%v\n%s", err, stderr)
		}
		nothingLeft(t)
	})
}
