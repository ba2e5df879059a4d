// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// engines are those that the hook can be told. Empty: none.
var engines = []string{"", "podman", "docker", "containerd", "cri-o"}

// bindOf is a mount of config.json.
func bindOf(source, destination string) object {
	return object{"destination": destination, "type": "bind", "source": source, "options": []string{"rbind", "ro"}}
}

// believing is a bundle whose hooks are told an engine, with the probe and mounts.
func believing(t *testing.T, engine string, says annotations, mounts ...object) *bundle {
	t.Helper()
	b := newBundle(t, says, probe(t))
	if err := os.Mkdir(b.dir+"/rootfs/tmp", 0o777); err != nil {
		t.Fatal(err)
	}
	hooks := object{}
	for _, stage := range []string{"createRuntime", "poststop"} {
		args := []string{"nix-closure-hook", "--engine", engine, stage}
		if engine == "" {
			args = slices.Delete(args, 1, 3)
		}
		hooks[stage] = []object{b.hook(args...)}
	}
	b.config["hooks"] = hooks
	for _, m := range mounts {
		b.addMount(m)
	}
	return b
}

// see runs a bundle by a runtime, or by the wrapper.
func (b *bundle) see(t *testing.T, runtime, id string) seen {
	t.Helper()
	before := len(readLog(t))
	var out, errs strings.Builder
	cmd := b.command(t, runtime, id)
	cmd.Stdout, cmd.Stderr = &out, &errs
	s := seen{err: cmd.Run()}
	s.stdout, s.stderr = out.String(), errs.String()
	s.said = newestError(readLog(t)[before:])
	nothingLeft(t)
	return s
}

// newID is of no other container.
func newID() string {
	bundles++
	return fmt.Sprintf("bundle-%d", bundles)
}

// asking are claims of a container that asks for env.
func asking(claims ...annotations) annotations {
	all := roots(store["env"])
	for _, c := range claims {
		maps.Copy(all, c)
	}
	return all
}

// Each engine is believed about what it says itself, and about nothing else.
func TestBelievedEngines(t *testing.T) {
	for _, runtime := range runtimes {
		for _, engine := range engines {
			for _, c := range claims() {
				t.Run(strings.Join([]string{runtime, "engine " + engine, c.Name}, "/"), func(t *testing.T) {
					writeConfig(t, c.Config)
					b := believing(t, engine, asking(c.Says), bindOf(storeDir, storeDir))
					check(t, c, engine, b.see(t, runtime, newID()))
				})
			}
		}
	}
}

// A container with its own ID as the sandbox's is a sandbox, whatever its engine: it
// gets no closure, and no mount that shows the store either. Which dialect says the ID
// matters.
func TestBelievedSandbox(t *testing.T) {
	path := store["foreign"]
	for _, engine := range engines {
		for _, dialect := range []struct{ kind, id, other string }{{criType, criID, crioID},
			{crioType, crioID, criID}} {
			for _, m := range []struct {
				name  string
				mount object
				leaks bool
			}{
				{"no mount", bindOf("/usr/lib", "/usr/lib"), false},
				{"the store", bindOf(storeDir, storeDir), false},
				{"/nix", bindOf("/nix", "/nix"), false},
				{"the store elsewhere", bindOf(storeDir, "/x"), true},
				{"/nix elsewhere", bindOf("/nix", "/x"), true},
				{"the database", bindOf("/nix/var/nix/db", "/nix/var/nix/db"), true},
			} {
				t.Run(strings.Join([]string{"engine " + engine, dialect.kind, m.name}, "/"), func(t *testing.T) {
					id := newID()
					own := asking(annotations{dialect.kind: "sandbox", dialect.id: id})
					s := believing(t, engine, own, m.mount).see(t, "runc", id)
					switch names, words := s.lines(); {
					case m.leaks:
						s.isRefused(t, "shows ")
					case m.mount["destination"] == "/usr/lib" && s.err != nil:
						t.Errorf("a sandbox does not start: %v %s", s.err, s.said)
					case s.err != nil:
						s.isRefused(t, "shows ")
					case len(names) > 0 || slices.Contains(words, "registered"):
						t.Errorf("a sandbox sees %q %q", names, words)
					}
					id = newID()
					own = asking(annotations{dialect.kind: "sandbox", dialect.other: id})
					believing(t, engine, own, m.mount).see(t, "runc", id).isRefused(t, dialect.kind, "shows ")
				})
			}
			t.Run(strings.Join([]string{"engine " + engine, dialect.kind, "a path of the store"}, "/"),
				func(t *testing.T) {
					id := newID()
					own := asking(annotations{dialect.kind: "sandbox", dialect.id: id})
					s := believing(t, engine, own, bindOf(path, path)).see(t, "runc", id)
					names, _ := s.lines()
					if names = slices.DeleteFunc(names,
						func(n string) bool { return n == filepath.Base(path) }); len(names) > 0 {
						t.Errorf("a sandbox with one path sees %q", names)
					}
				})
		}
	}
}

