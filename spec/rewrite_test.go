// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A golden file is written by hand, from the .json beside it: the same text
// without white space, its top-level fields sorted, without the mounts.
func TestWithoutMounts(t *testing.T) {
	for _, c := range []struct {
		name      string
		positions []int
	}{
		{"podman", []int{1, 3}},
		{"strange", []int{4, 1}},
		{"only", []int{0}},
	} {
		in := readFile(t, "testdata/"+c.name+".json")
		want := readFile(t, "testdata/"+c.name+".golden")
		before := slices.Clone(in)
		got, err := WithoutMounts(in, c.positions)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
		if !bytes.Equal(in, before) {
			t.Errorf("%s: the text given was changed", c.name)
		}
		// Nothing to take out: not a byte changes.
		for _, none := range [][]int{nil, {}} {
			if got, err := WithoutMounts(in, none); err != nil || !bytes.Equal(got, in) {
				t.Errorf("%s: without positions: %q, %v", c.name, got, err)
			}
		}
		again, err := WithoutMounts(got, []int{99})
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: rewritten again: %q, %v", c.name, again, err)
		}
	}
}

func TestWithoutMountsRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{``, "not a JSON object: unexpected end of JSON input"},
		{`null`, "not a JSON object: null"},
		{`[{"mounts":[]}]`, "not a JSON object: "},
		{`{"mounts":[]} {}`, "not a JSON object: "},
		{`{"root":{}}`, "mounts: not of the expected form: "},
		{`{"mounts":{"0":{}}}`, "mounts: not of the expected form: "},
		{`{"mounts":"x"}`, "mounts: not of the expected form: "},
		{`{"mounts":[],"Mounts":[]}`, `field "Mounts": some runtimes take it for "mounts" and some do not`},
		{`{"mounts":[{}]`, "not a JSON object: "},
	} {
		got, err := WithoutMounts([]byte(c.in), []int{0})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.in, err, c.want)
		}
		if got != nil {
			t.Errorf("%s: %q with an error", c.in, got)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// compact is the JSON text without white space.
func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fields takes a JSON object apart.
func fields(t *testing.T, text []byte) map[string]json.RawMessage {
	t.Helper()
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return all
}

// Every field but the mounts keeps its value, and of the mounts those that stay
// keep theirs, and their order.
func FuzzWithoutMounts(f *testing.F) {
	for _, name := range []string{"podman", "strange", "only"} {
		text, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, uint16(0b1010))
	}
	f.Add([]byte(`{"mounts":null,"a":1}`), uint16(1))
	f.Add([]byte(`{"mounts":[null,[],0,"x"],"mounts":[1,2]}`), uint16(2))
	f.Add([]byte(`{"a":18446744073709551615,"b":"<>&\u2028","mounts":[{"a":1.0}]}`), uint16(2))
	f.Add([]byte("{\"\xff\":\"\xfe\",\"mounts\":[\"\xfd\",2]}"), uint16(2))
	f.Fuzz(func(t *testing.T, text []byte, mask uint16) {
		var positions []int
		for i := range 16 {
			if mask>>i&1 == 1 {
				positions = append(positions, i)
			}
		}
		out, err := WithoutMounts(text, positions)
		if err != nil {
			return
		}
		if len(positions) == 0 {
			if !bytes.Equal(out, text) {
				t.Errorf("%q became %q", text, out)
			}
			return
		}
		was, is := fields(t, text), fields(t, out)
		var mounts, kept []json.RawMessage
		if json.Unmarshal(was["mounts"], &mounts) != nil || json.Unmarshal(is["mounts"], &kept) != nil || kept == nil {
			t.Fatalf("%q: mounts became %q", text, is["mounts"])
		}
		var want []string
		for i, m := range mounts {
			if !slices.Contains(positions, i) {
				want = append(want, compact(t, m))
			}
		}
		var got []string
		for _, m := range kept {
			got = append(got, compact(t, m))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: mounts %q, want %q", text, got, want)
		}
		delete(was, "mounts")
		delete(is, "mounts")
		if len(was) != len(is) {
			t.Errorf("%q: %d other fields, then %d", text, len(was), len(is))
		}
		for name, raw := range was {
			if compact(t, raw) != compact(t, is[name]) {
				t.Errorf("%q: field %q was %q, is %q", text, name, raw, is[name])
			}
		}
		again, err := WithoutMounts(out, []int{1 << 20})
		if err != nil || !bytes.Equal(again, out) {
			t.Errorf("%q: a second time it is %q, %v", out, again, err)
		}
	})
}
