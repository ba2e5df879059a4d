// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/nix-closure/nix-closure/internal/commandline"
)

// arguments is what this program understands of a runtime's command line. It passes the
// command line itself on without a change.
type arguments struct{ commandline.Arguments }

func parse(args []string) arguments { return arguments{commandline.Parse(args)} }

// configFiles returns the files that a runtime could take for the config.json if the
// command line is in doubt: the one in the current directory, and every file that is named
// by an argument, by the text after a `=`, or by the text after an option's letter.
func configFiles(args []string) []string {
	const inBundle = "/config.json"
	files := []string{"." + inBundle}
	for i, arg := range args {
		next := ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		files = append(files, arg+inBundle)
		_, value, inline := strings.Cut(arg, "=")
		if inline {
			files = append(files, value+inBundle)
		}
		if strings.HasPrefix(arg, "--conf") { // crun takes the beginning of a name for the name
			if inline {
				next = value
			}
			files = append(files, next)
		}
		if !strings.HasPrefix(arg, "-") || strings.HasPrefix(arg, "--") {
			continue
		}
		for j := 1; j < len(arg); j++ {
			switch after := arg[j+1:]; {
			case arg[j] == 'b':
				files = append(files, after+inBundle)
			case arg[j] == 'f' && after == "":
				files = append(files, next)
			case arg[j] == 'f':
				files = append(files, after)
			}
		}
	}
	return files
}
