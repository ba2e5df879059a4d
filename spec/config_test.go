// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Config
	}{
		{"the least", `{"root":{"path":"rootfs"}}`, Config{Root: "rootfs"}},
		{"all that is read", `{"root":{"path":"/r","readonly":true},"annotations":{"a":"b"},"linux":{"mountLabel":"system_u:x","rootfsPropagation":"rshared","x":1,
			"maskedPaths":["/proc/kcore"],"namespaces":[{"type":"mount"},{"type":"pid","path":"/proc/7/ns/pid"}]},
			"mounts":[{"destination":"/d","type":"bind","source":"s","options":["ro"]}]}`,
			Config{Root: "/r", Annotations: map[string]string{"a": "b"}, MountLabel: "system_u:x",
				RootPropagates: true, MaskedPaths: []string{"/proc/kcore"}, PIDs: "/proc/7/ns/pid",
				Mounts: []specs.Mount{{Destination: "/d", Type: "bind", Source: "s", Options: []string{"ro"}}}}},
		{"null", `{"root":{"path":"r"},"mounts":null,"annotations":null,"linux":null,"hooks":null}`, Config{Root: "r"}},
		{"empty", `{"root":{"path":"r"},"mounts":[],"annotations":{},"linux":{}}`, Config{Root: "r", Annotations: map[string]string{}}},
		{"unknown fields of odd forms", `{"root":{"path":"r"},"vm":7,"vm":[],"Hostname":null,"x":{"Mounts":[]},"solaris":"x"}`, Config{Root: "r"}},
		{"hooks are not looked at", `{"root":{"path":"r"},"hooks":"anything"}`, Config{Root: "r"}},
		{"a mount of nothing", `{"root":{"path":"r"},"mounts":[null,{}]}`, Config{Root: "r", Mounts: []specs.Mount{{}, {}}}},
	} {
		got, err := ParseConfig([]byte(c.in))
		if c.want.PIDs == "" {
			c.want.PIDs = HostPIDs // which who names no namespace gets
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	got, err := ParseConfig(readFile(t, "testdata/podman.json"))
	if err != nil || len(got.Mounts) != 5 || got.Mounts[4].Source != "/srv/<data>" || got.Annotations["nix-closure/roots"] == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	odd := func(name, known string) string {
		return `field "` + name + `": some runtimes take it for "` + known + `" and some do not`
	}
	for _, c := range []struct{ in, want string }{
		{``, "not a JSON object: unexpected end of JSON input"},
		{`null`, "not a JSON object: null"},
		{`[]`, "not a JSON object: json: cannot unmarshal array"},
		{`7`, "not a JSON object: json: cannot unmarshal number"},
		{`"{}"`, "not a JSON object: json: cannot unmarshal string"},
		{`{"root":{"path":"r"}`, "not a JSON object: unexpected end of JSON input"},
		{`{"root":{"path":"r"}}{"mounts":[]}`, "not a JSON object: invalid character '{' after top-level value"},
		{`{}`, "has no root.path"},
		{`{"root":null}`, "has no root.path"},
		{`{"root":{}}`, "has no root.path"},
		{`{"root":{"path":""}}`, "has no root.path"},
		{`{"root":{"path":null}}`, "has no root.path"},
		{`{"root":"r"}`, "not of the expected form: field "},
		{`{"root":{"path":["r"]}}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"mounts":{}}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"mounts":["/nix/store"]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"mounts":[{"destination":7}]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"mounts":[{"source":{}}]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"mounts":[{"options":"rbind"}]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"annotations":[]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"annotations":{"nix-closure/roots":7}}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"annotations":{"nix-closure/roots":["/nix/store/x"]}}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"linux":[]}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"linux":{"mountLabel":7}}`, "not of the expected form: field "},
		{`{"root":{"path":"r"},"Mounts":[]}`, odd("Mounts", "mounts")},
		{`{"root":{"path":"r"},"mounts":[],"MOUNTS":[]}`, odd("MOUNTS", "mounts")},
		{`{"Root":{"path":"r"}}`, odd("Root", "root")},
		{`{"root":{"path":"r"},"Annotations":{}}`, odd("Annotations", "annotations")},
		{`{"root":{"path":"r"},"annotationS":{}}`, odd("annotationS", "annotations")},
		{`{"root":{"path":"r"},"Linux":{}}`, odd("Linux", "linux")},
		{`{"root":{"path":"r"},"Hooks":{}}`, odd("Hooks", "hooks")},
		// What Go's decoder takes for the same letters too.
		{`{"root":{"path":"r"},"hoo` + "\u212a" + `s":{}}`, odd("hoo\u212as", "hooks")},
		{`{"root":{"path":"r"},"mount\u017f":[]}`, odd("mount\u017f", "mounts")},
	} {
		got, err := ParseConfig([]byte(c.in))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n%v\nwant\n%s", c.in, err, c.want)
		}
		if !reflect.DeepEqual(got, Config{}) {
			t.Errorf("%s: %+v with an error", c.in, got)
		}
	}
}

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadConfig(dir + "/config.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/config.json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"root":{"path":"rootfs"}}`)
	if got, err := ReadConfig(dir + "/config.json"); err != nil || got.Root != "rootfs" {
		t.Errorf("%+v, %v", got, err)
	}
	write("{")
	if _, err := ReadConfig(dir + "/config.json"); err == nil || !strings.HasPrefix(err.Error(), dir+"/config.json: not a JSON object: ") {
		t.Errorf("damaged: %v", err)
	}
	if err := os.Truncate(dir+"/config.json", MaxConfig+1); err != nil { // sparse
		t.Fatal(err)
	}
	if _, err := ReadConfig(dir + "/config.json"); err == nil || err.Error() != dir+"/config.json: larger than 64 MiB" {
		t.Errorf("huge: %v", err)
	}
}

