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
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A golden file is written by hand, from the .json beside it: the same text
// without white space, its top-level fields sorted, without the mounts.
func TestRewriteMounts(t *testing.T) {
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
		got, err := Rewrite(in, c.positions)
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
			if got, err := Rewrite(in, none); err != nil || !bytes.Equal(got, in) {
				t.Errorf("%s: without positions: %q, %v", c.name, got, err)
			}
		}
		again, err := Rewrite(got, []int{99})
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: rewritten again: %q, %v", c.name, again, err)
		}
	}
}

func TestRewriteMountsRefuses(t *testing.T) {
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
		got, err := Rewrite([]byte(c.in), []int{0})
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
func FuzzRewriteMounts(f *testing.F) {
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
		out, err := Rewrite(text, positions)
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
		again, err := Rewrite(out, []int{1 << 20})
		if err != nil || !bytes.Equal(again, out) {
			t.Errorf("%q: a second time it is %q, %v", out, again, err)
		}
	})
}

const hookProgram = "/opt/nix-closure/nix-closure-hook"

// installed is what the runtime makes of a config.json.
func installed(text []byte, positions []int) ([]byte, error) {
	var hooks []StageHook
	for _, stage := range []string{"createRuntime", "poststop"} {
		hooks = append(hooks, StageHook{stage,
			specs.Hook{Path: hookProgram, Args: []string{"nix-closure-hook", stage}, Env: []string{"LC_ALL=C"}}})
	}
	return Rewrite(text, positions, hooks...)
}

// The golden files are written by hand, as those of TestRewriteMounts.
func TestRewriteHooks(t *testing.T) {
	for _, c := range []struct {
		name      string
		positions []int
	}{
		{"podman", []int{1, 3}}, // has a hook that another program put
		{"strange", []int{4, 1}},
		{"only", []int{0}},
		{"hooks", nil}, // many, and this one already
	} {
		in := readFile(t, "testdata/"+c.name+".json")
		want := readFile(t, "testdata/"+c.name+".installed.golden")
		before := slices.Clone(in)
		got, err := installed(in, c.positions)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
		if !bytes.Equal(in, before) {
			t.Errorf("%s: the text given was changed", c.name)
		}
		if again, err := installed(got, nil); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: a second time it is\n%s%v", c.name, again, err)
		}
	}
}

func TestRewriteHooksRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{``, "not a JSON object: unexpected end of JSON input"},
		{`null`, "not a JSON object: null"},
		{`{"hooks":[]}`, "hooks: not of the expected form: "},
		{`{"hooks":{"createRuntime":{}}}`, "hooks.createRuntime: not of the expected form: "},
		{`{"hooks":{"createRuntime":[{"path":"/x"},{"path":1}]}}`,
			"hooks.createRuntime[1]: not of the expected form: "},
		{`{"Hooks":{}}`, `field "Hooks": some runtimes take it for "hooks" and some do not`},
		// After the one that is written, in Go's order, so that runc would take it instead.
		{`{"hooks":{"createruntime":[]}}`,
			`field "hooks.createruntime": some runtimes take it for "hooks.createRuntime", in its place, and ` +
				`some do not`},
		{`{"hooks":{"CreateRuntime":[]}}`, `field "hooks.CreateRuntime": some runtimes`},
	} {
		got, err := installed([]byte(c.in), nil)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || got != nil {
			t.Errorf("%s: %q, %v, want %s", c.in, got, err, c.want)
		}
	}
}

