// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

func TestOpen(t *testing.T) {
	h := newHost(t)
	path := h.dir + "/run"
	for range 2 { // the second time it is there
		d, err := Open(config.Config{RuntimeDir: path})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		for _, d := range []string{"", "/containers", "/closures", "/views", "/registrations"} {
			if st, err := os.Lstat(path + d); err != nil || st.Mode() != fs.ModeDir|0o700 {
				t.Errorf("%q: %v, %v", d, st.Mode(), err)
			}
		}
	}
}

// What is in the runtime directory decides what containers see: nobody else may
// have had it.
func TestOpenRefuses(t *testing.T) {
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
			_, err := Open(config.Config{RuntimeDir: path})
			if err == nil || c.want != "" && !strings.HasPrefix(err.Error(), path+c.want) {
				t.Errorf("error %v, want %s", err, path+c.want)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	if r, ok, err := d.Record("web"); ok || err != nil {
		t.Errorf("before there is one: %+v, %v, %v", r, ok, err)
	}
	want := Record{
		ID: "web", Bundle: "/run/b", Pid: 4711, PidStart: 18446744073709551615, Roots: []closure.BaseName{named("a")}, Mode: spec.ModeOverlay,
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
	// The longest id that there is.
	long := Record{ID: strings.Repeat("a", 200)}
	must(t, d.writeRecord(long))
	if got, ok, err := d.Record(long.ID); !ok || err != nil || got.ID != long.ID {
		t.Errorf("a long id: %v, %v", ok, err)
	}
}

// Of whom a damaged record is, nobody can tell: it is kept, and a start with its ID
// is refused.
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
		if _, _, err := d.Claim(t.Context(), Record{ID: "web", Bundle: "/b"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: claimed: %v", name, err)
		}
		if swept, err := newDir(t, h).Sweep(t.Context(), 0, false); err == nil || !strings.Contains(err.Error(), want) || len(swept.Records) > 0 {
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
	for _, text := range []string{"", "{", "null", "[]", `"x"`, `{"id":7}`, `{"pid":"1"}`, `{"id":"web","bundle":"/b","created":"yesterday"}`, "\x00\x00"} {
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

// Without a PID namespace of its own, a container may go on when its first process
// has ended, for as long as its bundle is there.
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
	// Its end is the end.
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
	// One that is started again is the same container.
	h.make(t, ended(t, Record{ID: "web", SharedPID: true, Bundle: bundle, Attached: true}))
	if _, attached, err := newDir(t, h).Claim(t.Context(), runs(t, Record{ID: "web", SharedPID: true, Bundle: bundle})); attached || err != nil {
		t.Errorf("%v, %v", attached, err)
	}
}

// A process that cannot be looked at may run.
func TestLiveUnknown(t *testing.T) {
	defer func() { proc.Dir = "/proc" }()
	for name, make := range map[string]func(stat string) error{
		"not understood": func(stat string) error { return os.WriteFile(stat, []byte("7 (x) R 1"), 0o600) },
		"no number":      func(stat string) error { return os.WriteFile(stat, []byte("7 (x) R"+strings.Repeat(" x", 30)), 0o600) },
		"unreadable":     func(stat string) error { return os.Mkdir(stat, 0o700) },
	} {
		proc.Dir = t.TempDir()
		must(t, os.Mkdir(proc.Dir+"/7", 0o700), make(proc.Dir+"/7/stat"))
		h := newHost(t)
		h.make(t, Record{ID: "web", Bundle: "/b", Pid: 7, PidStart: 1})
		if live, err := (Record{Pid: 7}).live(); live || err == nil {
			t.Errorf("%s: %v, %v", name, live, err)
		}
		if swept, err := newDir(t, h).Sweep(t.Context(), 0, false); err == nil || !strings.Contains(err.Error(), "record kept: ") || len(swept.Records) > 0 {
			t.Errorf("%s: swept %+v, %v", name, swept, err)
		}
		_, _, err := newDir(t, h).Claim(t.Context(), Record{ID: "web", Bundle: "/other", Pid: 8})
		if err == nil || !strings.Contains(err.Error(), "remove "+h.dir+"/run/containers/web.json when it does not") {
			t.Errorf("%s: claimed: %v", name, err)
		}
		if _, _, err := newDir(t, h).End(t.Context(), "web", "/b"); err == nil || !strings.Contains(err.Error(), "record kept: ") {
			t.Errorf("%s: ended: %v", name, err)
		}
		if !exists(t, h.dir+"/run/containers/web.json") || !exists(t, h.store.GCRoots().Of("web")) {
			t.Errorf("%s: forgotten", name)
		}
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
	for range 500 { // a zombie now, and nothing else
		if live, err := record.live(); !live && err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("killed, and taken for one that runs")
}

// Of containers with one ID that start at the same moment, over what one left that
// has ended, one has the record, and what it made stays.
func TestClaim(t *testing.T) {
	h := newHost(t)
	roots := h.store.GCRoots()
	for round := range 50 {
		h.make(t, ended(t, Record{ID: "web", Bundle: "/ended", View: "v"}))
		var all sync.WaitGroup
		var won atomic.Int64
		begin := make(chan struct{})
		for i := range 4 {
			// As two engines: each has a runtime directory that it opened itself.
			d := newDir(t, h)
			r := runs(t, Record{ID: "web", Bundle: fmt.Sprint("/", i)})
			all.Go(func() {
				<-begin
				_, attached, err := d.Claim(t.Context(), r)
				if attached || err != nil && !strings.Contains(err.Error(), "of another container with this ID is running (bundle /") {
					t.Errorf("%d: %v, %v", i, attached, err)
				}
				if err == nil {
					won.Add(1)
					if err := roots.Add(h.store, "web", []closure.BaseName{named(fmt.Sprint("of-", i))}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		close(begin)
		all.Wait()
		r, ok, err := newDir(t, h).Record("web")
		if won.Load() != 1 || !ok || err != nil {
			t.Fatalf("round %d: %d have it: %v, %v", round, won.Load(), ok, err)
		}
		if want := roots.Of("web") + "/" + string(named("of-"+r.Bundle[1:])); len(list(t, roots.Of("web"))) != 2 {
			t.Fatalf("round %d: %q, want %s", round, list(t, roots.Of("web")), want)
		} else if _, err := os.Lstat(want); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		must(t, os.Remove(h.dir+"/run/containers/web.json"))
	}
	if left := list(t, h.dir+"/run/containers"); len(left) > 0 {
		t.Errorf("%q", left)
	}
}

// The one that has the ID already has what it made; the one before it left nothing.
func TestClaimAgain(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	own := runs(t, Record{ID: "web", Bundle: "/a"})
	for _, c := range []struct {
		name     string
		old, new Record
		attached bool
		refused  bool
	}{
		{name: "attached", old: Record{ID: "web", Bundle: "/a", Pid: own.Pid, PidStart: own.PidStart, Attached: true}, new: own, attached: true},
		{name: "a hook was killed", old: own, new: own},
		{name: "another start of the process's number", old: Record{ID: "web", Bundle: "/a", Pid: own.Pid, PidStart: 1, Attached: true}, new: own},
		{name: "another bundle", old: Record{ID: "web", Bundle: "/b", Pid: own.Pid, PidStart: own.PidStart}, new: own, refused: true},
		{name: "another process", old: own, new: Record{ID: "web", Bundle: "/a", Pid: 1, PidStart: 1}, refused: true},
	} {
		h.make(t, c.old)
		_, attached, err := d.Claim(t.Context(), c.new)
		if attached != c.attached || (err != nil) != c.refused {
			t.Errorf("%s: %v, %v", c.name, attached, err)
		}
		if kept := exists(t, h.store.GCRoots().Of("web")); kept != (c.attached || c.refused) {
			t.Errorf("%s: GC roots kept: %v", c.name, kept)
		}
	}
}

// A start that fails, and one that goes on too late, leave another's alone.
func TestClaimOfAnother(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	c, _, err := d.Claim(t.Context(), ended(t, Record{ID: "web", Bundle: "/a"}))
	must(t, err)
	h.make(t, runs(t, Record{ID: "web", Bundle: "/b"}))
	before := h.files(t)
	must(t, c.Undo(t.Context()))
	next := c.Record()
	next.Digest, next.View = strings.Repeat("0", 64), "v"
	if err := c.Reserve(t.Context(), next, []closure.BaseName{named("a")}); !errors.Is(err, errNotOwn) {
		t.Errorf("reserved: %v", err)
	}
	if err := c.Update(t.Context(), next); !errors.Is(err, errNotOwn) {
		t.Errorf("updated: %v", err)
	}
	if diff := cmp.Diff(before, h.files(t)); diff != "" {
		t.Errorf("another's changed (-before +after)\n%s", diff)
	}
	must(t, os.Remove(h.dir+"/run/containers/web.json"))
	if err := c.Reserve(t.Context(), c.Record(), nil); !errors.Is(err, errNotOwn) {
		t.Errorf("reserved without a record: %v", err)
	}
	must(t, c.Undo(t.Context()))
	if exists(t, h.store.GCRoots().Of("web")) {
		t.Error("GC roots of nobody stay")
	}
}

// What a container uses is marked, and given up where the record names it no more.
func TestClaimReserve(t *testing.T) {
	h := newHost(t)
	d := newDir(t, h)
	c, _, err := d.Claim(t.Context(), runs(t, Record{ID: "web", Bundle: "/a"}))
	must(t, err)
	r := c.Record()
	r.View, r.Registration = "v", "db"
	must(t, c.Reserve(t.Context(), r, []closure.BaseName{named("hello")}))
	r.View = ""
	must(t, c.Update(t.Context(), r))
	if got, _, err := d.Record("web"); err != nil || !cmp.Equal(got, r) {
		t.Errorf("%+v, %v, want %+v", got, err, r)
	}
	if exists(t, h.dir+"/run/views/v@web") || !exists(t, h.dir+"/run/registrations/db@web") || !exists(t, h.store.GCRoots().Of("web")) {
		t.Errorf("views %q, registrations %q", list(t, h.dir+"/run/views"), list(t, h.dir+"/run/registrations"))
	}
	must(t, c.Undo(t.Context()))
	if left := list(t, h.dir+"/run/registrations"); len(left) > 0 || exists(t, h.dir+"/run/containers/web.json") || exists(t, h.store.GCRoots().Of("web")) {
		t.Errorf("left: %q", left)
	}
}

// A lock that somebody keeps is waited for, but not for ever, and the message says
// who has it.
func TestLockID(t *testing.T) {
	d := newDir(t, newHost(t))
	lock, err := d.lockID(t.Context(), "web")
	must(t, err)
	if _, err := d.tryLockID("web"); !errors.Is(err, errLocked) {
		t.Errorf("locked twice: %v", err)
	}
	other, err := d.tryLockID("db")
	must(t, err)
	other.release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.lockID(ctx, "web"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for the lock of the container ID in "+d.path+"/locks") {
		t.Errorf("error %v", err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	must(t, err, os.WriteFile("/proc/self/comm", []byte("nix-closure-hook"), 0))
	if got, want := d.holder("web"), fmt.Sprintf("; process %d (nix-closure-hoo) has it", os.Getpid()); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	must(t, os.WriteFile("/proc/self/comm", comm, 0))
	time.AfterFunc(50*time.Millisecond, lock.release)
	again, err := d.lockID(t.Context(), "web")
	must(t, err)
	again.release()
}

// descriptors are how many files this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// A process that lives long, such as the NRI plugin, keeps nothing open of what it
// looked at.
func TestNothingStaysOpen(t *testing.T) {
	h := newHost(t)
	newDir(t, h).Close()
	runtime.GC() // and what a test before this one left
	record := runs(t, Record{ID: "other", Bundle: h.dir})
	d := newDir(t, h)
	must(t, d.writeRecord(record))
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"Sweep", func() error {
			d, err := Open(config.Config{RuntimeDir: h.dir + "/run", StoreDir: h.store.Dir, StateDir: h.store.StateDir})
			if err != nil {
				return err
			}
			defer d.Close()
			_, err = d.Sweep(t.Context(), 0, false)
			return err
		}},
		{"MakeRoom", func() error {
			_, err := d.MakeRoom(t.Context(), view.Cost{})
			return err
		}},
		{"HoldCache", func() error {
			release, err := d.HoldCache()
			if err == nil {
				release()
			}
			return err
		}},
		{"Claim, refused", func() error {
			_, _, err := d.Claim(t.Context(), ended(t, Record{ID: "other", Bundle: "/another"}))
			if err == nil || !strings.Contains(err.Error(), "another container with this ID") {
				t.Errorf("claimed: %v", err)
			}
			return nil
		}},
		{"a runtime directory with a damaged part", func() error {
			must(t, os.Symlink("/tmp", h.dir+"/run/broken"), os.Rename(h.dir+"/run/registrations", h.dir+"/aside"),
				os.Rename(h.dir+"/run/broken", h.dir+"/run/registrations"))
			_, err := Open(config.Config{RuntimeDir: h.dir + "/run"})
			must(t, os.Remove(h.dir+"/run/registrations"), os.Rename(h.dir+"/aside", h.dir+"/run/registrations"))
			if err == nil {
				return errors.New("it was opened")
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, c.call()) // what is opened once for all may stay
			before := descriptors(t)
			for range 50 {
				must(t, c.call())
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d files are open, and before 50 calls %d", after, before)
			}
		})
	}
}
