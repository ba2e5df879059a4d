// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/proc"
)

func TestSelect(t *testing.T) {
	all := []Container{{ID: "aa1", Name: "web"}, {ID: "aa2", Name: "db"}, {ID: "b"}, {ID: "web"}}
	for _, c := range []struct {
		names []string
		want  string // IDs, or the error
	}{
		{nil, "aa1 aa2 b web"},
		{[]string{"aa1"}, "aa1"},
		{[]string{"db", "aa2", "b"}, "aa2 b"},
		{[]string{"w"}, "web"},
		{[]string{"aa"}, `container "aa": 2 containers have this name, or an ID that begins with it; give more ` +
			`of the ID`},
		{[]string{"web"}, "web"}, // the ID wins
		{[]string{"c"}, `container "c": no container that asks for a closure has this ID or name`},
		{[]string{""}, `container "": no container that asks for a closure has this ID or name`},
	} {
		got, err := Select(all, c.names)
		var ids []string
		for _, container := range got {
			ids = append(ids, container.ID)
		}
		text := strings.Join(ids, " ")
		if err != nil {
			text = err.Error()
		}
		if text != c.want {
			t.Errorf("%q: %s, want %s", c.names, text, c.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	got := string(Metrics([]Result{
		{ID: "a", Name: `a "b\`, State: OK}, {ID: "b", State: Unknown},
	}, 2, time.Unix(1700000000, 0), 1500*time.Millisecond))
	for _, want := range []string{
		`nix_closure_verify_containers{state="ok"} 1`, `nix_closure_verify_containers{state="wrong"} 0`,
		`nix_closure_verify_container_ok{id="a",name="a \"b\\",state="ok"} 1`,
		`nix_closure_verify_container_ok{id="b",name="",state="unknown"} 0`, "nix_closure_verify_troubles 2",
		"nix_closure_verify_timestamp_seconds 1700000000", "nix_closure_verify_duration_seconds 1.500",
		"# TYPE nix_closure_verify_containers gauge",
	} {
		if !strings.Contains("\n"+got, "\n"+want+"\n") {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
}

// What a runtime has written, and what nobody can understand.
func TestReadRuntimes(t *testing.T) {
	for name, c := range map[string]struct {
		read       func(string) (found, error)
		file, text string
		want       string // the ID and the bundle, or the error
	}{
		"runc": {read: readRunc, file: "state.json", text: `{"id":"a","init_process_pid":1,"init_process_start":1,
			"config":{"labels":["x=y","bundle=/b"]}}`, want: "a /b"},
		"runc, damaged": {read: readRunc, file: "state.json", text: `{`, want: "unexpected end of JSON input"},
		"crun": {read: readCrun, file: "status", text: `{"pid":1,"process-start-time":1,"bundle":"/b"}`,
			want: "001 /b"},
		"crun, damaged":       {read: readCrun, file: "status", text: `[]`, want: "cannot unmarshal array"},
		"containerd":          {read: readTask, file: "init.pid", text: "1", want: "001 DIR"},
		"containerd, damaged": {read: readTask, file: "init.pid", text: "one", want: `parsing "one"`},
		"another's":           {read: readCrun, file: "other", want: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/"+c.file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := c.read(dir)
			got := f.id + " " + strings.Replace(f.Bundle, dir, "DIR", 1)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// A container that ends while containers are listed has no record any more. It is not one
// that runs without.
func TestEnded(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	pid := sleep.Process.Pid
	start, err := proc.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	runs := Running{Pid: pid, start: start}
	if runs.ended() || (Running{Pid: pid}).ended() {
		t.Error("a process that runs has ended")
	}
	if !(Running{Pid: pid, start: start + 1}).ended() {
		t.Error("another process with the same ID is taken for the container's")
	}
	if err := sleep.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleep.Wait()
	if !runs.ended() {
		t.Error("a process that has ended runs")
	}
	self := os.Getpid()
	selfStart, err := proc.StartTime(self)
	if err != nil {
		t.Fatal(err)
	}
	alive := &Running{Pid: self, start: selfStart}
	record := func(pid int, start uint64, shared bool) *state.Record {
		return &state.Record{Pid: pid, PidStart: start, SharedPID: shared}
	}
	for _, c := range []struct {
		name string
		c    Container
		want bool
	}{
		{"without a record", Container{Running: &runs}, true},
		{"with a record still", Container{Running: &runs, Record: record(pid, start, false)}, true},
		{"that no runtime knows", Container{Record: record(pid, start, false)}, true},
		{"that runs", Container{Running: alive, Record: record(self, selfStart, false)}, false},
		{"that runs without a record", Container{Running: alive}, false},
		{"whose record is of another process", Container{Running: alive, Record: record(pid, start, false)}, false},
		{"whose other processes may run", Container{Running: &runs, Record: record(pid, start, true)}, false},
		{"of gVisor", Container{Record: record(0, 0, false)}, false},
		{"with a damaged record", Container{Running: &runs, Damaged: os.ErrInvalid}, false},
	} {
		if c.c.hasEnded() != c.want {
			t.Errorf("a container %s: ended %v", c.name, !c.want)
		}
	}
	if (Running{}).ended() {
		t.Error("a container without a process has ended")
	}
}

// What was seen inside a container holds, though it ended before the look did.
func TestOfEnded(t *testing.T) {
	outside := Finding{What: "there is no record"}
	leak := Finding{What: "the store is mounted on /x", inside: true}
	for _, c := range []struct {
		name        string
		found, want []Finding
	}{
		{"nothing", nil, nil},
		{"no record", []Finding{outside}, nil},
		{"a leak", []Finding{outside, leak}, []Finding{leak}},
	} {
		r := ofEnded(Result{ID: "a", Name: "web", Wrong: c.found, Notes: []string{"a note"}})
		if !slices.Equal(r.Wrong, c.want) || r.ID != "a" || r.Name != "web" {
			t.Errorf("%s: %+v", c.name, r)
		}
		if leaks := len(c.want) > 0; r.Ended == leaks || (stateOf(r) == Wrong) != leaks {
			t.Errorf("%s: %+v is %v", c.name, r, stateOf(r))
		}
	}
}
