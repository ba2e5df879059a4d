// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// installation is a bundle and a hook for AddHooks.
type installation struct {
	host
	bundle, file, program string
}

func newInstallation(t *testing.T) installation {
	t.Helper()
	h := newHost(t)
	i := installation{host: h, bundle: h.dir + "/bundle", file: h.dir + "/bundle/config.json",
		program: h.dir + "/nix-closure-hook"}
	must(t, os.Mkdir(i.bundle, 0o755), os.WriteFile(i.program, nil, 0o755))
	return i
}

// configOf returns the text of a config.json.
func (i installation) configOf(annotations, mounts, hooks string) string {
	return fmt.Sprintf(`{"root":{"path":"r"},"large":18446744073709551615,"annotations":{%s},"mounts":[%s],`+
		`"hooks":{%s}}`, annotations, mounts, hooks)
}

func (i installation) roots() string {
	return fmt.Sprintf(`"nix-closure/roots":%q`, i.store.Path(named("hello")))
}

// installed is the text that AddHooks must make of configOf: with the hooks of a stage,
// the stage's name and a colon before them.
func (i installation) installed(annotations, mounts string, others ...string) string {
	own := func(stage string) string {
		entries := fmt.Sprintf(`{"path":%q,"args":["nix-closure-hook",%q],"env":["GOMAXPROCS=1"]}`, i.program, stage)
		for _, o := range others {
			if before, ok := strings.CutPrefix(o, stage+":"); ok {
				entries = before + "," + entries
			}
		}
		return fmt.Sprintf("%q:[%s]", stage, entries)
	}
	return fmt.Sprintf(`{"annotations":{%s},"hooks":{%s,%s},"large":18446744073709551615,"mounts":[%s],`+
		`"root":{"path":"r"}}`,
		annotations, own("createRuntime"), own("poststop"), mounts) + "\n"
}

// identity is the part of a file's stat that changes when the file is written or
// replaced.
func identity(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	st.Atim = unix.Timespec{}
	return st
}

// only fails if the bundle has more than its config.json.
func (i installation) only(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(i.bundle)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "config.json" {
		t.Errorf("in the bundle: %v", entries)
	}
}

func TestAddHooks(t *testing.T) {
	i := newInstallation(t)
	mount := func(source, destination string) string {
		return fmt.Sprintf(`{"type":"bind","source":%q,"destination":%q,"options":["rbind"]}`, source, destination)
	}
	data := mount(i.dir+"/data", "/data")
	const other = `{"path":"/usr/bin/other","x-unknown":0.10}`
	for _, c := range []struct {
		name, in, want string
		mode           os.FileMode
		uid, gid       int
	}{
		{name: "one mount", in: i.configOf(i.roots(), data, ""), want: i.installed(i.roots(), data), mode: 0o644},
		{name: "the store too", in: i.configOf(i.roots(), mount(i.store.Dir, i.store.Dir)+","+data, ""),
			want: i.installed(i.roots(), data), mode: 0o600},
		{name: "another's hooks", in: i.configOf(i.roots(), data, `"poststop":[`+other+`],"createRuntime":[`+other+`]`),
			want: i.installed(i.roots(), data, "createRuntime:"+other, "poststop:"+other), mode: 0o440, uid: 1234,
			gid: 4321},
		{name: "a source below the bundle", in: i.configOf(i.roots(), mount("r/data", "/data"), ""),
			want: i.installed(i.roots(), mount("r/data", "/data")), mode: 0o777, uid: 7},
	} {
		must(t, os.MkdirAll(i.bundle+"/r/data", 0o755), os.WriteFile(i.file, []byte(c.in), 0o600),
			os.Chmod(i.file, c.mode), os.Chown(i.file, c.uid, c.gid))
		before := identity(t, i.file)
		if err := AddHooks(i.config, "web", i.bundle, i.program); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		text, err := os.ReadFile(i.file)
		must(t, err)
		if string(text) != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, text, c.want)
		}
		after := identity(t, i.file)
		if os.FileMode(after.Mode&0o7777) != c.mode || int(after.Uid) != c.uid || int(after.Gid) != c.gid {
			t.Errorf("%s: mode %o, owner %d:%d; want %o, %d:%d", c.name, after.Mode, after.Uid, after.Gid, c.mode,
				c.uid, c.gid)
		}
		if before.Ino == after.Ino {
			t.Errorf("%s: written to in its place", c.name)
		}
		// A create after a failed create.
		must(t, AddHooks(i.config, "web", i.bundle, i.program))
		if again, err := os.ReadFile(i.file); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s: a second time:\n%s%v", c.name, again, err)
		}
		must(t, os.RemoveAll(i.bundle+"/r"))
		i.only(t)
	}
	if lines := i.log(t); len(lines) != 1 || lines[0]["stage"] != "runtime" || lines[0]["container"] != "web" ||
		lines[0]["msg"] != "mount removed from config.json" || lines[0]["destination"] != i.store.Dir {
		t.Errorf("in the log: %v", lines)
	}
}

