// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestSetJSON(t *testing.T) {
	for _, c := range []struct{ in, path, want string }{
		{"{}", "a", "{\n  \"a\": 1\n}"},
		{"{\n}\n", "a", "{\n  \"a\": 1\n}\n"},
		{`{"b":2}`, "a", `{"b":2,"a": 1}`},
		{"{\n  \"b\": 2\n}\n", "a", "{\n  \"b\": 2,\n  \"a\": 1\n}\n"},
		{"{\n\t\"b\": 2,\n\t\"c\": \"}\"\n}\n", "a", "{\n\t\"b\": 2,\n\t\"c\": \"}\",\n\t\"a\": 1\n}\n"},
		{`{"a": {"x": [1, 2]}, "z": 3}`, "a", `{"a": 1, "z": 3}`},
		{`{"r": {"x": {}}, "z": 3}`, "r a", `{"r": {"x": {},"a": 1}, "z": 3}`},
		{`{"r": {"x": 1, "y": 2}, "z": 3}`, "r a", `{"r": {"x": 1, "y": 2, "a": 1}, "z": 3}`},
		{`{"z": 3}`, "r a", `{"z": 3,"r": {"a": 1}}`},
		{`{"a": 1, "a": 2}`, "a", `{"a": 1, "a": 1}`},
		{`{"r": 5}`, "r a", "error"},
		{`[]`, "a", "error"},
		{`{"b": 2`, "a", "error"},
	} {
		got, err := setJSON([]byte(c.in), 0, 0, strings.Fields(c.path), "1")
		if err != nil {
			got = []byte("error")
		}
		if string(got) != c.want {
			t.Errorf("%s, %s:\n%s (%v)\nwant\n%s", c.in, c.path, got, err, c.want)
		}
	}
}

// What is set is there, and nothing else has changed.
func FuzzSetJSON(f *testing.F) {
	for _, s := range []string{
		"{}", `{"b":2}`, "{\n  \"runtimes\": {\"x\": {\"path\": \"/x\"}},\n \"a\": [1, {}]\n}", `{"runtimes": 1}`,
		`{"\"": "\\"}`, `{"a":1,"a":2}`, ` { "a" : null } `,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if checkJSON(text) != nil {
			return
		}
		got, err := setJSON(text, 0, 0, []string{"runtimes", "nix-closure"}, `{"path": "/x"}`)
		if err != nil {
			return
		}
		var before, after map[string]any
		if err := json.Unmarshal(text, &before); err != nil {
			return
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q became %q: %v", text, got, err)
		}
		runtimes, _ := before["runtimes"].(map[string]any)
		if runtimes == nil {
			runtimes = map[string]any{}
		}
		runtimes["nix-closure"] = map[string]any{"path": "/x"}
		if before == nil {
			before = map[string]any{}
		}
		before["runtimes"] = runtimes
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%q became %q", text, got)
		}
	})
}
