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
	for _, top := range rootCommand().Commands() {
		if top.Hidden {
			continue
		}
		commands := top.Commands()
		if len(commands) == 0 {
			commands = append(commands, top)
		}
		for _, c := range commands {
			if c.Example == "" || sections[top.Name()] == "" {
				t.Errorf("%s: no example, or no section in docs/cli.md", c.CommandPath())
			}
			c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				in := sections[top.Name()] + sections["Closure arguments"]
				if !strings.Contains(in, "--"+f.Name) {
					t.Errorf("docs/cli.md does not name --%s of %s", f.Name, c.CommandPath())
				}
			})
		}
	}
}
