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

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Config
	}{
		{"the least", `{"root":{"path":"rootfs"}}`, Config{Root: "rootfs"}},
		{"all that is read", `{"root":{"path":"/r","readonly":true},"annotations":{"a":"b"},
			"linux":{"mountLabel":"system_u:x","rootfsPropagation":"rshared","x":1,
			"maskedPaths":["/proc/kcore"],"namespaces":[{"type":"mount"},{"type":"pid","path":"/proc/7/ns/pid"}]},
			"mounts":[{"destination":"/d","type":"bind","source":"s","options":["ro"]}]}`,
			Config{Root: "/r", Annotations: map[string]string{"a": "b"}, MountLabel: "system_u:x",
				RootPropagates: true, MaskedPaths: []string{"/proc/kcore"}, PIDs: "/proc/7/ns/pid",
				Mounts: []specs.Mount{{Destination: "/d", Type: "bind", Source: "s", Options: []string{"ro"}}}}},
		{"null", `{"root":{"path":"r"},"mounts":null,"annotations":null,"linux":null,"hooks":null}`, Config{Root: "r"}},
		{"empty", `{"root":{"path":"r"},"mounts":[],"annotations":{},"linux":{}}`,
			Config{Root: "r", Annotations: map[string]string{}}},
		{"unknown fields of odd forms", `{"root":{"path":"r"},"vm":7,"vm":[],"Hostname":null,"x":{"Mounts":[]},` +
			`"solaris":"x"}`, Config{Root: "r"}},
		{"hooks are not looked at", `{"root":{"path":"r"},"hooks":"anything"}`, Config{Root: "r"}},
		{"a mount of nothing", `{"root":{"path":"r"},"mounts":[null,{}]}`,
			Config{Root: "r", Mounts: []specs.Mount{{}, {}}}},
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
	if err != nil || len(got.Mounts) != 5 || got.Mounts[4].Source != "/srv/<data>" ||
		got.Annotations["nix-closure/roots"] == "" {
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
		{`{"root":{"path":"r"},"annotations":{"nix-closure/roots":["/nix/store/x"]}}`,
			"not of the expected form: field "},
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
	if _, err := ReadConfig(dir + "/config.json"); err == nil ||
		!strings.HasPrefix(err.Error(), dir+"/config.json: not a JSON object: ") {
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
		`{"root":{"path":"r"},"mounts":null,"annotations":null}`, `{"root":{"path":"r"},"Mounts":[]}`,
		`{"root":{"path":"r"},"linux":{"mountLabel":"l"}}`,
		`{"root":{"path":"r","Path":""}}`, `{"root":{"path":"r"},"mounts":[{"destination":"/a","Destination":"/b"}]}`,
		`null`, `{}`, ``,
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
			if i := slices.IndexFunc(readFields[:],
				func(known string) bool { return strings.EqualFold(known, name) }); i >= 0 && readFields[i] != name {
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

// What a container's mounts may receive is what config.json asked for, wherever it is
// mounted; what the root covers has no say.
func TestReceiving(t *testing.T) {
	volume := t.TempDir()
	mountinfo := []byte(strings.ReplaceAll(`1 0 8:1 / / rw shared:1 - ext4 /dev/a rw
6 1 8:3 / /elsewhere rw shared:6 - ext4 /dev/c rw
2 1 8:2 / VOLUME rw shared:2 - ext4 /dev/b rw
3 2 8:3 / VOLUME/below rw shared:3 - ext4 /dev/c rw
4 1 0:9 / /root rw master:4 - overlay overlay rw
5 4 0:9 / /root/covered rw master:4 - overlay overlay rw
10 4 0:9 / /root rw master:4 - overlay overlay rw
11 10 8:2 / /root/asked rw master:2 - ext4 /dev/b rw
12 11 8:3 / /root/asked/below rw master:3 - ext4 /dev/c rw
13 11 8:1 /home /root/asked/by-a-link rw master:1 - ext4 /dev/a rw
17 10 8:3 / /root/elsewhere rw master:6 - ext4 /dev/c rw
14 10 8:1 /home /root/home rw master:1 - ext4 /dev/a rw
15 10 0:20 / /root/tmp rw shared:20 - tmpfs tmpfs rw
18 10 8:2 / /root/own rw shared:40 master:2 - ext4 /dev/b rw
16 10 0:21 / /root/run rw - tmpfs tmpfs rw
`, "VOLUME", volume))
	mounts, err := ParseMounts(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	bind := func(options ...string) specs.Mount {
		return specs.Mount{Destination: "/asked", Type: "bind", Source: volume, Options: options}
	}
	tmpfs := specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"rshared"}}
	root, others := "/root", []string{"/root/asked/by-a-link", "/root/elsewhere", "/root/home"}
	asked, below, tmp := "/root/asked", "/root/asked/below", "/root/tmp"
	nowhere := specs.Mount{Destination: "/asked", Type: "bind", Source: "/no/where", Options: []string{"rslave"}}
	own := "/root/own" // as a runtime makes it for rshared
	for _, c := range []struct {
		name  string
		root  bool
		mount specs.Mount
		keep  []string
	}{
		{name: "nothing is asked for", mount: bind("rbind")},
		{name: "a volume with all below it", mount: bind("rbind", "rslave"), keep: []string{asked, below, own}},
		{name: "a volume alone", mount: bind("bind", "rslave"), keep: []string{asked, own}},
		{name: "the root", root: true, mount: bind("rbind"), keep: []string{root}},
		{name: "a file system of its own", mount: tmpfs, keep: []string{tmp}},
		{name: "no source", mount: nowhere},
	} {
		config := Config{RootPropagates: c.root, Mounts: []specs.Mount{c.mount}}
		var want []string
		for _, point := range slices.Concat([]string{root, asked, below}, others, []string{tmp, own}) {
			if !slices.Contains(c.keep, point) {
				want = append(want, point)
			}
		}
		if diff := cmp.Diff(want, (&Host{}).Receiving(config, "/bundle", mountinfo, mounts, root)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
	}
}
