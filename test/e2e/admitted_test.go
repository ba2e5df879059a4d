// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// listStore prints the names in the store.
const listStore = "import os; print('\\n'.join(sorted(os.listdir('/nix/store'))))"

// both is the closure of two store paths.
func both(t *testing.T, a, b string) []string {
	t.Helper()
	all := append(closureOf(t, a), closureOf(t, b)...)
	slices.Sort(all)
	return slices.Compact(all)
}

// A store path that is mounted on its own place, as a device's specification does with
// a driver, is one more root: it comes with its closure, as a part of the view.
func TestAdmittedMounts(t *testing.T) {
	env, foreign, file := store["env"], store["foreign"], store["data"]
	alias := t.TempDir()
	bindMount(t, storeDir, alias)
	var inForeign string
	entries, err := os.ReadDir(foreign)
	if err != nil || len(entries) == 0 {
		t.Fatalf("%v %v", entries, err)
	}
	inForeign = foreign + "/" + entries[0].Name()
	cases := []struct {
		name, volume string
		want         []string
	}{
		{"a store path", foreign + ":" + foreign, both(t, env, foreign)},
		{"read-only", foreign + ":" + foreign + ":ro", both(t, env, foreign)},
		{"below a store path", inForeign + ":" + inForeign, both(t, env, foreign)},
		{"a file", file + ":" + file, both(t, env, file)},
		{"by an alias of the store", alias + "/" + filepath.Base(foreign) + ":" + foreign, both(t, env, foreign)},
		{"one that is asked for anyway", env + ":" + env, closureOf(t, env)},
	}
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, stage := range mountStages {
			for _, c := range cases {
				run := container{runtime: runtime, mode: mode, root: "env", flags: []string{"-v", c.volume},
					hooks: hooksWith(t, stage.added...)}
				if got := strings.Fields(run.python(t, listStore)); !slices.Equal(got, c.want) {
					t.Errorf("%s, %s: the store has %q, want %q", stage.name, c.name, got, c.want)
				}
				// What was admitted is the view's, and no mount of its own.
				mountinfo := run.python(t, "print(open('/proc/self/mountinfo').read())")
				if mode == "overlay" && strings.Count(mountinfo, " /nix/store") != 1 {
					t.Errorf("%s, %s: mounted are\n%s", stage.name, c.name, mountinfo)
				}
				nothingLeft(t)
			}
		}
	})
}

// A closure-info has what it lists; what is mounted comes in addition.
func TestAdmittedWithClosureInfo(t *testing.T) {
	foreign := store["foreign"]
	want := both(t, store["env"], foreign)
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, stage := range mountStages {
			c := container{runtime: runtime, mode: mode, hooks: hooksWith(t, stage.added...), flags: []string{
				"--annotation", "nix-closure/closure-info=" + store["closureInfo"], "-v", foreign + ":" + foreign,
			}}
			got := strings.Fields(c.mustRun(t, store["env"]+"/bin/python3", "-B", "-c", listStore))
			if !slices.Equal(got, want) {
				t.Errorf("%s: the store has %q, want %q", stage.name, got, want)
			}
			nothingLeft(t)
		}
	})
}

// What is mounted inside the store in any other way is refused, with the mount named.
func TestNotAdmittedMounts(t *testing.T) {
	env, foreign := store["env"], store["foreign"]
	gone := "/nix/store/" + strings.Repeat("0", 32) + "-gone"
	if err := os.Mkdir(gone, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, gone) })
	const inside = "lies inside the store directory"
	cases := []struct {
		name  string
		flags []string
		want  string
	}{
		{"one on another's place", []string{"-v", foreign + ":" + env},
			"mount of " + foreign + " on " + env + ": " + inside},
		{"one that is not valid", []string{"-v", gone + ":" + gone}, gone + " is not valid"},
		{"a directory on a store path", []string{"-v", t.TempDir() + ":" + foreign}, " on " + foreign + ": " + inside},
		{"an overlay of it", []string{"-v", foreign + ":" + foreign + ":O"}, " on " + foreign + ": " + inside},
		{"the links", []string{"-v", "/nix/store/.links:/nix/store/.links"}, " on /nix/store/.links: " + inside},
		{"a tmpfs", []string{"--tmpfs", "/nix/store/x"}, " on /nix/store/x: " + inside},
	}
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			hooks := hooksWith(t, stage.added...)
			for _, c := range cases {
				run := container{runtime: runtime, root: "env", flags: c.flags, hooks: hooks}
				stdout, _, err := run.run(env+"/bin/echo", "it runs")
				if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, c.want) {
					t.Errorf("%s, %s, %s: %v %q; the log says %q, want %q", runtime, stage.name, c.name, err, stdout,
						said, c.want)
				}
				nothingLeft(t)
			}
		}
	}
}

// A store path that a mount names, on its own place or on another, has to be allowed
// like one that an annotation names.
func TestPolicyOfMounts(t *testing.T) {
	env, foreign := store["env"], store["foreign"]
	writeConfig(t, "[[allow]]\nroots = [\"/nix/store/*-"+strings.SplitN(filepath.Base(env), "-", 2)[1]+"\"]\n")
	alias := t.TempDir()
	bindMount(t, foreign, alias)
	nested := t.TempDir()
	if err := os.Mkdir(nested+"/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	bindMount(t, foreign, nested+"/deep")
	for _, runtime := range runtimes {
		for _, stage := range mountStages {
			for _, volume := range []string{foreign + ":" + foreign, foreign + ":/x", foreign + ":/x:ro", alias + ":/x",
				nested + ":/x", foreign + ":/x:O"} {
				run := container{runtime: runtime, root: "env", flags: []string{"-v", volume},
					hooks: hooksWith(t, stage.added...)}
				stdout, _, err := run.run(env+"/bin/echo", "it runs")
				want := "checking what is allowed here: " + foreign + " is not allowed here"
				if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, want) {
					t.Errorf("%s, %s, %s: %v %q; the log says %q", runtime, stage.name, volume, err, stdout, said)
				}
			}
			run := container{runtime: runtime, root: "env", flags: []string{"-v", env + ":/x"},
				hooks: hooksWith(t, stage.added...)}
			run.mustRun(t, env+"/bin/true")
			nothingLeft(t)
		}
	}
}
