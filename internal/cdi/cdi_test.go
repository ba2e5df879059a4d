// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

var store = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

const (
	hello = closure.BaseName("00000000000000000000000000000000-hello-2.12")
	bash  = closure.BaseName("11111111111111111111111111111111-bash-5.2")
	info  = closure.BaseName("22222222222222222222222222222222-closure-info")
	hook  = "/usr/local/bin/nix-closure-hook"
)

func devices() []Device {
	return []Device{
		{Name: "hello", Hook: hook, Request: &spec.Request{Roots: []closure.BaseName{hello}, Listing: true}},
		{
			Name: "0two", Hook: hook, Config: "/etc/other.toml",
			Request: &spec.Request{
				Roots: []closure.BaseName{hello, bash}, Mode: spec.ModeBind, Registration: true, Listing: true,
			},
			Asked: []string{"/run/current-system", store.Path(bash)},
		},
		{
			Name:    "info",
			Hook:    hook,
			Request: &spec.Request{ClosureInfo: info, Writable: true},
		},
	}
}

// What is written is read as it was, by this package and by the CDI module.
func TestWriteRead(t *testing.T) {
	for _, extension := range []string{".json", ".yaml"} {
		path := filepath.Join(t.TempDir(), "nix-closure"+extension)
		f, err := readOrNew(path, store)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices() {
			if err := f.Set(d); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.write(); err != nil {
			t.Fatal(err)
		}
		got, err := List(path, store)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(devices(), got); d != "" {
			t.Error(d)
		}
		cache, err := cdi.NewCache(cdi.WithSpecDirs(filepath.Dir(path)), cdi.WithAutoRefresh(false))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices() {
			if cache.GetDevice(d.FullName()) == nil {
				t.Errorf("%s: no device %s: %v", path, d.FullName(), cache.GetErrors())
			}
		}
		for _, d := range devices() {
			if err := f.Remove(d.Name); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Remove("hello"); err == nil {
			t.Error("removed twice")
		}
		if err := f.write(); err != nil {
			t.Fatal(err)
		}
		if _, err := List(path, store); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file without a device: %v", err)
		}
	}
}

// A device that a person or another program wrote: what its text does not say is not
// made up.
func TestForeign(t *testing.T) {
	const path = `"path":"/usr/local/bin/nix-closure-hook"`
	const roots = `"--annotation","nix-closure/roots=/nix/store/00000000000000000000000000000000-hello-2.12"`
	for _, c := range []struct{ edits, trouble string }{
		{`{"hooks":[{"hookName":"createRuntime",` + path + `,"args":["x",` + roots + `,"createRuntime"]}]}`, ""},
		{`{"env":["A=b"]}`, "other edits"},
		{`{"env":["A=b"],"hooks":[{"hookName":"createRuntime",` + path + `,"args":["x",` + roots +
			`,"createRuntime"]}]}`, "other edits"},
		{`{"hooks":[{"hookName":"poststop",` + path + `,"args":["x",` + roots + `,"poststop"]}]}`,
			"once at createRuntime"},
		{`{"hooks":[{"hookName":"createRuntime",` + path + `,"args":["x","createRuntime"]}]}`, "without --annotation"},
		{`{"hooks":[{"hookName":"createRuntime",` + path + `,"args":["x",` + roots + `,"poststop"]}]}`, "at the stage"},
		{`{"hooks":[{"hookName":"createRuntime","path":"/bin/true","args":["x","createRuntime"]}]}`, "is not"},
		{`{"hooks":[{"hookName":"createRuntime",` + path + `,"args":["x","--other","y","createRuntime"]}]}`,
			"not an option"},
		{`{"hooks":[{"hookName":"createRuntime",` + path +
			`,"args":["x","--annotation","nix-closure/rots=/nix/store","createRuntime"]}]}`, "unknown"},
	} {
		file := filepath.Join(t.TempDir(), "nix-closure.json")
		text := `{"cdiVersion":"0.5.0","kind":"nix-closure/closure","devices":[{"name":"a","containerEdits":` +
			c.edits + `}]}`
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := Read(file, store)
		if err != nil {
			t.Fatal(err)
		}
		d := f.Devices()[0]
		if c.trouble == "" {
			if d.Trouble != nil || d.Hook != hook || len(d.Request.Roots) != 1 || d.Request.Roots[0] != hello {
				t.Errorf("%s: %+v", c.edits, d)
			}
			continue
		}
		if d.Trouble == nil || !strings.Contains(d.Trouble.Error(), c.trouble) || d.Request != nil || d.Hook != "" {
			t.Errorf("%s: %+v, want %q", c.edits, d, c.trouble)
		}
		if err := f.Set(Device{Name: "a", Hook: hook, Request: devices()[0].Request}); err == nil {
			t.Errorf("%s: replaced", c.edits)
		}
		// It is kept beside a new one.
		if err := f.Set(devices()[0]); err != nil {
			t.Fatal(err)
		}
		if err := f.write(); err != nil {
			t.Fatal(err)
		}
		again, err := Read(file, store)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f.spec, again.spec); d != "" {
			t.Error(d)
		}
	}
}

// What cannot be written back is refused.
func TestRefused(t *testing.T) {
	const devices = `"devices":[{"name":"a","containerEdits":{"env":["A=b"]}}]`
	for text, want := range map[string]string{
		`{"cdiVersion":"0.5.0","kind":"example.com/gpu",` + devices + `}`:                 `kind "example.com/gpu"`,
		`{"cdiVersion":"0.5.0","kind":"nix-closure/closure","new":1,` + devices + `}`:     "new",
		`{"cdiVersion":"9.5.0","kind":"nix-closure/closure",` + devices + `}`:             "version",
		`{"cdiVersion":"0.5.0","kind":"nix-closure/closure","devices":[]}`:                "no devices",
		`{"cdiVersion":"0.5.0","kind":"nix-closure/closure",` + devices + `}` + "\n---\n": "one YAML document",
		`{"cdiVersion":"0.5.0"`: "",
		"":                      "empty",
		"null":                  "empty",
	} {
		file := filepath.Join(t.TempDir(), "nix-closure.json")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readOrNew(file, store); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	dir := t.TempDir()
	commented := filepath.Join(dir, "nix-closure.yaml")
	text := "cdiVersion: 0.5.0\nkind: nix-closure/closure # ours\ndevices:\n- name: a\n  containerEdits: {env: [A=b]}\n"
	if err := os.WriteFile(commented, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := List(commented, store); err != nil {
		t.Error(err)
	}
	if _, err := readOrNew(commented, store); err == nil || !strings.Contains(err.Error(), "comments") {
		t.Errorf("comments: %v", err)
	}
	link := filepath.Join(dir, "nix-closure.json")
	if err := os.Symlink(commented, link); err != nil {
		t.Fatal(err)
	}
	if _, err := List(link, store); err != nil {
		t.Error(err)
	}
	if _, err := readOrNew(link, store); err == nil || !strings.Contains(err.Error(), "link") {
		t.Errorf("link: %v", err)
	}
}

// What a device needs of the store is pinned: its roots, and the hook where that is there.
func TestPins(t *testing.T) {
	const program = closure.BaseName("33333333333333333333333333333333-nix-closure-0.1.0")
	all := devices()
	all = append(all, Device{Name: "other", Trouble: errors.New("another program's")})
	all[0].Hook = store.Path(program) + "/bin/nix-closure-hook"
	if d := cmp.Diff([]closure.BaseName{hello, bash, info, program}, pins(store, all)); d != "" {
		t.Error(d)
	}
}
