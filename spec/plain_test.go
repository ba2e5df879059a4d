// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"reflect"
	"testing"
)

// plainTexts are texts that the plain parsers read, and texts that they leave to
// encoding/json.
var plainTexts = []struct {
	text  string
	plain bool
}{
	{`{"ociVersion":"1.0.2","id":"web","status":"creating","pid":4711,"bundle":"/b","annotations":{"a":"b"}}`, true},
	{` { "id" : "web" , "pid" : -1 , "x" : [ 1.5e+3 , { "\u00e4" : null } , true , false ] } ` + "\n", true},
	{`{"root":{"path":"r","x":[]},"mounts":[{"destination":"/d","options":[]},{}],"annotations":{}}`, true},
	{`{"root":{"path":"r"},"process":{"user":{"uid":4294967295,"gid":0},"env":["ä\n"]}}`, true},
	{`{"root":{"path":"r"},"linux":{"mountLabel":"l","maskedPaths":["/m"],"rootfsPropagation":"shared",` +
		`"namespaces":[{"type":"pid"},{"type":"mount","path":"/n"}],"resources":{"memory":{"limit":5}}}}`, true},
	{`{}`, true},
	{``, false}, {`null`, false}, {`[]`, false}, {`{"id":"a"`, false}, {`{"id":"a"} x`, false}, {`{"id":"a"}}`, false},
	{`{"id":"a",}`, false}, {`{,}`, false}, {`{"id" "a"}`, false}, {`{"x":01}`, false}, {`{"x":.5}`, false},
	{`{"x":"\x"}`, false}, {`{"x":"\u12"}`, false}, {"{\"x\":\"\x01\"}", false}, {`{"x":tru}`, false},
	{`{"x":-}`, false},
	{`{"id":"a","id":"b"}`, false}, {`{"ID":"a"}`, false}, {`{"\u0069d":"a"}`, false}, {`{"id":"\u0061"}`, false},
	{`{"id":"ä"}`, false}, {`{"id":null}`, false}, {`{"id":7}`, false}, {`{"pid":"7"}`, false}, {`{"pid":1.0}`, false},
	{`{"pid":9999999999999999999}`, false}, {`{"annotations":{"a":1}}`, false}, {`{"annotations":["a"]}`, false},
	{`{"annotations":{"a":"b","a":"c"}}`, false}, {`{"annotations":{},"annotations":{"a":"b"}}`, false},
	{`{"ANNOTATIONS":{"nix-closure/roots":"x"}}`, false}, {"{\"annotation\u017f\":{}}", false},
	{`{"root":{"path":"r"},"Mounts":[]}`, false}, {`{"root":{"path":"r"},"Hooks":{}}`, false},
	{`{"root":{"path":"r","Path":"s"}}`, false}, {`{"root":{"path":"r"},"mounts":[null]}`, false},
	{`{"root":{"path":"r"},"process":{"user":{"uid":-1}}}`, false},
	{`{"root":{"path":"r"},"process":{"user":{"uid":-0}}}`, false}, {`{"pid":-0}`, false},
	{`{"root":{"path":"r"},"process":{"user":{"uid":4294967296}}}`, false},
	{`{"root":{"path":"r"},"linux":{"namespaces":[{"TYPE":"pid"}]}}`, false},
}

// Each text is plain for at least one of the parsers, or for none.
func TestPlain(t *testing.T) {
	for _, c := range plainTexts {
		_, state := parsePlainState([]byte(c.text))
		_, config := parsePlainConfig([]byte(c.text))
		if (state || config) != c.plain && (state && config) != c.plain {
			t.Errorf("%s: as a state %v, as a config.json %v", c.text, state, config)
		}
	}
	if _, ok := parsePlainConfig(readFile(t, "testdata/podman.json")); !ok {
		t.Error("a config.json of podman is not plain")
	}
}

// A plain text means the same as encoding/json says.
func FuzzPlain(f *testing.F) {
	for _, c := range plainTexts {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, ok := parsePlainState(text); ok {
			var want State
			if err := json.Unmarshal(text, &want); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%q: %+v, want %+v, %v", text, got, want, err)
			}
		}
		if got, ok := parsePlainConfig(text); ok {
			var want configText
			err := json.Unmarshal(text, &want)
			if _, odd := topLevel(text); err != nil || odd != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%q: %+v, want %+v, %v, %v", text, got, want, err, odd)
			}
		}
	})
}