// AddHooks changes nothing for a container that asks for nothing, whatever state the host
// is in.
func TestAddHooksNothing(t *testing.T) {
	i := newInstallation(t)
	for name, in := range map[string]string{
		"no annotation":            i.configOf(`"other":"x"`, `{"type":"bind","source":"/","destination":"/host"}`, ""),
		"a config.json of no form": `{"annotations":null,"mounts":7,"hooks":"x"} and more`,
		"null":                     "null",
	} {
		must(t, os.WriteFile(i.file, []byte(in), 0o400))
		before := identity(t, i.file)
		must(t, AddHooks(i.dir+"/nowhere.toml", "web", i.bundle, "/nowhere"))
		if after := identity(t, i.file); after != before {
			t.Errorf("%s: config.json was %+v, is %+v", name, before, after)
		}
		i.only(t)
	}
	// The runtime reports a config.json that no runtime can read.
	loop := i.dir + "/loop"
	must(t, os.Symlink("loop", loop), os.Mkdir(i.dir+"/empty", 0o755), os.MkdirAll(i.dir+"/odd/config.json", 0o755))
	for _, bundle := range []string{i.dir + "/nowhere", i.file, loop, i.dir + "/empty", i.dir + "/odd",
		i.dir + "/" + strings.Repeat("x", 300), strings.Repeat("/x", 3000)} {
		if err := AddHooks(i.dir+"/nowhere.toml", "web", bundle, "/nowhere"); err != nil {
			t.Errorf("%.80s: %v", bundle, err)
		}
	}
}