// at moves a bundle to where an engine would have it.
func (b *bundle) at(t *testing.T, dir string) *bundle {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.Rename(b.dir, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	b.dir = dir
	return b
}

// The wrapper knows containerd's CRI by the bundle's directory, and CRI-O by the
// configuration. It believes no other.
func TestBelievedByWrapper(t *testing.T) {
	// Not t.TempDir(), which has the test's name in it, and of that any character.
	state, err := os.MkdirTemp("", "state-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, state) })
	const task = "/io.containerd.runtime.v2.task/"
	for _, p := range []struct{ name, dir, config, engine string }{
		{name: "containerd, CRI", dir: state + task + "k8s.io/ID", engine: "containerd"},
		{name: "containerd, CRI, and CRI-O", dir: state + task + "k8s.io/ID", config: "engine = \"cri-o\"\n",
			engine: "containerd"},
		{name: "CRI-O", dir: state + "/overlay-containers/ID/userdata", config: "engine = \"cri-o\"\n",
			engine: "cri-o"},
		{name: "CRI-O without the configuration", dir: state + "/overlay-containers/ID/userdata"},
		{name: "containerd, Docker", dir: state + task + "moby/ID"},
		{name: "containerd, ctr", dir: state + task + "default/ID"},
		{name: "containerd, CRI, another ID", dir: state + task + "k8s.io/another-ID"},
		{name: "containerd, CRI, below", dir: state + task + "k8s.io/ID/below"},
		{name: "containerd, CRI, above", dir: state + task + "k8s.io/moby/ID"},
		{name: "a directory of that name", dir: state + "/k8s.io/ID"},
		{name: "another plugin's", dir: state + "/io.containerd.runtime.v1.linux/k8s.io/ID"},
		{name: "another plugin's name that ends alike", dir: state + "/my-io.containerd.runtime.v2.task/k8s.io/ID"},
	} {
		for i, c := range claims() {
			t.Run(p.name+"/"+c.Name, func(t *testing.T) {
				writeConfig(t, p.config+fmt.Sprintf("runtime = %q\n", runtimes[i%2])+c.Config)
				id := newID()
				b := newBundle(t, asking(c.Says), probe(t))
				b.addMount(bindOf(storeDir, storeDir))
				if err := os.Mkdir(b.dir+"/rootfs/tmp", 0o777); err != nil {
					t.Fatal(err)
				}
				b.at(t, strings.ReplaceAll(p.dir, "ID", id))
				check(t, c, p.engine, b.see(t, wrapper(), id))
			})
		}
	}
}

// A sandbox of containerd's CRI has no hook, unless its root has something of the store, or
// something mounted in it.
func TestSandboxRoot(t *testing.T) {
	state, err := os.MkdirTemp("", "state-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, state) })
	become(t, "runc")
	for name, c := range map[string]struct {
		prepare func(t *testing.T, root string)
		hooks   int
	}{
		"a directory": {func(*testing.T, string) {}, 0},
		"a layer of the store": {func(t *testing.T, root string) {
			must(t, "mount", "-t", "overlay", "-o", "lowerdir="+root+":"+store["foreign"], "overlay", root)
		}, 2},
		"a mount in it": {func(t *testing.T, root string) { must(t, "mount", "-t", "tmpfs", "tmpfs", root+"/tmp") }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			id := newID()
			b := newBundle(t, asking(annotations{criType: "sandbox", criID: id}), "true")
			if err := os.Mkdir(b.dir+"/rootfs/tmp", 0o777); err != nil {
				t.Fatal(err)
			}
			b.at(t, state+"/io.containerd.runtime.v2.task/k8s.io/"+id)
			c.prepare(t, b.dir+"/rootfs")
			t.Cleanup(func() { _ = exec.Command("umount", "--recursive", b.dir+"/rootfs", b.dir+"/rootfs/tmp").Run() })
			s := b.see(t, wrapper(), id)
			text, err := os.ReadFile(b.dir + "/config.json")
			if hooks := strings.Count(string(text), `"nix-closure-hook"`); err != nil || hooks != c.hooks {
				t.Errorf("%d hooks, want %d: %v; %v %s", hooks, c.hooks, err, s.err, s.said)
			}
		})
	}
}

// An engine that the hook does not know is a mistake in a file, and not a reason to
// believe anybody. So is an annotation that is no pair, or says what an engine says.
func TestEngineUnknown(t *testing.T) {
	for _, args := range [][]string{
		{"--engine", "kubernetes"}, {"--engine", ""}, {"--engine", "Containerd"}, {"--engine"},
		{"--annotation", "nix-closure/roots"}, {"--annotation", "=x"}, {"--annotation"},
		{"--annotation", criName + "=web"}, {"--annotation", criType + "=sandbox"},
		{"--annotation", crioNamespace + "=team-a"},
	} {
		for _, says := range []annotations{roots(store["env"]), nil} {
			stdin := state("unknown", os.Getpid(), t.TempDir(), says)
			stdout, stderr, err := callHook(stdin, append(slices.Clone(args), "createRuntime")...)
			if err == nil || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%q, annotations %v: %v %q %q", args, says, err, stdout, stderr)
			}
		}
	}
}
