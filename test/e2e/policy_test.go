// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// teams has a directory of links for a team, as docs/configuration.md has it.
const teams = "/nix/var/nix/gcroots/teams"

// makeLinks makes teams/a/app, for the length of a test.
func makeLinks(t *testing.T, target string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(teams+"/a", 0o755), os.Symlink(target, teams+"/a/app"))
	t.Cleanup(func() { removeAll(t, teams) })
	if err != nil {
		t.Fatal(err)
	}
}

// Which roots containers may ask for: what is allowed starts with its closure,
// what is not is refused with the whole reason, in the log and, by runc, on
// standard error.
func TestPolicy(t *testing.T) {
	const (
		byName  = "[[allow]]\nroots = [\"/nix/store/*-test-env\", \"/nix/store/*-closure-info\"]\n"
		byLink  = "[[allow]]\nroots = [\"" + teams + "/a/*\"]\n"
		forTeam = "[[allow]]\nnamespaces = [\"team-a\"]\nroots = [\"/nix/store/*-test-env\"]\n"
		cri     = "io.kubernetes.cri.sandbox-namespace"
		crio    = "io.kubernetes.pod.namespace"
	)
	env, tools, foreign := store["env"], store["tools"], store["foreign"]
	refused := func(path, whose, doubt string) string {
		return "checking what is allowed here: " + path +
			" is not allowed here: no [[allow]] of the configuration names it for " +
			whose + "; add it there, or ask for another" + doubt
	}
	ignored := func(key string) string {
		return "; annotation " + key + " was ignored, because an image or a user may have set it"
	}
	const nobodys = "a container without a Kubernetes namespace"
	teamA, teamB := `namespace "team-a"`, `namespace "team-b"`
	closureInfo := map[string]string{"nix-closure/closure-info": store["closureInfo"]}
	// It references nothing: Nix looks for no references in what is added.
	claims := info(t, foreign+"\n")
	mine := func(mode os.FileMode, uid int, dir string) func(t *testing.T) {
		return func(t *testing.T) {
			makeLinks(t, env)
			if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(dir, mode)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name        string
		config      string
		annotations map[string]string
		engine      string
		prepare     func(t *testing.T)
		want        string // the whole message after the container's name; empty: it starts
	}{
		{name: "by name", config: byName, annotations: roots(env)},
		{name: "another name", config: byName, annotations: roots(tools), want: refused(tools, nobodys, "")},
		{name: "one of two", config: byName, annotations: roots(env + " " + foreign),
			want: refused(foreign, nobodys, "")},
		{name: "by link", config: byLink, annotations: roots(env), prepare: func(t *testing.T) { makeLinks(t, env) }},
		{name: "a link to another", config: byLink, annotations: roots(env),
			prepare: func(t *testing.T) { makeLinks(t, tools) }, want: refused(env, nobodys, "")},
		{name: "no links", config: byLink, annotations: roots(env), want: refused(env, nobodys, "")},
		{name: "links of a user", config: byLink, annotations: roots(env), prepare: mine(0o755, 1000, teams+"/a"),
			want: refused(env, nobodys, `; links in "`+teams+`/a" are ignored: user 1000 can write there (mode 0755)`)},
		{name: "links below a directory of a user", config: byLink, annotations: roots(env),
			prepare: mine(0o755, 1000, teams),
			want: refused(env, nobodys,
				`; links in "`+teams+`" are ignored: user 1000 can write there (mode 0755)`)},
		{name: "links of everybody", config: byLink, annotations: roots(env),
			prepare: mine(0o777|os.ModeSticky, 0, teams+"/a"),
			want: refused(env, nobodys,
				`; links in "`+teams+`/a" are ignored: everybody can write there (owner 0, mode 1777)`)},

		{name: "no namespace", config: forTeam, annotations: roots(env), want: refused(env, nobodys, "")},
		{name: "containerd's namespace", config: forTeam, annotations: with(roots(env), cri, "team-a"),
			engine: "containerd"},
		{name: "another of containerd's", config: forTeam, annotations: with(roots(env), cri, "team-b"),
			engine: "containerd", want: refused(env, teamB, "")},
		{name: "CRI-O's namespace", config: forTeam, annotations: with(roots(env), crio, "team-a"), engine: "cri-o"},
		{name: "another of CRI-O's", config: forTeam, annotations: with(roots(env), crio, "team-b"), engine: "cri-o",
			want: refused(env, teamB, "")},
		{name: "another root in the namespace", config: forTeam, annotations: with(roots(tools), cri, "team-a"),
			engine: "containerd", want: refused(tools, teamA, "")},
		{name: "two namespaces", config: forTeam, annotations: with(roots(env), cri, "team-b", crio, "team-a"),
			engine: "containerd",
			want:   refused(env, teamB, ignored(crio))},
		{name: "containerd's namespace, by CRI-O", config: forTeam, annotations: with(roots(env), cri, "team-a"),
			engine: "cri-o", want: refused(env, nobodys, ignored(cri))},
		{name: "a namespace, by podman", config: forTeam, annotations: with(roots(env), cri, "team-a"),
			engine: "podman", want: refused(env, nobodys, ignored(cri))},
		{name: "a namespace, and nobody says by whom", config: forTeam, annotations: with(roots(env), crio, "team-a"),
			want: refused(env, nobodys, ignored(crio))},

		{name: "a closure-info", config: byName, annotations: closureInfo},
		{name: "a closure-info of another name", config: forTeam,
			annotations: with(map[string]string{cri: "team-a"}, "nix-closure/closure-info", store["closureInfo"]),
			engine:      "containerd",
			want:        refused(store["closureInfo"], teamA, "")},
		{name: "a closure-info that lists what it does not reference", config: byName, annotations: claims,
			want: refused(foreign, nobodys, "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			writeConfig(t, c.config)
			if c.prepare != nil {
				c.prepare(t)
			}
			for _, runtime := range runtimes {
				b := newBundle(t, c.annotations, "ls /nix/store", "createRuntime", "poststop")
				if c.engine != "" {
					b.from(c.engine, "createRuntime", "poststop")
				}
				id, stdout, stderr, err := b.run(t, runtime)
				if c.want == "" {
					got := strings.Fields(stdout)
					if slices.Sort(got); err != nil || !slices.Equal(got, closureOf(t, env)) {
						t.Errorf("%s: %v, the store has %q\n%s", runtime, err, got, stderr)
					}
				} else {
					checkRefused(t, runtime, stdout, stderr, err, "nix-closure: container "+id+": "+c.want)
				}
				nothingLeft(t)
			}
		})
	}
}

// checkRefused fails if a container started, or was refused for another reason.
func checkRefused(t *testing.T, runtime, stdout, stderr string, err error, want string) {
	t.Helper()
	if err == nil || stdout != "" {
		t.Errorf("%s: it started: %q %v", runtime, stdout, err)
	}
	if got := lastError(t); got != want {
		t.Errorf("%s: the log says\n%s, want\n%s", runtime, got, want)
	}
	// runc escapes what a hook printed for its own log.
	quoted := strings.ReplaceAll(want, `"`, `\"`)
	if runtime == "runc" && !strings.Contains(stderr, quoted) && !strings.Contains(stderr, want) {
		t.Errorf("standard error is\n%s, want in it\n%s", stderr, want)
	}
}

// What root links or unlinks counts from the next container on, and for podman
// too.
func TestPolicyChanges(t *testing.T) {
	writeConfig(t, "[[allow]]\nroots = [\""+teams+"/*/*\"]\n")
	makeLinks(t, store["env"])
	app := teams + "/a/app"
	for i, step := range []struct {
		name    string
		change  func() error
		allowed string // attribute of the store
	}{
		{"as it was made", func() error { return nil }, "env"},
		{"another target", func() error { return errors.Join(os.Remove(app), os.Symlink(store["tools"], app)) },
			"tools"},
		{"for another team", func() error { return os.Rename(teams+"/a", teams+"/b") }, "tools"},
		{"no link", func() error { return os.RemoveAll(teams + "/b") }, ""},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		for j, root := range []string{"env", "tools"} {
			c := container{runtime: runtimes[(i+j)%2], root: root}
			stdout, stderr, err := c.run(store[root]+"/bin/ls", "/nix/store")
			if root == step.allowed {
				if got := len(strings.Fields(stdout)); err != nil || got != len(closureOf(t, store[root])) {
					t.Errorf("%s: %v, %d paths\n%s", step.name, err, got, stderr)
				}
				continue
			}
			said := lastError(t)
			want := fmt.Sprintf("checking what is allowed here: %s is not allowed here: no [[allow]] of the "+
				"configuration names it for a container without a Kubernetes namespace; add it there, or ask for "+
				"another", store[root])
			if err == nil || stdout != "" || withoutID(said) != want {
				t.Errorf("%s: %v %q, the log says\n%s, want\n%s", step.name, err, stdout, withoutID(said), want)
			}
			if c.runtime == "runc" && !strings.Contains(stderr, said) {
				t.Errorf("%s: standard error is\n%s, want in it\n%s", step.name, stderr, said)
			}
		}
	}
	nothingLeft(t)
}
