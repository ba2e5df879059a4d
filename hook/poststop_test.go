// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/proc"
)

const endOfWeb = `{"id":"web","pid":0,"bundle":"/b","annotations":{"nix-closure/roots":"x"}}`

// record writes a container's record and GC roots, as a start left them.
func (h host) record(t *testing.T, r state.Record) {
	t.Helper()
	text, err := json.Marshal(r)
	must(t, err, os.MkdirAll(h.dir+"/run/containers", 0o700), os.WriteFile(h.recordFile(r.ID), text, 0o600),
		h.store.GCRoots().Add(h.store, r.ID, []closure.BaseName{named("hello")}))
}

func (h host) recordFile(id string) string { return h.dir + "/run/containers/" + id + ".json" }

// there tells whether a container's record and GC roots are.
func (h host) there(t *testing.T, id string) bool {
	t.Helper()
	_, record := os.Lstat(h.recordFile(id))
	_, roots := os.Lstat(h.store.GCRoots().Of(id))
	if (record == nil) != (roots == nil) {
		t.Errorf("half of %s is left: %v, %v", id, record, roots)
	}
	return record == nil
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
		return h.there(t, id)
	}
	start, err := proc.StartTime(os.Getpid())
	must(t, err)
	runs := true
	make := func(id, bundle string) {
		t.Helper()
		r := state.Record{ID: id, Bundle: bundle}
		if runs {
			r.Pid, r.PidStart = os.Getpid(), start
		}
		h.record(t, r)
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
	// A host on which it cannot work does not keep a container from being removed.
	make("web", "/b")
	must(t, os.Chmod(h.dir+"/run", 0o755))
	stop("web", "/b", annotation)
	if lines := h.log(t); len(lines) == 0 || lines[len(lines)-1]["level"] != "error" {
		t.Errorf("not in the log: %v", lines)
	}
}

// GC roots without a record may be those of another runtime directory on the same
// store: poststop leaves them alone.
func TestPoststopWithoutRecord(t *testing.T) {
	h := newHost(t)
	must(t, h.store.GCRoots().Add(h.store, "web", []closure.BaseName{named("hello")}))
	must(t, Run(Call{Stage: "poststop", Config: h.config}, strings.NewReader(endOfWeb), nil))
	if _, err := os.Lstat(h.store.GCRoots().Of("web")); err != nil {
		t.Error(err)
	}
}

// A record that nobody can tell whose it is is kept, and the log names it.
func TestPoststopKeeps(t *testing.T) {
	unknown := func(text string) func(t *testing.T, h host) {
		return func(t *testing.T, h host) {
			h.record(t, state.Record{ID: "web", Bundle: "/b", Pid: 7, PidStart: 1})
			before := proc.Dir
			proc.Dir = t.TempDir()
			t.Cleanup(func() { proc.Dir = before })
			must(t, os.Mkdir(proc.Dir+"/7", 0o700), os.WriteFile(proc.Dir+"/7/stat", []byte(text), 0o600))
		}
	}
	damaged := func(text string) func(t *testing.T, h host) {
		return func(t *testing.T, h host) {
			h.record(t, state.Record{ID: "web"})
			must(t, os.WriteFile(h.recordFile("web"), []byte(text), 0o600))
		}
	}
	for name, make := range map[string]func(t *testing.T, h host){
		"empty": damaged(""), "cut off": damaged("{"), "null": damaged("null"), "a list": damaged("[]"),
		"a string": damaged(`"x"`), "another type": damaged(`{"id":7}`), "text for a number": damaged(`{"pid":"1"}`),
		"no time": damaged(`{"id":"web","bundle":"/b","created":"yesterday"}`), "zeros": damaged("\x00\x00"),
		"a directory": func(t *testing.T, h host) {
			h.record(t, state.Record{ID: "web"})
			must(t, os.Remove(h.recordFile("web")), os.Mkdir(h.recordFile("web"), 0o700))
		},
		"a process that is not understood": unknown("7 (x) R 1"),
		"a process without a start time":   unknown("7 (x) R" + strings.Repeat(" x", 30)),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			make(t, h)
			must(t, Run(Call{Stage: "poststop", Config: h.config}, strings.NewReader(endOfWeb), nil))
			want := "remove " + h.recordFile("web") + " when no container with this ID runs"
			logged := false
			for _, l := range h.log(t) {
				logged = logged || l["level"] == "error" && strings.Contains(fmt.Sprint(l["error"]), want)
			}
			if !logged || !h.there(t, "web") {
				t.Errorf("in the log %v, there %v", logged, h.there(t, "web"))
			}
		})
	}
}

// Where the runtime says that a container without a PID namespace has ended, it has
// ended the other processes too.
func TestPoststopSharedPID(t *testing.T) {
	h := newHost(t)
	bundle := t.TempDir()
	h.record(t, state.Record{ID: "web", SharedPID: true, Bundle: bundle, Pid: 1 << 30, PidStart: 1})
	in := fmt.Sprintf(`{"id":"web","pid":0,"bundle":%q,"annotations":{"nix-closure/roots":"x"}}`, bundle)
	must(t, Run(Call{Stage: "poststop", Config: h.config}, strings.NewReader(in), nil))
	if h.there(t, "web") {
		t.Error("not forgotten")
	}
}
