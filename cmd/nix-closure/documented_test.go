// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// docs/cli.md has a section for each command, which names its options, and each command
// has an example.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	must(t, err)
	sections := map[string]string{}
	for section := range strings.SplitSeq(string(text), "\n## ") {
		name, body, _ := strings.Cut(section, "\n")
		sections[name] = body
	}
	for _, c := range rootCommand().Commands() {
		if c.Hidden {
			continue
		}
		if c.Example == "" || sections[c.Name()] == "" {
			t.Errorf("%s: no example, or no section in docs/cli.md", c.Name())
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			in := sections[c.Name()] + sections["Closure arguments"]
			if !strings.Contains(in, "--"+f.Name) {
				t.Errorf("docs/cli.md does not name --%s of %s", f.Name, c.Name())
			}
		})
	}
}
