// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const quadlets = "../../examples/quadlet"

// unquote splits a value of a unit file into words as systemd does, and quadlet after it:
// at white space, but for what is in quotes. It knows no backslash: no store path has one.
func unquote(value string) (words []string) {
	var word strings.Builder
	var quote rune
	begun := false
	for _, r := range value + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, begun = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	return words
}

// quadlet is what podman's generator makes of a file.
type quadlet struct {
	flags []string // of podman run
	image string
	exec  []string
	yaml  string // of podman kube play
}

// readQuadlet does what the generator does. Debian 12's podman has none, so this is its rule
// and not its program (podman 4.4 and later, pkg/systemd/quadlet and pkg/systemd/parser). Of
// Annotation=, each word is one annotation, and a word without an equals sign is dropped. Of
// AddDevice=, each word is one device; a hyphen before it means to leave it out if there is
// no file of its name.
func readQuadlet(t *testing.T, text string) (q quadlet) {
	t.Helper()
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			section = line
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		switch section + key {
		case "[Container]Annotation":
			for _, word := range unquote(value) {
				if key, value, found := strings.Cut(word, "="); found {
					q.flags = append(q.flags, "--annotation", key+"="+value)
				}
			}
		case "[Container]AddDevice":
			for _, word := range unquote(value) {
				device, optional := strings.CutPrefix(word, "-")
				if _, err := os.Stat(device); !optional || err == nil {
					q.flags = append(q.flags, "--device", device)
				}
			}
		case "[Container]Image":
			q.image = value
		case "[Container]Exec":
			q.exec = unquote(value)
		case "[Kube]Yaml":
			q.yaml = value
		case "[Unit]Description", "[Install]WantedBy":
		default:
			t.Fatalf("this test does not know %s of %s", key, section)
		}
	}
	return q
}

// Two roots in a quadlet. Without quotes, white space loses all but the first.
func TestTwoRootsInQuadlet(t *testing.T) {
	a, b := store["env"], store["foreign"]
	for _, c := range []struct{ line, want string }{
		{"Annotation=nix-closure/roots=" + a + ":" + b, a + ":" + b},
		{`Annotation="nix-closure/roots=` + a + ":" + b + `"`, a + ":" + b},
		{"Annotation=nix-closure/roots=" + a + " " + b, a},
		{`Annotation="nix-closure/roots=` + a + " " + b + `"`, a + " " + b},
	} {
		args := append([]string{"create"}, readQuadlet(t, "[Container]\n"+c.line).flags...)
		id := strings.TrimSpace(must(t, "podman", append(args, bareImage, "/x")...))
		var got []struct {
			Config struct{ Annotations annotations }
		}
		err := json.Unmarshal([]byte(must(t, "podman", "inspect", id)), &got)
		remove(t, id)
		if err != nil || len(got) != 1 || got[0].Config.Annotations["nix-closure/roots"] != c.want {
			t.Errorf("%s: %v %+v, want %q", c.line, err, got, c.want)
		}
	}
}

// lister is a program that greets and lists the store. It is the only store path of its
// closure.
func lister(t *testing.T, name string) string {
	t.Helper()
	return program(t, name, `"${0%/*}/busybox" echo 'Hello, world!'; exec "${0%/*}/busybox" ls -A /nix/store`)
}

// greetsAnd is what a lister prints where the store has these store paths.
func greetsAnd(paths ...string) string {
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p)+"\n")
	}
	slices.Sort(names)
	return greeting + strings.Join(names, "")
}

// A container that is made of an example runs the example's command, with the closure of the
// example and nothing else.
func TestExampleQuadlets(t *testing.T) {
	hello, other := lister(t, "hello-2.12"), lister(t, "curl-8.5")
	writeDevices(t, map[string]annotations{"hello": roots(hello)})
	taken := strings.NewReplacer("/nix/store/…-hello-2.12", hello, "/nix/store/…-curl-8.5", other)
	for name, want := range map[string]string{
		"two-roots.container": greetsAnd(hello, other),
		"device.container":    greetsAnd(hello),
	} {
		text, err := os.ReadFile(filepath.Join(quadlets, name))
		if err != nil {
			t.Fatal(err)
		}
		if left := placeholders(taken.Replace(string(text))); len(left) > 0 {
			t.Errorf("%s has %q", name, left)
		}
		q := readQuadlet(t, taken.Replace(string(text)))
		for _, runtime := range runtimes {
			c := container{runtime: runtime, flags: append(slices.Clone(wholeStore), q.flags...)}
			if name == "device.container" {
				c.hooks = t.TempDir() // it needs none
			}
			if got := c.mustRun(t, q.exec...); got != want || q.image == "" {
				t.Errorf("%s, %s: %q, want %q", name, runtime, got, want)
			}
		}
	}
	nothingLeft(t)

	// The control: without its line, it sees the whole store.
	c := container{runtime: "crun", flags: wholeStore}
	if got := c.mustRun(t, hello+"/bin/hello"); !strings.Contains(got, filepath.Base(store["foreign"])+"\n") {
		t.Errorf("without a closure: %q", got)
	}
	// A device that there is not keeps the container from starting, unless it is optional.
	missing := readQuadlet(t, "[Container]\nAddDevice=nix-closure/closure=none")
	c.flags = append(slices.Clone(wholeStore), missing.flags...)
	if out, stderr, err := c.run(hello + "/bin/hello"); err == nil || !strings.Contains(stderr, "closure=none") {
		t.Errorf("%v %s%s", err, out, stderr)
	}
	if q := readQuadlet(t, "[Container]\nAddDevice=-nix-closure/closure=none"); len(q.flags) > 0 {
		t.Errorf("the documents warn of what is not so: %q", q.flags)
	}
}

// The pod of the example has its closure in both containers.
func TestExampleQuadletPod(t *testing.T) {
	makePods(t)
	text, err := os.ReadFile(quadlets + "/pod.kube")
	if err != nil {
		t.Fatal(err)
	}
	pod, err := os.ReadFile(filepath.Join(quadlets, readQuadlet(t, string(text)).yaml))
	if err != nil {
		t.Fatal(err)
	}
	const command = "[/nix/store/…-hello-2.12/bin/hello]"
	taken := strings.NewReplacer(command, "["+store["env"]+"/bin/ls, -A, "+storeDir+"]",
		"/nix/store/…-closure-info", store["closureInfo"],
		// This machine has no network and no registry.
		"docker.io/library/alpine:3", bareImage+"\n    imagePullPolicy: Never",
		"restartPolicy: Never", "restartPolicy: Never\n  hostNetwork: true")
	file := t.TempDir() + "/pod.yaml"
	if err := os.WriteFile(file, []byte(taken.Replace(string(pod))), 0o644); err != nil {
		t.Fatal(err)
	}
	const name = "two-containers"
	for _, runtime := range runtimes {
		t.Cleanup(func() { removePod(t, name) })
		// As the generator has it, but for --service-container, which needs systemd.
		must(t, "podman", "--runtime", runtime, "--hooks-dir", *bin+"/hooks.d", "kube", "play", "--replace", file)
		for _, c := range []string{name + "-web", name + "-worker"} {
			if status := strings.TrimSpace(must(t, "podman", "wait", c)); status != "0" {
				t.Errorf("%s: %s ended with %s", runtime, c, status)
			}
			got := strings.Fields(must(t, "podman", "logs", c))
			if want := closureOf(t, store["env"]); !slices.Equal(got, want) {
				t.Errorf("%s: %s has %q, want %q", runtime, c, got, want)
			}
		}
		removePod(t, name)
		nothingLeft(t)
	}
}