func TestReadLimited(t *testing.T) {
	text := strings.Repeat("x", 2<<20)
	if got, err := ReadLimited(strings.NewReader(text), 2<<20); err != nil || string(got) != text {
		t.Errorf("as large as it may be: %d bytes, %v", len(got), err)
	}
	if _, err := ReadLimited(strings.NewReader(text+"x"), 2<<20); err == nil || err.Error() != "larger than 2 MiB" {
		t.Errorf("larger: %v", err)
	}
}

// What is accepted has a root, and what is read of it is the same after its
// mounts were taken out.
func FuzzConfig(f *testing.F) {
	for _, name := range []string{"podman", "strange", "only"} {
		text, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, s := range []string{
		`{"root":{"path":"r"},"mounts":null,"annotations":null}`, `{"root":{"path":"r"},"Mounts":[]}`, `{"root":{"path":"r"},"linux":{"mountLabel":"l"}}`,
		`{"root":{"path":"r","Path":""}}`, `{"root":{"path":"r"},"mounts":[{"destination":"/a","Destination":"/b"}]}`, `null`, `{}`, ``,
		`{"root":{"path":"r"},"mounts":[{}],"mounts":[{"destination":"/x"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil {
			if !reflect.DeepEqual(c, Config{}) {
				t.Errorf("%q: %+v and %v", text, c, err)
			}
			return
		}
		if c.Root == "" {
			t.Errorf("%q: no root", text)
		}
		for name := range fields(t, text) {
			if i := slices.IndexFunc(readFields[:], func(known string) bool { return strings.EqualFold(known, name) }); i >= 0 && readFields[i] != name {
				t.Errorf("%q: field %q", text, name)
			}
		}
		if len(c.Mounts) == 0 {
			return
		}
		positions := make([]int, len(c.Mounts))
		for i := range positions {
			positions[i] = i
		}
		rewritten, err := Rewrite(text, positions)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if !json.Valid(rewritten) {
			t.Errorf("%q became %q", text, rewritten)
		}
		again, err := ParseConfig(rewritten)
		if err != nil || len(again.Mounts) > 0 {
			t.Fatalf("%q became %q: %v", text, rewritten, err)
		}
		again.Mounts = c.Mounts
		if !reflect.DeepEqual(again, c) {
			t.Errorf("%q: %+v, then %+v", text, c, again)
		}
	})
}
