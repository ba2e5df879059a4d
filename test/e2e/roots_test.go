// SPDX-License-Identifier: Apache-2.0

package e2e

import (
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
