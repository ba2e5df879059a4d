// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// lost is a container whose runtime reports / as its bundle. In its strings, @ stands for
// the test's directory.
type lost struct {
	line    string // the runtime's command line
	its     string // the command line of the container's process; empty: the same
	environ string
	config  string // in @/root/web
	mode    os.FileMode
	dirMode os.FileMode
	uid     int
}

const lostLine = "crun --root @/root create --bundle @/bundle --pid-file @/p web"

func newLost() lost {
	return lost{line: lostLine, config: `{"annotations":{"nix-closure/roots":"a"}}`, mode: 0o700, dirMode: 0o755}
}

// locate makes the processes 7 (the runtime) and 8, and calls locate for the container.
func (l lost) locate(t *testing.T, dir string) (located, error) {
	t.Helper()
	processes, before := dir+"/proc", proc.Dir
	proc.Dir = processes
	t.Cleanup(func() { proc.Dir = before })
	nul := func(line string) []byte {
		return []byte(strings.ReplaceAll(strings.ReplaceAll(line, "@", dir), " ", "\x00") + "\x00")
	}
	its := l.its
	if its == "" {
		its = l.line
	}
	own := dir + "/root/web"
	must(t, os.RemoveAll(processes), os.RemoveAll(dir+"/root"),
		os.MkdirAll(processes+"/7", 0o755), os.MkdirAll(processes+"/8", 0o755), os.MkdirAll(own, 0o755),
		os.WriteFile(processes+"/7/cmdline", nul(l.line), 0o600), os.WriteFile(processes+"/8/cmdline", nul(its), 0o600),
		os.WriteFile(processes+"/7/environ", nul(l.environ), 0o600))
	if l.config != "" {
		must(t, os.WriteFile(own+"/config.json", []byte(l.config), 0o600),
			os.Chmod(own+"/config.json", l.mode), os.Chown(own+"/config.json", l.uid, 0))
	}
	must(t, os.Chmod(own, l.dirMode))
	return locate(Call{}, spec.State{
		ID: "web", Pid: 8, Bundle: "/", Annotations: map[string]string{"nix-closure/roots": "a"},
	}, 7)
}