// A pod's sandbox gets no closure. It gets the hook, which looks at its mounts, unless
// containerd's CRI made it and all that is mounted in it.
func TestAddHooksSandbox(t *testing.T) {
	i := newInstallation(t)
	task, own := i.dir+"/io.containerd.runtime.v2.task/", i.dir+"/sandboxes/web"
	path := i.store.Path(named("hello"))
	for _, dir := range []string{task + "k8s.io/web/r", task + "k8s.io/db/r", task + "moby/web/r", i.bundle + "/r",
		own + "/shm", i.dir + "/sandboxes/db/shm"} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	crio := i.dir + "/cri-o.toml"
	text, err := os.ReadFile(i.config)
	must(t, err, os.WriteFile(crio, append([]byte("engine = \"cri-o\"\n"), text...), 0o644))
	mount := func(source, destination, options string) string {
		return fmt.Sprintf(`{"destination":%q,"type":"bind","source":%q,"options":["rbind"%s]}`, destination, source,
			options)
	}
	const hooked, plain = "hooked", "plain"
	for _, c := range []struct {
		name, bundle, config, mounts, linux, root string
		want                                      string // or the refusal
	}{
		{name: "no engine's", bundle: i.bundle, want: hooked},
		{name: "Docker's", bundle: task + "moby/web", want: hooked},
		{name: "CRI-O's", bundle: i.bundle, config: crio, want: hooked},
		{name: "containerd's", want: plain},
		{name: "of another ID", bundle: task + "k8s.io/db", want: "says that this container is a pod's sandbox"},
		{name: "its own mount", mounts: mount(own+"/shm", "/dev/shm", ""), want: plain},
		{name: "another's mount", mounts: mount(i.dir+"/sandboxes/db/shm", "/dev/shm", ""), want: hooked},
		{name: "the host's memory", mounts: mount("/dev/shm", "/dev/shm", ""), want: hooked},
		{name: "a mount that receives", mounts: mount(own+"/shm", "/dev/shm", `,"rslave"`), want: hooked},
		{name: "a root that receives", linux: `"rootfsPropagation":"rslave"`, want: hooked},
		{name: "the store", mounts: mount(i.store.Dir, i.store.Dir, ""), want: hooked},
		{name: "memory on the store",
			mounts: fmt.Sprintf(`{"destination":%q,"type":"tmpfs","source":"tmpfs"}`, i.store.Dir), want: hooked},
		{name: "a store path", mounts: mount(path, path, ""), want: hooked},
		{name: "a store path elsewhere", mounts: mount(path, "/x", ""), want: hooked},
		{name: "the store elsewhere", mounts: mount(i.store.Dir, "/x", ""), want: "shows " + i.store.Dir},
		{name: "a root in the store", root: path, want: "the container's root is " + path},
		{name: "no root", root: i.dir + "/none", want: hooked},
	} {
		bundle, config := cmp.Or(c.bundle, task+"k8s.io/web"), cmp.Or(c.config, i.config)
		before := i.configOf(i.roots()+`,"io.kubernetes.cri.container-type":"sandbox",`+
			`"io.kubernetes.cri.sandbox-id":"web"`, c.mounts, "")
		before = strings.Replace(before, `"path":"r"`, fmt.Sprintf(`"path":%q`, cmp.Or(c.root, "r")), 1)
		before = strings.Replace(before, `"large"`, fmt.Sprintf(`"linux":{%s},"large"`, c.linux), 1)
		file := bundle + "/config.json"
		must(t, os.WriteFile(file, []byte(before), 0o600))
		id := strings.Replace(filepath.Base(bundle), "bundle", "web", 1)
		err := AddHooks(config, id, bundle, i.program)
		got := plain
		if after, readErr := os.ReadFile(file); err != nil {
			got = err.Error()
		} else if must(t, readErr); strings.Contains(string(after), `"createRuntime"`) {
			got = hooked
		} else if string(after) != before {
			t.Errorf("%s: %s", c.name, after)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// For a refused container, config.json is unchanged and nothing is beside it.
func TestAddHooksRefuses(t *testing.T) {
	i := newInstallation(t)
	broken := i.dir + "/broken.toml"
	must(t, os.WriteFile(broken, []byte("runtimes = 1\n"), 0o600))
	good := i.configOf(i.roots(), "", "")
	for _, c := range []struct{ name, in, config, program, want string }{
		{name: "no JSON", in: "{" + i.roots(), want: "reading config.json: not a JSON object: "},
		{name: "annotations of no form", in: `{"annotations":["nix-closure/roots"]}`,
			want: "reading config.json: annotations: not a JSON object"},
		{name: "more than an object", in: good + "{}",
			want: "reading config.json: not a JSON object: invalid character '{' after top-level value"},
		{name: "in other letters", in: `{"root":{"path":"r"},"ANNOTATIONS":{` + i.roots() + `}}`,
			want: `reading config.json: field "ANNOTATIONS": some runtimes take it for "annotations" and some do not`},
		{name: "hooks in other letters", in: `{"root":{"path":"r"},"annotations":{` + i.roots() + `},"hookS":{}}`,
			want: `reading config.json: field "hookS": some runtimes take it for "hooks" and some do not`},
		{name: "a stage in other letters", in: i.configOf(i.roots(), "", `"createruntime":[]`),
			want: `rewriting config.json: field "hooks.createruntime": some runtimes take it for ` +
				`"hooks.createRuntime"`},
		{name: "annotations twice", in: `{"root":{"path":"r"},"annotations":{` + i.roots() + `},"annotations":null}`,
			want: `reading config.json: field "annotations": is there twice`},
		{name: "a sandbox twice", in: i.configOf(i.roots()+
			`,"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-type":"sandbox"`, "", ""),
			want: `reading config.json: field "annotations.io.kubernetes.cri.container-type": is there twice`},
		{name: "a mistake", in: i.configOf(`"nix-closure/root":"x"`, "", ""),
			want: "reading the annotations: annotation nix-closure/root: unknown"},
		{name: "a mount that leaks", in: i.configOf(i.roots(), `{"type":"bind","source":"/","destination":"/host"}`,
			""), want: "looking at the container's mounts: mount of / on /host: shows / of the host"},
		{name: "a relative mount that leaks",
			in:   i.configOf(i.roots(), `{"type":"bind","source":"../nix/store","destination":"/host"}`, ""),
			want: "looking at the container's mounts: mount of ../nix/store on /host: shows " + i.store.Dir},
		{name: "no hook", in: good, program: i.dir + "/nowhere",
			want: "looking for the hook: access " + i.dir + "/nowhere: no such file or directory"},
		{name: "a hook that is no program", in: good, program: i.config,
			want: "looking for the hook: access " + i.config + ": permission denied"},
		{name: "a configuration that is broken", in: good, config: broken,
			want: "reading the configuration: " + broken + `: line 1: unknown key "runtimes"`},
	} {
		must(t, os.WriteFile(i.file, []byte(c.in), 0o600))
		before := identity(t, i.file)
		config, program := i.config, i.program
		if c.config != "" {
			config = c.config
		}
		if c.program != "" {
			program = c.program
		}
		err := AddHooks(config, "web", i.bundle, program)
		if err == nil {
			t.Errorf("%s: not refused", c.name)
			continue
		}
		// Failure adds the container's name if the error lacks it.
		err = Failure("web", "", err)
		if want := "nix-closure: container web: " + c.want; !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s:\n%v\nwant\n%s", c.name, err, want)
		}
		if after := identity(t, i.file); after != before {
			t.Errorf("%s: config.json was %+v, is %+v", c.name, before, after)
		}
		i.only(t)
	}
	// Data read from a pipe is gone for the runtime.
	must(t, os.Remove(i.file), unix.Mkfifo(i.file, 0o600))
	if err := AddHooks(i.config, "web", i.bundle, i.program); err == nil ||
		!strings.Contains(err.Error(), "config.json: not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
	large, err := os.OpenFile(i.dir+"/large", os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err, large.Truncate(65<<20), large.Close(), os.Remove(i.file), os.Rename(i.dir+"/large", i.file))
	if err := AddHooks(i.config, "web", i.bundle, i.program); err == nil ||
		!strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("a large one: %v", err)
	}
}

// The bundle path is resolved by the kernel, as the runtime does.
func TestAddHooksPaths(t *testing.T) {
	i := newInstallation(t)
	good := i.configOf(i.roots(), "", "")
	want := i.installed(i.roots(), "")
	must(t, os.Symlink(i.bundle, i.dir+"/link"), os.MkdirAll(i.dir+"/elsewhere/below", 0o755),
		os.Symlink(i.dir+"/elsewhere/below", i.bundle+"/inside"))
	dir, err := os.Open(i.bundle)
	must(t, err)
	defer dir.Close()
	t.Chdir(i.dir + "/elsewhere")
	for _, c := range []struct{ bundle, file string }{
		{i.bundle, i.file},
		{i.bundle + "//", i.file},
		{"../bundle", i.file},
		{i.dir + "/link", i.file},
		{"../link/.", i.file},
		{fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), i.file},
		// This is not the bundle of the cleaned path, but the directory that contains
		// below.
		{i.bundle + "/inside/..", i.dir + "/elsewhere/config.json"},
		{"../link/inside/..", i.dir + "/elsewhere/config.json"},
		{"", i.dir + "/elsewhere/config.json"},
		{".", i.dir + "/elsewhere/config.json"},
	} {
		for _, f := range []string{i.file, i.dir + "/elsewhere/config.json"} {
			must(t, os.WriteFile(f, []byte(good), 0o600))
		}
		must(t, AddHooks(i.config, "web", c.bundle, i.program))
		for _, f := range []string{i.file, i.dir + "/elsewhere/config.json"} {
			text, err := os.ReadFile(f)
			must(t, err)
			if (string(text) == want) != (f == c.file) {
				t.Errorf("--bundle %s: %s is %s", c.bundle, f, text)
			}
		}
		for _, d := range []string{i.bundle, i.dir + "/elsewhere"} {
			if left, _ := filepath.Glob(d + "/.config.json*"); left != nil {
				t.Errorf("--bundle %s: left %q", c.bundle, left)
			}
		}
	}
	// The target of a link may belong to another container too.
	must(t, os.Rename(i.file, i.dir+"/shared.json"), os.WriteFile(i.dir+"/shared.json", []byte(good), 0o640),
		os.Symlink("../shared.json", i.file))
	must(t, AddHooks(i.config, "web", i.bundle, i.program))
	if st, err := os.Lstat(i.file); err != nil || st.Mode() != 0o600 {
		t.Errorf("in place of the link: %v, %v", st.Mode(), err)
	}
	if text, _ := os.ReadFile(i.file); string(text) != want {
		t.Errorf("in place of the link: %s", text)
	}
	if text, _ := os.ReadFile(i.dir + "/shared.json"); string(text) != good {
		t.Errorf("what the link led to is %s", text)
	}
}

// If the user may not set the owner of the file, the file stays unchanged and no
// temporary file is left.
func TestAddHooksOfAnother(t *testing.T) {
	i := newInstallation(t)
	must(t, os.WriteFile(i.file, []byte(i.configOf(i.roots(), "", "")), 0o644), os.Chmod(i.config, 0o644),
		os.Chmod(i.dir, 0o755), os.Chmod(filepath.Dir(i.dir), 0o755), os.Chown(i.bundle, 65534, 0))
	before := identity(t, i.file)
	// This changes the user of this thread only, including its file access.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, err := unix.SetfsuidRetUid(65534)
	must(t, err)
	err = AddHooks(i.config, "web", i.bundle, i.program)
	_, back := unix.SetfsuidRetUid(0)
	must(t, back)
	if !errors.Is(err, syscall.EPERM) ||
		!strings.HasPrefix(err.Error(), "nix-closure: a container: writing config.json: chown "+i.bundle+
			"/.config.json.") {
		t.Errorf("%v", err)
	}
	if after := identity(t, i.file); after != before {
		t.Errorf("config.json was %+v, is %+v", before, after)
	}
	i.only(t)
}

// A reader sees the old file or the new file at any time.
func TestAddHooksIsAtomic(t *testing.T) {
	i := newInstallation(t)
	pad := fmt.Sprintf(`,"pad":%q`, strings.Repeat("x", 1<<16))
	was := i.configOf(i.roots()+pad, "", "")
	is := i.installed(i.roots()+pad, "")
	must(t, os.WriteFile(i.file, []byte(was), 0o600))
	stop, seen := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(seen)
		for {
			text, err := os.ReadFile(i.file)
			if s := string(text); err != nil || s != was && s != is {
				seen <- fmt.Sprintf("%.100s (%d bytes), %v", s, len(s), err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 100 {
		must(t, os.WriteFile(i.dir+"/again", []byte(was), 0o600), os.Rename(i.dir+"/again", i.file),
			AddHooks(i.config, "web", i.bundle, i.program))
	}
	close(stop)
	if s, bad := <-seen; bad {
		t.Errorf("config.json was %s", s)
	}
	i.only(t)
}

func TestHasAnnotations(t *testing.T) {
	i := newInstallation(t)
	broken := i.dir + "/broken"
	must(t, os.WriteFile(i.file, []byte(i.configOf(i.roots(), "", "")), 0o600),
		os.WriteFile(broken, []byte(i.roots()), 0o600))
	for _, c := range []struct {
		file string
		want bool
		err  string
	}{
		{file: i.file, want: true},
		{file: ""},
		{file: i.bundle},
		{file: i.dir + "/nowhere"},
		{file: i.config}, // no JSON, which is the runtime's to say
		{file: broken, err: "nix-closure: a container: reading config.json: not a JSON object"},
		{file: "/dev/null", err: "nix-closure: a container: reading config.json: read /dev/null: not a regular file"},
	} {
		got, err := HasAnnotations(c.file)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%s: %t, %v", c.file, got, err)
		}
	}
}

func TestFailureOf(t *testing.T) {
	h := newHost(t)
	cause := errors.New("no such thing")
	for _, c := range []struct {
		container, doing string
		err              error
		want             string
	}{
		{container: "web", doing: "looking", err: cause, want: "nix-closure: container web: looking: no such thing"},
		{container: "", doing: "looking", err: cause, want: "nix-closure: a container: looking: no such thing"},
		{container: "web", doing: "looking", err: &failure{"", "reading", cause},
			want: "nix-closure: container web: reading: no such thing"},
		{container: "web", doing: "looking", err: &failure{"db", "reading", cause},
			want: "nix-closure: container db: reading: no such thing"},
		{container: "web", doing: "looking", err: fmt.Errorf("in all: %w", &failure{"", "reading", cause}),
			want: "nix-closure: container web: reading: no such thing"},
		{container: "a\nb", doing: "looking", err: cause, want: "nix-closure: container a b: looking: no such thing"},
	} {
		err := Failure(c.container, c.doing, c.err)
		if err.Error() != c.want || !errors.Is(err, cause) {
			t.Errorf("%q, want %q", err, c.want)
		}
	}
	LogFailure(h.config, Failure("web", "looking", cause))
	if lines := h.log(t); len(lines) != 1 || lines[0]["stage"] != "runtime" || lines[0]["container"] != "web" ||
		lines[0]["level"] != "error" ||
		lines[0]["doing"] != "looking" || lines[0]["error"] != "no such thing" {
		t.Errorf("in the log: %v", lines)
	}
}
