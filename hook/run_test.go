// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func named(name string) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + name)
}

// host is a host in a directory, with a configuration for that directory.
type host struct {
	dir, config string
	store       closure.Store
}

func newHost(t *testing.T) host {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	h := host{dir, dir + "/config.toml", closure.Store{Dir: dir + "/nix/store", StateDir: dir + "/nix/var/nix"}}
	must(t, os.MkdirAll(h.store.Path(named("hello")), 0o755), os.MkdirAll(h.store.StateDir+"/gcroots", 0o755),
		os.Mkdir(dir+"/data", 0o755),
		os.WriteFile(h.config, fmt.Appendf(nil, "store-dir = %q\nstate-dir = %q\nruntime-dir = %q\nlog-file = %q\n",
			h.store.Dir, h.store.StateDir, dir+"/run", dir+"/log"), 0o600))
	return h
}

// log returns the lines of the log file.
func (h host) log(t *testing.T) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(h.dir + "/log")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must(t, err)
	var all []map[string]any
	for line := range bytes.Lines(text) {
		var l map[string]any
		must(t, json.Unmarshal(line, &l))
		all = append(all, l)
	}
	return all
}

func TestFailure(t *testing.T) {
	cause := errors.New("no such thing")
	for _, c := range []struct {
		failure failure
		want    string
	}{
		{failure{"web", "reading the annotations", cause},
			"nix-closure: container web: reading the annotations: no such thing"},
		{failure{"", "reading the OCI state", cause}, "nix-closure: a container: reading the OCI state: no such thing"},
		{failure{"web", "doing", errors.New("one\ntwo\r\nthree\ttab\x00\x1b[31mred\x7f")},
			"nix-closure: container web: doing: one two  three tab  [31mred "},
		{failure{"web", "resolving /nix/store/ä\nnix-closure: container db: ok", cause},
			"nix-closure: container web: resolving /nix/store/ä nix-closure: container db: ok: no such thing"},
	} {
		err := error(&c.failure)
		if err.Error() != c.want {
			t.Errorf("%q, want %q", err, c.want)
		}
		if !errors.Is(err, c.failure.err) {
			t.Errorf("%q hides its cause", err)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"/nix/store/ä 日本":              "/nix/store/ä 日本",
		"a\nb\r\tc\x00\x1b[2Jd\x7f":    "a b  c  [2Jd ",
		"a\u0085b\u009b31mc\u2028d":    "a b 31mc d",
		"\u202eright to left\u202c":    " right to left ",
		"not UTF-8: \xff, and its end": "not UTF-8: \ufffd, and its end",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Run does nothing for a container without an annotation, whatever state the host is in.
func TestNotAnnotated(t *testing.T) {
	dir := t.TempDir()
	for _, stage := range Stages {
		in := `{"id":"web","pid":1,"bundle":"/nowhere","annotations":{"other":"x"}}`
		if stage == "precreate" {
			in = "\n {\"root\": {\"path\":\"x\"},\n\"mounts\":[{\"source\":\"/\",\"destination\":\"/host\"," +
				"\"type\":\"bind\"}] }\n"
		}
		var out bytes.Buffer
		if err := Run(Call{Stage: stage, Config: dir + "/nowhere.toml"}, strings.NewReader(in), &out); err != nil {
			t.Errorf("%s: %v", stage, err)
		}
		want := ""
		if stage == "precreate" {
			want = in
		}
		if out.String() != want {
			t.Errorf("%s: wrote %q, want %q", stage, &out, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// A container is refused before anything is made for it.
func TestRefusedEarly(t *testing.T) {
	h := newHost(t)
	state := func(id string, annotations string) string {
		return fmt.Sprintf(`{"id":%q,"pid":%d,"bundle":%q,"annotations":{%s}}`, id, os.Getpid(), h.dir+"/bundle",
			annotations)
	}
	must(t, os.Mkdir(h.dir+"/bundle", 0o755))
	roots := fmt.Sprintf(`"nix-closure/roots":%q`, h.store.Path(named("hello")))
	for _, c := range []struct{ name, in, bundle, want string }{
		{name: "no JSON", in: "{", want: "nix-closure: a container: reading the OCI state: "},
		{name: "no id", in: `{"bundle":"/b","annotations":{"nix-closure/roots":"x"}}`,
			want: "nix-closure: a container: reading the OCI state: "},
		{name: "id that is a path", in: state("../x", roots),
			want: "nix-closure: a container: reading the OCI state: "},
		{name: "bundle that is relative", in: `{"id":"web","bundle":"b","annotations":{"nix-closure/roots":"x"}}`,
			want: "nix-closure: container web: reading the OCI state: "},
		{name: "unknown key", in: state("web", `"nix-closure/rots":"x"`),
			want: "nix-closure: container web: reading the annotations: annotation nix-closure/rots: unknown"},
		{name: "a key of two lines", in: state("web", `"nix-closure/x\nnix-closure: container db: attached":"x"`),
			want: "nix-closure: container web: reading the annotations: annotation nix-closure/x nix-closure: " +
				"container " +
				"db: attached: unknown"},
		{name: "no config.json", in: state("web", roots),
			want: "nix-closure: container web: reading the container's config.json: open " + h.dir +
				"/bundle/config.json: no such file"},
		{name: "config.json that is none", in: state("web", roots), bundle: "{}",
			want: "nix-closure: container web: reading the container's config.json: " + h.dir +
				"/bundle/config.json: has no root.path"},
		{name: "a mount that leaks", in: state("web", roots),
			bundle: `{"root":{"path":"r"},"mounts":[{"type":"bind","source":"/","destination":"/host"}]}`,
			want: "nix-closure: container web: looking at the container's mounts: mount of / on /host: shows / of " +
				"the " +
				"host, and with it more than the closure; take the mount out"},
	} {
		if c.bundle != "" {
			must(t, os.WriteFile(h.dir+"/bundle/config.json", []byte(c.bundle), 0o600))
		}
		for _, stage := range []string{"createRuntime", "prestart", "createContainer"} {
			var out bytes.Buffer
			err := Run(Call{Stage: stage, Config: h.config}, strings.NewReader(c.in), &out)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %s:\n%v\nwant\n%s", c.name, stage, err, c.want)
			}
			if out.Len() > 0 {
				t.Errorf("%s: %s: wrote %q", c.name, stage, &out)
			}
		}
	}
	if _, err := os.Lstat(h.dir + "/run"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the runtime directory was made: %v", err)
	}
	if entries, _ := os.ReadDir(h.store.StateDir + "/gcroots"); len(entries) > 0 {
		t.Errorf("GC roots were made: %v", entries)
	}
	// Each refusal is in the log too.
	lines := h.log(t)
	if len(lines) != 3*9 {
		t.Fatalf("%d lines in the log: %v", len(lines), lines)
	}
	for _, l := range lines {
		if l["level"] != "error" || !strings.HasPrefix(l["msg"].(string), "nix-closure: ") || l["doing"] == "" ||
			l["error"] == "" {
			t.Errorf("in the log: %v", l)
		}
	}
}

func TestPrecreate(t *testing.T) {
	h := newHost(t)
	config := func(annotations, mounts string) string {
		return fmt.Sprintf(`{"root":{"path":"/r"},"large":18446744073709551615,"annotations":{%s},"mounts":[%s]}`,
			annotations, mounts)
	}
	mount := func(source, destination string) string {
		return fmt.Sprintf(`{"type":"bind","source":%q,"destination":%q,"options":["rbind"]}`, source, destination)
	}
	roots := fmt.Sprintf(`"nix-closure/roots":%q`, h.store.Path(named("hello")))
	data := mount(h.dir+"/data", "/data")
	for _, c := range []struct{ name, in, want, err string }{
		{name: "nothing to take out", in: " " + config(roots, data), want: " " + config(roots, data)},
		{name: "the store", in: config(roots, data+","+mount(h.store.Dir, h.store.Dir)),
			want: fmt.Sprintf(`{"annotations":{%s},"large":18446744073709551615,"mounts":[%s],"root":{"path":"/r"}}`,
				roots, data) + "\n"},
		{name: "sandbox", in: config(roots+
			`,"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"x"`, mount("/", "/host")),
			err: "nix-closure: a container: looking at the container's mounts: mount of / on /host: shows /"},
		{name: "a claim to be a sandbox", in: config(roots+`,"io.kubernetes.cri.container-type":"sandbox"`, data),
			err: "nix-closure: a container: reading the annotations: annotation io.kubernetes.cri.container-type: " +
				"says that this container is a pod's sandbox"},
		{name: "a store path on its own place",
			in:   config(roots, mount(h.store.Path(named("hello")), h.store.Path(named("hello")))),
			want: config(roots, mount(h.store.Path(named("hello")), h.store.Path(named("hello"))))},
		{name: "inside the store", in: config(roots, mount("/nowhere", h.store.Dir+"/x")),
			err: "nix-closure: a container: looking at the container's mounts: mount of /nowhere on " + h.store.Dir +
				"/x: lies inside the store directory"},
		{name: "a mount that leaks", in: config(roots, data+","+mount(h.store.Dir, "/mnt")),
			err: "nix-closure: a container: looking at the container's mounts: mount of " + h.store.Dir +
				" on /mnt: shows " + h.store.Dir},
		{name: "a mount that cannot be looked at", in: config(roots, mount(h.config+"/x", "/mnt")),
			err: "nix-closure: a container: looking at the container's mounts: mount of " + h.config + "/x on /mnt: "},
		{name: "a mistake", in: config(`"nix-closure/root":"x"`, data),
			err: "nix-closure: a container: reading the annotations: annotation nix-closure/root: unknown"},
		{name: "mounts of an odd form", in: `{"root":{"path":"/r"},"annotations":{` + roots + `},"mounts":{}}`,
			err: "nix-closure: a container: reading config.json from standard input: not of the expected form: "},
		{name: "mounts in other letters",
			in:  `{"root":{"path":"/r"},"annotations":{` + roots + `},"Mounts":[` + data + `]}`,
			err: "nix-closure: a container: reading config.json from standard input: field \"Mounts\""},
		{name: "no JSON", in: "{", err: "nix-closure: a container: reading config.json from standard input: not of " +
			"the expected form: "},
		{name: "nothing", in: "", err: "nix-closure: a container: reading config.json from standard input: not of " +
			"the expected form: "},
	} {
		var out bytes.Buffer
		err := Run(Call{Stage: "precreate", Config: h.config}, strings.NewReader(c.in), &out)
		if (err == nil) != (c.err == "") ||
			err != nil && (!strings.HasPrefix(err.Error(), c.err) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
		// For a refused container, the output must not look like a config.json.
		if out.String() != c.want {
			t.Errorf("%s: wrote\n%s\nwant\n%s", c.name, &out, c.want)
		}
	}
	err := Run(Call{Stage: "precreate", Config: h.config}, strings.NewReader(config(roots, data)), brokenPipe{})
	if err == nil || err.Error() != "nix-closure: a container: writing config.json to standard output: broken pipe" {
		t.Errorf("a runtime that does not listen: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestAsked(t *testing.T) {
	store := closure.Store{Dir: "/nix/store"}
	roots := []closure.BaseName{named("a"), named("b"), named("c")}
	for _, c := range []struct {
		request spec.Request
		want    string
	}{
		{spec.Request{Roots: roots[:1]}, store.Path(roots[0])},
		{spec.Request{Roots: roots}, store.Path(roots[0]) + " and 2 more"},
		{spec.Request{ClosureInfo: roots[1]}, "closure-info " + store.Path(roots[1])},
	} {
		if got := asked(store, &c.request); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// The hook runs at every container's start, so it links few packages.
func TestLinksNoDatabase(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "../cmd/nix-closure-hook")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, "github.com/nix-closure/nix-closure/hook") {
		t.Fatalf("%q are not the hook's packages", packages)
	}
	for _, p := range packages {
		for _, banned := range []string{"sqlite", "database/sql", "cobra", "grpc", "protobuf", "ttrpc", "nri",
			"containerd", "net/http", "testing"} {
			if strings.Contains("/"+p+"/", "/"+banned) || strings.Contains(p, "sqlite") {
				t.Errorf("links %s", p)
				break
			}
		}
	}
}

// Annotations that the call adds count as the container's own, and override none.
func TestCallAnnotations(t *testing.T) {
	h := newHost(t)
	roots := h.store.Path(named("hello"))
	config := func(annotations string) string {
		return fmt.Sprintf(`{"root":{"path":"/r"},"annotations":{%s},"mounts":[{"type":"bind","source":%q,`+
			`"destination":%q}]}`, annotations, h.store.Dir, h.store.Dir)
	}
	call := Call{Stage: "precreate", Config: h.config, Annotations: map[string]string{"nix-closure/roots": roots}}
	for own, want := range map[string]string{
		"":            "",
		`"other":"x"`: "",
		fmt.Sprintf(`"nix-closure/roots":%q`, roots): "",
		`"nix-closure/mode":"bind"`:                  "",
		`"nix-closure/roots":"/nix/store/x"`: `annotation nix-closure/roots: the container has ` +
			`"/nix/store/x", and the hook was called with `,
		`"nix-closure/closure-info":"` + roots + `"`: "both nix-closure/roots and nix-closure/closure-info are given",
	} {
		var out bytes.Buffer
		err := Run(call, strings.NewReader(config(own)), &out)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
				t.Errorf("%s: %v %s", own, err, &out)
			}
		} else if err != nil || !strings.Contains(out.String(), `"mounts":[]`) {
			t.Errorf("%s: %v %s", own, err, &out)
		}
	}
}
