// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseState(t *testing.T) {
	// As runc 1.1 writes it.
	const whole = `{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":4711,"bundle":"/run/b",` +
		`"annotations":{"nix-closure/roots":"x","other":"y"}}`
	want := State{ID: "web", Pid: 4711, Bundle: "/run/b",
		Annotations: map[string]string{"nix-closure/roots": "x", "other": "y"}}
	if got, err := ParseState([]byte(whole)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	// gVisor says nothing of the process.
	if got, err := ParseState([]byte(`{"id":"a","pid":-1,"bundle":"/b"}`)); err != nil || got.Pid != -1 ||
		got.Annotations != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ParseState([]byte(`{"id":"a","bundle":"/b","annotations":null}`)); err != nil || got.Pid != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseStateRefuses(t *testing.T) {
	const of = "the OCI state on standard input"
	id := func(id string) string {
		text, _ := json.Marshal(map[string]any{"id": id, "bundle": "/b"})
		return string(text)
	}
	notID := func(quoted string) string {
		return of + ": id " + quoted + ": not 1 to 200 letters, digits and _+-. with no dot first"
	}
	for _, c := range []struct{ in, want string }{
		{"", of + " is not JSON of the expected form: unexpected end of JSON input"},
		{"{", of + " is not JSON of the expected form: "},
		{"[]", of + " is not JSON of the expected form: "},
		{`"web"`, of + " is not JSON of the expected form: "},
		{`{"id":"a","bundle":"/b"}{}`, of + " is not JSON of the expected form: "},
		{`{"id":7,"bundle":"/b"}`, of + " is not JSON of the expected form: "},
		{`{"id":"a","pid":"7","bundle":"/b"}`, of + " is not JSON of the expected form: "},
		{`{"id":"a","pid":1e30,"bundle":"/b"}`, of + " is not JSON of the expected form: "},
		{`{"id":"a","bundle":"/b","annotations":["nix-closure/roots"]}`, of + " is not JSON of the expected form: "},
		{`{"id":"a","bundle":"/b","annotations":{"nix-closure/roots":["x"]}}`,
			of + " is not JSON of the expected form: "},
		{"null", of + " has no id"},
		{"{}", of + " has no id"},
		{`{"bundle":"/b"}`, of + " has no id"},
		{id("."), notID(`"."`)},
		{id(".."), notID(`".."`)},
		{id(".hidden"), notID(`".hidden"`)},
		{id("a/b"), notID(`"a/b"`)},
		{id("../../etc"), notID(`"../../etc"`)},
		{id("/"), notID(`"/"`)},
		{id("a b"), notID(`"a b"`)},
		{id("a\nb"), notID(`"a\nb"`)},
		{id("a\x00"), notID(`"a\x00"`)},
		{id("ä"), notID(`"ä"`)},
		{id("a:b"), notID(`"a:b"`)},
		{id(strings.Repeat("a", 201)), notID(`"` + strings.Repeat("a", 201) + `"`)},
	} {
		got, err := ParseState([]byte(c.in))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n%v\nwant\n%s", c.in, err, c.want)
		}
		if got.ID != "" {
			t.Errorf("%s: %+v with an error", c.in, got)
		}
	}
	// With an id, the message can name the container.
	for _, bundle := range []string{"", "b", "./b", "../b"} {
		text, _ := json.Marshal(map[string]any{"id": "web", "bundle": bundle})
		got, err := ParseState(text)
		if want := of + `: bundle "` + bundle + `": not an absolute path`; err == nil || err.Error() != want ||
			got.ID != "web" {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, good := range []string{"a", "0", "_", "-", "+", "a.b", "a..b", "Zz9", strings.Repeat("a", 200),
		strings.Repeat("0123456789abcdef", 4)} {
		if _, err := ParseState([]byte(id(good))); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// An accepted id is the name of a file and nothing else.
func FuzzState(f *testing.F) {
	for _, s := range []string{
		`{"ociVersion":"1.0.2","id":"web","status":"creating","pid":4711,"bundle":"/run/b","annotations":{"a":"b"}}`,
		`{"id":"..","bundle":"/b"}`, `{"id":"a/b","bundle":"/b"}`, `{"id":"a","bundle":"b"}`,
		`{"id":"a","ID":"../b","bundle":"/b"}`,
		`{"id":"\u002e\u002e","bundle":"/"}`, `null`, `{}`, `[]`, ``,
		`{"id":"a","pid":-1,"bundle":"/b","annotations":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseState(text)
		if err != nil && s.ID == "" {
			return
		}
		if filepath.Base(s.ID) != s.ID || s.ID == "." || s.ID == ".." || s.ID[0] == '.' || len(s.ID) > 200 ||
			strings.ContainsAny(s.ID, "/\\\x00\n \"'") {
			t.Errorf("%q: id %q", text, s.ID)
		}
		if err == nil && (s.Bundle == "" || s.Bundle[0] != '/') {
			t.Errorf("%q: bundle %q", text, s.Bundle)
		}
	})
}
