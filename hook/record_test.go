// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

func TestOpenRuntimeDir(t *testing.T) {
	h := newHost(t)
	path := h.dir + "/run"
	for range 2 { // the second time it is there
		if _, err := OpenRuntimeDir(config.Config{RuntimeDir: path}); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"", "/containers", "/closures", "/views", "/registrations"} {
			if st, err := os.Lstat(path + d); err != nil || st.Mode() != fs.ModeDir|0o700 {
				t.Errorf("%q: %v, %v", d, st.Mode(), err)
			}
		}
	}
}

// What is in the runtime directory decides what containers see: nobody else may
// have had it.
func TestOpenRuntimeDirRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make a directory of somebody else's")
	}
	dir := func(mode os.FileMode) func(path string) error {
		return func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)) }
	}
	others := func(mode string) string { return " can be entered or written by others (mode " + mode + ")" }
	for _, c := range []struct {
		name string
		make func(path string) error
		want string // after the path
	}{
		{"another's", func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 1234, 0)) }, " belongs to user 1234, not to user 0 who runs the hook"},
		{"0755", dir(0o755), others("0755")},
		{"0777 and sticky", dir(0o777 | fs.ModeSticky), others("0777")},
		{"the group may enter", dir(0o710), others("0710")},
		{"others may write", dir(0o702), others("0702")},
		{"others may read", dir(0o704), others("0704")},
		{"others may enter", dir(0o701), others("0701")},
		{"a link to another's", func(path string) error {
			return errors.Join(os.Mkdir(path+"2", 0o700), os.Chown(path+"2", 1234, 0), os.Symlink(path+"2", path))
		}, " is a symbolic link"},
		{"a link to this user's own", func(path string) error { return errors.Join(os.Mkdir(path+"4", 0o700), os.Symlink(path+"4", path)) }, " is a symbolic link"},
		{"a link to an open one", func(path string) error { return errors.Join(os.Mkdir(path+"3", 0o755), os.Symlink(path+"3", path)) }, " is a symbolic link"},
		{"a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, ""},
		{"a link that leads nowhere", func(path string) error { return os.Symlink("nowhere", path) }, ""},
		{"a file for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/closures", nil, 0o600))
		}, ""},
		{"a link out for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Symlink("/tmp", path+"/views"))
		}, ""},
		{"a link up for a directory in it", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Symlink("..", path+"/containers"))
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := t.TempDir() + "/run"
			must(t, c.make(path))
			_, err := OpenRuntimeDir(config.Config{RuntimeDir: path})
			if err == nil || c.want != "" && !strings.HasPrefix(err.Error(), path+c.want) {
				t.Errorf("error %v, want %s", err, path+c.want)
			}
		})
	}
}

func newRuntimeDir(t *testing.T, h host) *RuntimeDir {
	t.Helper()
	d, err := OpenRuntimeDir(config.Config{RuntimeDir: h.dir + "/run"})
	must(t, err)
	return d
}

func TestRecord(t *testing.T) {
	h := newHost(t)
	d := newRuntimeDir(t, h)
	if r, ok, err := d.readRecord("web"); ok || err != nil {
		t.Errorf("before there is one: %+v, %v, %v", r, ok, err)
	}
	want := Record{
		ID: "web", Bundle: "/run/b", Pid: 4711, PidStart: 18446744073709551615, Roots: []closure.BaseName{named("a")}, Mode: spec.ModeOverlay,
		Digest: strings.Repeat("0", 64), GCRoots: "/g", Created: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC),
	}
	must(t, d.writeRecord(want))
	got, ok, err := d.readRecord("web")
	if diff := cmp.Diff(want, got); diff != "" || !ok || err != nil {
		t.Errorf("%v, %v (-want +got)\n%s", ok, err, diff)
	}
	if st, err := os.Lstat(h.dir + "/run/containers/web.json"); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, ok, _ := d.readRecord("we"); ok {
		t.Error("another id has the same record")
	}
	// The longest id that there is.
	long := Record{ID: strings.Repeat("a", 200)}
	must(t, d.writeRecord(long))
	if got, ok, err := d.readRecord(long.ID); !ok || err != nil || got.ID != long.ID {
		t.Errorf("a long id: %v, %v", ok, err)
	}
}