// If crun has lost the bundle, its own copy of config.json counts.
func TestLocate(t *testing.T) {
	dir := t.TempDir()
	want := located{bundle: dir + "/bundle", config: dir + "/root/web/config.json", stated: "/"}
	for name, change := range map[string]func(*lost){
		"as podman calls it": func(*lost) {},
		"a slash too many":   func(l *lost) { l.line = strings.ReplaceAll(l.line, "@/bundle", "@//bundle/") },
		"--root=":            func(l *lost) { l.line = strings.ReplaceAll(l.line, "--root ", "--root=") },
	} {
		l := newLost()
		change(&l)
		if got, err := l.locate(t, dir); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
	l := newLost()
	l.line, l.environ = "crun run --bundle @/bundle web", "A=B XDG_RUNTIME_DIR=@/login XDG_RUNTIME_DIR2=x"
	must(t, os.MkdirAll(dir+"/login/crun/web", 0o700),
		os.WriteFile(dir+"/login/crun/web/config.json", []byte(l.config), 0o600))
	want.config = dir + "/login/crun/web/config.json"
	if got, err := l.locate(t, dir); err != nil || got != want {
		t.Errorf("without --root: %+v, %v, want %+v", got, err, want)
	}
	// A bundle that is not lost is trusted, and nothing is checked.
	for _, bundle := range []string{"/b", "/b/../c", "//"} {
		got, err := locate(Call{}, spec.State{ID: "web", Pid: 1 << 30, Bundle: bundle}, 1<<30)
		if err != nil && bundle != "//" || got.bundle != bundle || got.config != filepath.Join(bundle, "config.json") {
			t.Errorf("%s: %+v, %v", bundle, got, err)
		}
	}
}

// The annotations of the call are in the state, but not in config.json.
func TestLocateWithAnnotations(t *testing.T) {
	dir := t.TempDir()
	l := newLost()
	l.config = "{}"
	if _, err := l.locate(t, dir); err == nil {
		t.Error("other annotations were taken for the container's")
	}
	l.config = `{"annotations":{"a":"b"}}`
	_, _ = l.locate(t, dir)
	call := Call{Annotations: map[string]string{"nix-closure/roots": "a"}}
	state := spec.State{
		ID: "web", Pid: 8, Bundle: "/", Annotations: map[string]string{"nix-closure/roots": "a", "a": "b"},
	}
	if _, err := locate(call, state, 7); err != nil {
		t.Error(err)
	}
}

// Files that may belong to another container, or that a container may have written, are
// refused.
func TestLocateRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*lost)
		want   string
	}{
		{"another ID", func(l *lost) { l.line = strings.TrimSuffix(l.line, "web") + "db" },
			"the command line of process 7, which called the hook, makes another container or none"},
		{"another command", func(l *lost) { l.line = "crun --root @/root start web" },
			"makes another container or none"},
		{"a shell", func(l *lost) { l.line = "sh -c @/hook" }, "its command line is not understood: option -c: "},
		{"another file", func(l *lost) { l.line = strings.Replace(l.line, "--bundle", "--config x --bundle", 1) },
			"its command line is not understood: option --config: "},
		{"no bundle", func(l *lost) { l.line = "crun --root @/root create web" },
			`--bundle on its command line is "", not an absolute path`},
		{"a relative bundle", func(l *lost) { l.line = "crun --root @/root create --bundle b web" },
			`--bundle on its command line is "b", not an absolute path`},
		{"a relative root", func(l *lost) { l.line = "crun --root root create --bundle /b web" },
			`--root on its command line is "root", not an absolute path`},
		{"another runtime's process", func(l *lost) { l.its = "sleep 600" },
			"process 8 of the OCI state is not one of the runtime that called the hook"},
		{"no copy", func(l *lost) { l.config = "" }, "the runtime keeps no copy of config.json in @/root/web; "},
		{"other annotations", func(l *lost) { l.config = `{"annotations":{"nix-closure/roots":"b"}}` },
			"@/root/web/config.json has other annotations than the OCI state"},
		{"fewer annotations", func(l *lost) { l.config = "{}" }, "has other annotations than the OCI state"},
		{"no JSON", func(l *lost) { l.config = "{" }, "@/root/web/config.json: not of the expected form: "},
		{"a file of another user", func(l *lost) { l.uid = 100000 },
			"@/root/web/config.json is not a regular file that user 0 alone can change"},
		{"a file that others can write", func(l *lost) { l.mode = 0o620 },
			"is not a regular file that user 0 alone can change"},
		{"a directory that others can write", func(l *lost) { l.dirMode = 0o777 },
			"@/root/web can be changed by users other than user 0, who runs the hook"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l := newLost()
			c.change(&l)
			got, err := l.locate(t, dir)
			if err == nil {
				t.Fatalf("%+v", got)
			}
			said := err.Error()
			if want := strings.ReplaceAll(c.want, "@", dir); !strings.Contains(said, want) {
				t.Errorf("%s\nwant in it\n%s", said, want)
			}
			if !strings.HasPrefix(said, "the runtime says that the bundle is /, ") ||
				!strings.HasSuffix(said,
					"call the runtime with --bundle and an absolute path, or use another version of it") {
				t.Error(said)
			}
		})
	}
}

// A link in the runtime's directory is not followed.
func TestLocateLink(t *testing.T) {
	dir := t.TempDir()
	l := newLost()
	_, err := l.locate(t, dir)
	must(t, err, os.Rename(dir+"/root/web/config.json", dir+"/other"),
		os.Symlink(dir+"/other", dir+"/root/web/config.json"))
	state := spec.State{ID: "web", Pid: 8, Bundle: "/", Annotations: map[string]string{"nix-closure/roots": "a"}}
	if got, err := locate(Call{}, state, 7); err == nil ||
		!strings.Contains(err.Error(), "too many levels of symbolic links") {
		t.Errorf("%+v, %v", got, err)
	}
}