func TestHasAnnotations(t *testing.T) {
	const own = `"nix-closure/roots":"x"`
	for _, c := range []struct {
		in   string
		want bool
		err  string
	}{
		{in: `null`},
		{in: `{}`},
		{in: `{"annotations":null}`},
		{in: `{"annotations":{}, "hooks": "nobody looks"}`},
		{in: `{"annotations":{"other/nix-closure/roots":"x"}}`},
		{in: `{"process":{"annotations":{` + own + `}}}`},
		{in: `{"a":1,"a":2,"annotations":{"a":"1","a":"2"},"hooks":{"poststop":[],"poststop":[]}}`},
		{in: `{"annotations":{}} and more`},
		{in: `{"annotations":{` + own + `}}`, want: true},
		{in: `{"annotations":{"web.nix-closure/roots":"x"}}`, want: true},
		{in: `{"annotations":{"nix-closure/anything":{}}}`, want: true},
		{in: `{"annotations":{"nix\u002dclosure\/roots":"x"}}`, want: true},
		{in: `{"a":{"b":1,"b":2},"annotations":{` + own + `},"hooks":null}`, want: true},
		// For some runtimes they are the annotations. What is rewritten next refuses them.
		{in: `{"Annotations":{` + own + `}}`, want: true},
		{in: `{"annotation\u017f":{` + own + `}}`, want: true},
		{in: `{"annotations":{},"ANNOTATIONS":{` + own + `}}`, want: true},
		// The one that counts is the first for some, for some the last, for some both.
		{in: `{"annotations":{` + own + `},"annotations":{}}`, want: true, err: `field "annotations": is there twice`},
		{in: `{"annotations":{` + own + `},"annotations":null}`, want: true,
			err: `field "annotations": is there twice`},
		{in: `{"annotations":{},"annotations":{` + own + `}}`, want: true, err: `field "annotations": is there twice`},
		{in: `{"annotations":{` + own + `,"io.kubernetes.cri.container-type":"container",` +
			`"io.kubernetes.cri.container-type":"sandbox"}}`,
			want: true, err: `field "annotations.io.kubernetes.cri.container-type": is there twice`},
		{in: `{"annotations":{` + own + `},"linux":{"namespaces":[]},"linux":{}}`, want: true,
			err: `field "linux": is there twice`},
		{in: `{"annotations":{` + own + `},"hooks":{"poststop":[],"poststop":[{"path":"/x"}]}}`, want: true,
			err: `field "hooks.poststop": is there twice`},
		{in: `{"annotations":{` + own + `},"hooks":[]}`, want: true, err: "hooks: not a JSON object"},
		{in: own, err: "not a JSON object"},
		{in: `[` + own + `]`, err: "not a JSON object"},
		{in: `{"a":` + own[:19], err: "not a JSON object: EOF"},
		{in: `{"annotations":{` + own + `},}`, err: "not a JSON object: "},
		{in: `{1:` + own + `}`, err: "not a JSON object: "},
		{in: `{"a" ` + own + `}`, err: "not a JSON object: "},
		{in: `{/**/"annotations":{` + own + `}}`, err: "not a JSON object: "},
		{in: `{"annotations":[` + own[:19] + `]}`, err: "annotations: not a JSON object"},
		// Nothing in it could be an annotation. Whether it is JSON the runtime finds out.
		{in: ``},
		{in: `{"a":1`},
		{in: `{"annotations":["\"\\\/\b\f\n\r\tu006e"]}`},
		{in: `{"annotations":"\x6eix-closure"}`, err: "not a JSON object: "},
		{in: `{"annotations":{"\u006eix-\u0063losure\u002froots":"x"}}`, want: true},
		{in: `{"annotations":{"\\u006eix-closur\u0065/roots":"x"}}`},
		{in: `{"a":"\`, err: "not a JSON object: "},
	} {
		got, err := HasAnnotations([]byte(c.in))
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%s: %t, %v; want %t, %s", c.in, got, err, c.want, c.err)
		}
	}
}

// The hook is there once and last, the others of the stage are there in their
// order, and nothing else changes.
func FuzzRewriteHooks(f *testing.F) {
	for _, name := range []string{"podman", "strange", "only", "hooks"} {
		text, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"hooks":{"poststop":[{"path":"a","PATH":"b"},null]},"a":18446744073709551615,` +
		`"annotations":{"nix-closure/x":"","nix-closure/x":""}}`))
	f.Add([]byte(`{"hooks":{"poststop":[{}],"poststop":[]},"annotations":{"nix-closure/x":""}}`))
	f.Add([]byte("{\"hooks\":{\"\xff\":\"\xfe\",\"createRuntime\":null}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		carries, carriesErr := HasAnnotations(text)
		annotations, err := ParseConfigAnnotations(text)
		if err == nil && Annotated(annotations) && !carries {
			t.Errorf("%q: carries an annotation, and does not", text)
		}
		out, err := installed(text, nil)
		if err != nil {
			return
		}
		was, is := fields(t, text), fields(t, out)
		stagesWere, stagesAre := map[string]json.RawMessage{}, fields(t, is["hooks"])
		if raw, ok := was["hooks"]; ok {
			stagesWere = fields(t, raw)
		}
		for _, stage := range []string{"createRuntime", "poststop"} {
			var before, after []json.RawMessage
			if raw, ok := stagesWere[stage]; ok && json.Unmarshal(raw, &before) != nil ||
				json.Unmarshal(stagesAre[stage], &after) != nil {
				t.Fatalf("%q: hooks became %q", text, is["hooks"])
			}
			var want []string
			for _, h := range before {
				if compact(t, h) != compact(t, after[len(after)-1]) {
					want = append(want, compact(t, h))
				}
			}
			var got []string
			for _, h := range after[:len(after)-1] {
				got = append(got, compact(t, h))
			}
			own := `{"path":"` + hookProgram + `","args":["nix-closure-hook","` + stage + `"],"env":["LC_ALL=C"]}`
			if !bytes.Contains(text, []byte("nix-closure-hook")) && !slices.Equal(got, want) ||
				string(after[len(after)-1]) != own {
				t.Errorf("%q: hooks.%s became %q", text, stage, after)
			}
			delete(stagesWere, stage)
			delete(stagesAre, stage)
		}
		delete(was, "hooks")
		delete(is, "hooks")
		for _, m := range []struct{ was, is map[string]json.RawMessage }{{was, is}, {stagesWere, stagesAre}} {
			if len(m.was) != len(m.is) {
				t.Errorf("%q: %d other fields, then %d", text, len(m.was), len(m.is))
			}
			for name, raw := range m.was {
				if compact(t, raw) != compact(t, m.is[name]) {
					t.Errorf("%q: field %q was %q, is %q", text, name, raw, m.is[name])
				}
			}
		}
		// What is rewritten is carried, and says so to every reader.
		if again, err := HasAnnotations(out); carriesErr == nil && (err != nil || again != carries) {
			t.Errorf("%q: carries %t; rewritten: %t, %v", text, carries, again, err)
		}
		if again, err := installed(out, nil); err != nil || !bytes.Equal(again, out) {
			t.Errorf("%q: a second time it is %q, %v", out, again, err)
		}
	})
}