// A damaged record is of nobody: it keeps no container from starting or from
// being forgotten.
func TestDamagedRecord(t *testing.T) {
	h := newHost(t)
	d := newRuntimeDir(t, h)
	for _, text := range []string{"", "{", "null", "[]", `"x"`, `{"id":7}`, `{"pid":"1"}`, `{"id":"web","bundle":"/b","created":"yesterday"}`, "\x00\x00"} {
		must(t, os.WriteFile(h.dir+"/run/containers/web.json", []byte(text), 0o600))
		r, ok, err := d.readRecord("web")
		if err != nil || !ok || !cmp.Equal(r, Record{}) || r.live() {
			t.Errorf("%q: %+v, %v, %v", text, r, ok, err)
		}
	}
	must(t, os.Remove(h.dir+"/run/containers/web.json"), os.Mkdir(h.dir+"/run/containers/web.json", 0o700))
	if _, ok, err := d.readRecord("web"); err == nil {
		t.Errorf("a directory: %v", ok)
	}
}

func TestStartTime(t *testing.T) {
	self := os.Getpid()
	want, err := startTime(self)
	if err != nil || want == 0 {
		t.Fatalf("%d, %v", want, err)
	}
	// A process may call itself what it likes.
	name, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	defer func() { must(t, os.WriteFile("/proc/self/comm", name, 0)) }()
	for _, odd := range []string{") R 1 2 3 4 5", "((((", "))))", "a b c d", "\n", ") Z 0 0 0 0 0 "} {
		must(t, os.WriteFile("/proc/self/comm", []byte(odd), 0))
		if got, err := startTime(self); err != nil || got != want {
			t.Errorf("named %q: %d, %v; want %d", odd, got, err, want)
		}
	}
	if first, err := startTime(1); err != nil || first > want {
		t.Errorf("process 1 started at %d, this one at %d: %v", first, want, err)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if got, err := startTime(pid); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("process %d: %d, %v", pid, got, err)
		}
	}
}

