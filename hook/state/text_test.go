// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

// fullRecord has a value in each field of a container's record.
var fullRecord = Record{
	ID: "web", Bundle: "/run/b", Stated: "/", Pid: 4711, PidStart: 815, SharedPID: true, Engine: spec.Podman,
	Way: WayDevice, Roots: []closure.BaseName{"a", "b"}, ClosureInfo: "i", Mode: spec.ModeOverlay, Writable: true,
	Request: `roots [a b], closure-info "i"`, Digest: "d", View: "v", Registration: "r", GCRoots: "/g",
	Created: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC), Attached: true,
}

// A record is written as json.Marshal writes it, and its text is read without the decoder
// if it can be.
func TestRecordText(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Record)
		plain  bool
	}{
		{"full", func(*Record) {}, true},
		{"empty", func(r *Record) { *r = Record{} }, true},
		{"no process", func(r *Record) { r.Pid, r.Request = -1, "" }, true},
		{"a process of the end of time", func(r *Record) { r.PidStart = math.MaxUint64 }, false},
		{"a bundle with a name of all kinds", func(r *Record) { r.Bundle = "/<ä>&\x01\xff\u2028" }, false},
		{"quotes and backslashes", func(r *Record) { r.Bundle = `/"\\\"\n` }, true},
		{"a view of the host", func(r *Record) { r.Kind, r.Mount = KindView, &HostMount{Target: "/t"} }, false},
		{"a view of the host, not mounted", func(r *Record) { r.Kind, r.Request = KindView, "" }, false},
	} {
		r := fullRecord
		c.change(&r)
		want, err := json.Marshal(r)
		must(t, err)
		text, err := r.text()
		if err != nil || string(text) != string(want) {
			t.Errorf("%s: %v\n%s, want\n%s", c.name, err, text, want)
		}
		var decoded Record
		must(t, json.Unmarshal(text, &decoded))
		if read, err := parseRecord(text); err != nil || !reflect.DeepEqual(read, decoded) {
			t.Errorf("%s: %v, %+v, want %+v", c.name, err, read, decoded)
		}
		if _, ok := parsePlainRecord(text); ok != c.plain {
			t.Errorf("%s: plain: %v", c.name, ok)
		}
	}
	r := fullRecord
	r.Created = time.Date(12026, 1, 2, 3, 4, 5, 0, time.UTC)
	if text, err := r.text(); err == nil {
		t.Errorf("a year with five digits: %s", text)
	}
}

// Each field of a record is written and read.
func TestRecordFields(t *testing.T) {
	v := reflect.ValueOf(fullRecord)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() && name != "Kind" && name != "Mount" {
			t.Errorf("%s is new: write and read it", name)
		}
	}
	if len(recordFields) != v.NumField() {
		t.Errorf("%d names of %d fields", len(recordFields), v.NumField())
	}
}

// A plain text means the same as encoding/json says.
func FuzzRecord(f *testing.F) {
	for _, r := range []Record{{}, fullRecord} {
		text, err := r.text()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"pidStart":-1}`))
	f.Add([]byte(`{"created":"2026-01-02T03:04:05.1+01:00","roots":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, ok := parsePlainRecord(text)
		if !ok {
			return
		}
		var want Record
		if err := json.Unmarshal(text, &want); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v, %v", text, got, want, err)
		}
	})
}
