// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// composed is what docker compose does with the services of a file, until they end.
func composed(t *testing.T, text string) (printed map[string][]string, said string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(*bin, "stack/docker-compose"), append([]string{"--project-name", "example",
			"--ansi", "never", "--progress", "plain"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix:///run/docker.sock", "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	said, err = call("up", "--no-color")
	printed = map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^(by-\w+)-1 +\| (.*)$`).FindAllStringSubmatch(said, -1) {
		printed[m[1]] = append(printed[m[1]], m[2])
	}
	if out, err := call("down", "--timeout", "0"); err != nil {
		t.Errorf("down: %v %s", err, out)
	}
	nothingLeft(t)
	return printed, said, err
}

// Docker compose gives each service of the example its closure, or does not start it.
func TestExampleCompose(t *testing.T) {
	newDocker(t)
	generate(t, "hello", store["tools"])
	text := strings.NewReplacer("/nix/store/…-hello-2.12:/nix/store/…-bash-5.2", store["env"],
		"command: /nix/store/…-hello-2.12/bin/hello", "command: "+listStore,
		// This machine has no network and no registry, and shows its store.
		"docker.io/library/alpine:3", "busybox\n    network_mode: none\n"+
			"    volumes: [\""+storeDir+":"+storeDir+":ro\"]").Replace(example(t, "compose/compose.yaml"))
	for _, c := range []struct {
		name, old, new string
		want           map[string][]string // nil: the whole store
		said           string
	}{
		{name: "as it is", want: map[string][]string{"by-annotation": closureOf(t, store["env"]),
			"by-device": closureOf(t, store["tools"])}},
		{name: "no such device", old: "closure=hello", new: "closure=none", want: map[string][]string{"by-device": {}},
			said: "unresolvable CDI devices nix-closure/closure=none"},
		{name: "the canary", old: "nix-closure/roots: " + store["env"], new: "nix-closure/roots: /nix/store/canary",
			want: map[string][]string{"by-annotation": {}},
			said: `annotation nix-closure/roots: "/nix/store/canary": `},
		{name: "a key that is none", old: "nix-closure/roots", new: "nix-closure/root",
			want: map[string][]string{"by-annotation": {}},
			said: "annotation nix-closure/root: unknown"},
		{name: "labels instead", old: "annotations:", new: "labels:", want: map[string][]string{"by-annotation": nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			printed, said, err := composed(t, strings.Replace(text, c.old, c.new, 1))
			for service, want := range c.want {
				got := printed[service]
				slices.Sort(got)
				isWhole := want == nil && slices.Contains(got, filepath.Base(store["foreign"]))
				if !isWhole && !slices.Equal(got, want) {
					t.Errorf("%s: %q\nwant %q\n%s", service, got, want, said)
				}
			}
			if !strings.Contains(said, c.said) || (err == nil) != (c.said == "") {
				t.Errorf("%v %s\nwant %s", err, said, c.said)
			}
		})
	}
}