func TestLive(t *testing.T) {
	start, err := startTime(os.Getpid())
	must(t, err)
	ended := exec.Command("/proc/self/exe", "-test.run", "^$")
	must(t, ended.Start())
	endedStart, err := startTime(ended.Process.Pid)
	must(t, err, ended.Wait())
	for _, c := range []struct {
		name   string
		record Record
		want   bool
	}{
		{"this process", Record{Pid: os.Getpid(), PidStart: start}, true},
		{"an earlier one of the same number", Record{Pid: os.Getpid(), PidStart: start - 1}, false},
		{"one that ended", Record{Pid: ended.Process.Pid, PidStart: endedStart}, false},
		{"none", Record{}, false},
		{"one that nobody knows", Record{Pid: -1}, false},
	} {
		if got := c.record.live(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestPoststop(t *testing.T) {
	h := newHost(t)
	stop := func(id, bundle, annotation string) {
		t.Helper()
		in := fmt.Sprintf(`{"id":%q,"pid":0,"bundle":%q,"annotations":{%q:"wrong"}}`, id, bundle, annotation)
		if err := Run(Call{Stage: "poststop", Config: h.config}, strings.NewReader(in), nil); err != nil {
			t.Fatal(err)
		}
	}
	there := func(id string) bool {
		t.Helper()
		_, record := os.Lstat(h.dir + "/run/containers/" + id + ".json")
		_, roots := os.Lstat(h.store.GCRoots().Of(id))
		if (record == nil) != (roots == nil) {
			t.Errorf("half of %s is left: %v, %v", id, record, roots)
		}
		return record == nil
	}
	start, err := startTime(os.Getpid())
	must(t, err)
	runs := true
	make := func(id, bundle string) {
		t.Helper()
		r := Record{ID: id, Bundle: bundle}
		if runs {
			r.Pid, r.PidStart = os.Getpid(), start
		}
		must(t, newRuntimeDir(t, h).writeRecord(r), h.store.GCRoots().Add(h.store, id, []closure.BaseName{named("hello")}))
	}
	const annotation = "nix-closure/anything" // of a version that this one is not
	stop("web", "/b", annotation)             // before there is anything
	make("web", "/b")
	make("db", "/b2")
	stop("web", "/b", "other")
	if !there("web") {
		t.Error("forgotten without an annotation")
	}
	stop("web", "/another", annotation)
	if !there("web") {
		t.Error("forgotten for another container with the same id")
	}
	stop("web", "/b", annotation)
	if !there("web") {
		t.Error("forgotten while it runs: it was started again")
	}
	runs = false
	make("web", "/b")
	for range 2 {
		stop("web", "/b", annotation)
		if there("web") {
			t.Error("not forgotten")
		}
	}
	if !there("db") {
		t.Error("another container was forgotten")
	}
	// What a damaged record belongs to cannot be told: it goes.
	make("web", "/b")
	must(t, os.WriteFile(h.dir+"/run/containers/web.json", []byte("{"), 0o600))
	stop("web", "/b", annotation)
	if there("web") {
		t.Error("a damaged record stays")
	}
	// A host on which it cannot work does not keep a container from being removed.
	make("web", "/b")
	must(t, os.Chmod(h.dir+"/run", 0o755))
	stop("web", "/b", annotation)
	if lines := h.log(t); len(lines) == 0 || lines[len(lines)-1]["level"] != "ERROR" {
		t.Errorf("not in the log: %v", lines)
	}
}

// A process whose first thread has ended, which looks like one that has ended
// itself, still runs, and so does its container.
func TestLiveWithoutFirstThread(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3", "-c",
		"import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); ctypes.CDLL(None).pthread_exit(None)")
	must(t, cmd.Start())
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	var fields []string
	for range 500 {
		var err error
		fields, err = statFields(strconv.Itoa(cmd.Process.Pid))
		if must(t, err); fields[0] == "Z" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if must(t, err); fields[0] != "Z" {
		t.Fatalf("the first thread does not end: %q", fields)
	}
	if !(Record{Pid: cmd.Process.Pid, PidStart: start}).live() {
		t.Error("taken for one that has ended")
	}
	must(t, cmd.Process.Kill())
	for range 500 { // a zombie now, and nothing else
		if !(Record{Pid: cmd.Process.Pid, PidStart: start}).live() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("killed, and taken for one that runs")
}

// GC roots without a record may be those of another runtime directory on the same
// store: poststop leaves them alone.
func TestPoststopWithoutRecord(t *testing.T) {
	h := newHost(t)
	must(t, h.store.GCRoots().Add(h.store, "web", []closure.BaseName{named("hello")}))
	in := `{"id":"web","pid":0,"bundle":"/b","annotations":{"nix-closure/roots":"x"}}`
	must(t, Run(Call{Stage: "poststop", Config: h.config}, strings.NewReader(in), nil))
	if _, err := os.Lstat(h.store.GCRoots().Of("web")); err != nil {
		t.Error(err)
	}
}

// Of two containers with one id that start at the same moment, one has the record.
func TestClaim(t *testing.T) {
	d := newRuntimeDir(t, newHost(t))
	must(t, d.claim(Record{ID: "web", Bundle: "/a"}))
	if err := d.claim(Record{ID: "web", Bundle: "/b"}); err == nil || !strings.Contains(err.Error(), "is being started at this moment") {
		t.Errorf("claimed twice: %v", err)
	}
	if r, ok, err := d.readRecord("web"); !ok || err != nil || r.Bundle != "/a" {
		t.Errorf("%+v, %v, %v", r, ok, err)
	}
	if all, err := names(d.Containers); err != nil || len(all) != 1 {
		t.Errorf("%q, %v", all, err)
	}
}
