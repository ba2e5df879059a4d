// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

func TestRecord(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	if r, ok, err := d.Record("web"); ok || err != nil {
		t.Errorf("before there is one: %+v, %v, %v", r, ok, err)
	}
	want := Record{
		ID: "web", Bundle: "/run/b", Pid: 4711, PidStart: 18446744073709551615, Roots: []closure.BaseName{named("a")},
		Mode:   spec.ModeOverlay,
		Digest: strings.Repeat("0", 64), GCRoots: "/g", Created: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC),
	}
	must(t, d.writeRecord(want))
	got, ok, err := d.Record("web")
	if diff := cmp.Diff(want, got); diff != "" || !ok || err != nil {
		t.Errorf("%v, %v (-want +got)\n%s", ok, err, diff)
	}
	if st, err := os.Lstat(h.dir + "/run/containers/web.json"); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, ok, _ := d.Record("we"); ok {
		t.Error("another id has the same record")
	}
	// The longest possible ID.
	long := Record{ID: strings.Repeat("a", 200)}
	must(t, d.writeRecord(long))
	if got, ok, err := d.Record(long.ID); !ok || err != nil || got.ID != long.ID {
		t.Errorf("a long id: %v, %v", ok, err)
	}
}

// Nobody can tell which container a damaged record belongs to: it is kept, and a start
// with its ID is refused.
func TestDamagedRecord(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	file := h.dir + "/run/containers/web.json"
	kept := func(name string) {
		t.Helper()
		want := "remove " + file + " when no container with this ID runs"
		if _, _, err := d.Record("web"); err == nil {
			t.Errorf("%s: read", name)
		}
		if _, _, err := d.Claim(t.Context(), Record{ID: "web", Bundle: "/b"}, nil); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: claimed: %v", name, err)
		}
		if swept, err := newDir(t, h).Sweep(t.Context(), 0, false); err == nil ||
			!strings.Contains(err.Error(), want) || len(swept.Records) > 0 {
			t.Errorf("%s: swept %+v, %v", name, swept, err)
		}
		if _, _, err := d.End(t.Context(), "web", "/b"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: ended: %v", name, err)
		}
		if !exists(t, file) || !exists(t, h.store.GCRoots().Of("web")) {
			t.Errorf("%s: record %v, GC roots %v", name, exists(t, file), exists(t, h.store.GCRoots().Of("web")))
		}
	}
	must(t, h.store.GCRoots().Add(h.store, "web", []closure.BaseName{named("hello")}))
	for _, text := range []string{"", "{", "null", "[]", `"x"`, `{"id":7}`, `{"pid":"1"}`,
		`{"id":"web","bundle":"/b","created":"yesterday"}`, "\x00\x00"} {
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if _, ok, err := d.Record("web"); !errors.Is(err, errDamaged) || ok {
			t.Errorf("%q: %v, %v", text, ok, err)
		}
		kept(text)
	}
	must(t, os.Remove(file), os.Mkdir(file, 0o700))
	kept("a directory")
}

