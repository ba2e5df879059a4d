// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Two roots, separated in each way that has been tried, through podman. Only a colon needs
// no thought: podman reads the value as a line of CSV, and cuts it at its first line break.
func TestTwoRoots(t *testing.T) {
	a, b := store["env"], store["foreign"]
	two, one := both(t, a, b), closureOf(t, a)
	for _, c := range []struct {
		name, flag string
		want       []string // nil: podman refuses
	}{
		{"a colon", "nix-closure/roots=" + a + ":" + b, two},
		{"a space", "nix-closure/roots=" + a + " " + b, two},
		{"a comma", "nix-closure/roots=" + a + "," + b, nil},
		{"a comma, as CSV has it", `"nix-closure/roots=` + a + "," + b + `"`, two},
		{"a line break", "nix-closure/roots=" + a + "\n" + b, one},
	} {
		for _, runtime := range runtimes {
			run := container{runtime: runtime, flags: []string{"--annotation", c.flag}}
			stdout, stderr, err := run.run(a+"/bin/ls", "-A", storeDir)
			if got := strings.Fields(stdout); !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
				t.Errorf("%s, %s: %v, the store has %q, want %q\n%s", runtime, c.name, err, got, c.want, stderr)
			}
		}
	}
	nothingLeft(t)
}

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

// quadletAnnotations are podman's flags for the lines Annotation= of a quadlet. Debian 12's
// podman has no generator, so this is its rule and not its program (podman 4.4 and later,
// LookupAllKeyVal in pkg/systemd/parser): each word of the value is one annotation, and a
// word without an equals sign is dropped.
func quadletAnnotations(text string) (args []string) {
	for line := range strings.Lines(text) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "Annotation=")
		if !ok {
			continue
		}
		for _, word := range unquote(value) {
			if key, value, found := strings.Cut(word, "="); found {
				args = append(args, "--annotation", key+"="+value)
			}
		}
	}
	return args
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
		args := append([]string{"create"}, quadletAnnotations(c.line)...)
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

// The example has two roots, and a container that is made of it has both closures.
func TestExampleQuadlet(t *testing.T) {
	text, err := os.ReadFile("../../examples/quadlet/two-roots.container")
	if err != nil {
		t.Fatal(err)
	}
	example := string(text)
	for i, path := range placeholders(example) {
		example = strings.ReplaceAll(example, path, []string{store["env"], store["foreign"]}[i])
	}
	args := quadletAnnotations(example)
	for _, runtime := range runtimes {
		c := container{runtime: runtime, flags: args}
		got := strings.Fields(c.mustRun(t, store["env"]+"/bin/ls", "-A", storeDir))
		if want := both(t, store["env"], store["foreign"]); !slices.Equal(got, want) {
			t.Errorf("%s: the store has %q, want %q", runtime, got, want)
		}
	}
	nothingLeft(t)
}

// storePlaceholder is a store path of a text for people, without its hash.
var storePlaceholder = regexp.MustCompile(`/nix/store/…-[0-9a-zA-Z+._?=-]*[0-9a-zA-Z]`)

// placeholders are the store paths of a text for people, each once, in order.
func placeholders(text string) []string {
	var all []string
	for _, p := range storePlaceholder.FindAllString(text, -1) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}