func TestLive(t *testing.T) {
	start, err := proc.StartTime(os.Getpid())
	must(t, err)
	ended := exec.Command("cat")
	in, err := ended.StdinPipe()
	must(t, err, ended.Start())
	endedStart, err := proc.StartTime(ended.Process.Pid)
	must(t, err, in.Close(), ended.Wait())
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
		if got, err := c.record.live(); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

// A container without a PID namespace may continue after its first process has ended, as
// long as its bundle exists.
func TestLiveSharedPID(t *testing.T) {
	bundle := t.TempDir()
	for _, c := range []struct {
		name   string
		record Record
		want   bool
	}{
		{"its first process runs", runs(t, Record{SharedPID: true, Bundle: "/nowhere"}), true},
		{"its first process has ended", ended(t, Record{SharedPID: true, Bundle: bundle}), true},
		{"its bundle is gone", ended(t, Record{SharedPID: true, Bundle: bundle + "/gone"}), false},
		{"it has a PID namespace", ended(t, Record{Bundle: bundle}), false},
	} {
		if got, err := c.record.live(); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	// The end of the container removes everything.
	h := newHost(t)
	h.make(t, ended(t, Record{ID: "web", SharedPID: true, Bundle: bundle}))
	if swept := h.sweep(t, 0, false); len(swept.Records) > 0 {
		t.Errorf("swept %q", swept.Records)
	}
	if outcome, _, err := newDir(t, h).End(t.Context(), "web", bundle); outcome != Forgotten || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
	if exists(t, h.dir+"/run/containers/web.json") || exists(t, h.store.GCRoots().Of("web")) {
		t.Error("something is left after its end")
	}
	// A restarted container is the same container.
	h.make(t, ended(t, Record{ID: "web", SharedPID: true, Bundle: bundle, Attached: true}))
	if _, attached, err := newDir(t, h).Claim(t.Context(),
		runs(t, Record{ID: "web", SharedPID: true, Bundle: bundle}), nil); attached || err != nil {
		t.Errorf("%v, %v", attached, err)
	}
}

// A process that cannot be inspected may be running.
func TestLiveUnknown(t *testing.T) {
	defer func() { proc.Dir = "/proc" }()
	for name, make := range map[string]func(stat string) error{
		"not understood": func(stat string) error { return os.WriteFile(stat, []byte("7 (x) R 1"), 0o600) },
		"no number": func(stat string) error {
			return os.WriteFile(stat,
				[]byte("7 (x) R"+strings.Repeat(" x", 30)), 0o600)
		},
		"unreadable": func(stat string) error { return os.Mkdir(stat, 0o700) },
	} {
		proc.Dir = t.TempDir()
		must(t, os.Mkdir(proc.Dir+"/7", 0o700), make(proc.Dir+"/7/stat"))
		h := newHost(t)
		h.make(t, Record{ID: "web", Bundle: "/b", Pid: 7, PidStart: 1})
		if live, err := (Record{Pid: 7}).live(); live || err == nil {
			t.Errorf("%s: %v, %v", name, live, err)
		}
		if swept, err := newDir(t, h).Sweep(t.Context(), 0, false); err == nil ||
			!strings.Contains(err.Error(), "record kept: ") || len(swept.Records) > 0 {
			t.Errorf("%s: swept %+v, %v", name, swept, err)
		}
		_, _, err := newDir(t, h).Claim(t.Context(), Record{ID: "web", Bundle: "/other", Pid: 8}, nil)
		if err == nil || !strings.Contains(err.Error(), "remove "+h.dir+"/run/containers/web.json when it does not") {
			t.Errorf("%s: claimed: %v", name, err)
		}
		if _, _, err := newDir(t, h).End(t.Context(), "web", "/b"); err == nil ||
			!strings.Contains(err.Error(), "record kept: ") {
			t.Errorf("%s: ended: %v", name, err)
		}
		if !exists(t, h.dir+"/run/containers/web.json") || !exists(t, h.store.GCRoots().Of("web")) {
			t.Errorf("%s: forgotten", name)
		}
	}
}

// A process whose first thread has ended looks ended, but still runs, and so does its
// container.
func TestLiveWithoutFirstThread(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3", "-c",
		"import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); "+
			"ctypes.CDLL(None).pthread_exit(None)")
	must(t, cmd.Start())
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	var fields []string
	for range 500 {
		var err error
		fields, err = proc.Fields(strconv.Itoa(cmd.Process.Pid))
		if must(t, err); fields[0] == "Z" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if must(t, err); fields[0] != "Z" {
		t.Fatalf("the first thread does not end: %q", fields)
	}
	record := Record{Pid: cmd.Process.Pid, PidStart: start}
	if live, err := record.live(); !live || err != nil {
		t.Errorf("taken for one that has ended: %v", err)
	}
	must(t, cmd.Process.Kill())
	for range 500 { // the process is only a zombie now
		if live, err := record.live(); !live && err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("killed, and taken for one that runs")
}
