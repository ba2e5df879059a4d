// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// arguments is what this program understands of a runtime's command line. The
// command line itself is passed on as it is.
type arguments struct {
	makes  bool   // whether a container may be made
	id     string // of that container; in doubt, the last argument, which it mostly is
	bundle string // as given; empty: the current directory
	root   string // where the runtime keeps its containers; empty: its default
	// log and logFormat say where errors go; empty: nowhere but standard error.
	log, logFormat string
	// doubt is why bundle may not be what the runtime takes for it.
	doubt error
}

// The options of runc and crun, of versions 1, as engines write them: those
// that take a value are true. A runtime that has one reads it as every other does,
// or refuses the command line. Not here is what they read each in its own way:
// `-b=X` is X to runc and =X to crun, `-bundle X` is X and undle, and crun's
// --config is the file that it reads in place of config.json.
var (
	globalOptions = map[string]bool{
		"--cgroup-manager": true, "--criu": true, "--log": true, "--log-format": true, "--log-level": true, "--root": true, "--rootless": true,
		"--debug": false, "--systemd-cgroup": false,
		"--help": false, "-h": false, "-?": false, "--usage": false, "--version": false, "-v": false, "-V": false,
	}
	createOptions = map[string]bool{
		"--bundle": true, "-b": true, "--console-socket": true, "--pid-file": true, "--pidfd-socket": true, "--preserve-fds": true,
		"--detach": false, "-d": false, "--keep": false, "--no-new-keyring": false, "--no-pivot": false, "--no-subreaper": false,
		"--help": false, "-h": false, "-?": false, "--usage": false,
	}
)

// makers are the commands that make a container.
var makers = []string{"create", "run", "restore"}

func isMaker(arg string) bool { return slices.Contains(makers, arg) }

// parse understands a command line, without the program's name. It goes by no
// runtime's rules: what not all of them read alike it leaves in doubt.
func parse(args []string) arguments {
	var a arguments
	rest := a.options(args, globalOptions)
	if a.doubt != nil {
		a.makes = slices.ContainsFunc(args, isMaker)
	} else if len(rest) > 0 {
		a.makes = isMaker(rest[0])
	}
	if !a.makes {
		return a
	}
	a.id = args[len(args)-1]
	if a.doubt != nil {
		return a
	}
	if rest[0] == "restore" {
		a.doubt = errors.New("a container with a closure cannot be restored from a checkpoint; create it anew")
		return a
	}
	var operands []string
	for rest = a.options(rest[1:], createOptions); len(rest) > 0; rest = a.options(rest[1:], createOptions) {
		operands = append(operands, rest[0])
	}
	switch {
	case a.doubt != nil:
	case len(operands) != 1:
		a.doubt = fmt.Errorf("%d arguments are no options, and the container's id alone is expected", len(operands))
	default:
		a.id = operands[0]
	}
	return a
}

// options reads options, and returns the arguments from the first on that is none.
// In doubt it returns nothing.
func (a *arguments) options(args []string, known map[string]bool) []string {
	for len(args) > 0 {
		arg := args[0]
		if len(arg) < 2 || arg[0] != '-' {
			return args
		}
		args = args[1:]
		name, value, inline := strings.Cut(arg, "=")
		takesValue, ok := known[name]
		if !ok || inline && !strings.HasPrefix(name, "--") {
			a.doubt = fmt.Errorf("option %s: not every runtime would read it alike; write --bundle and other long options, of those that this version knows, before the container's id", arg)
			return nil
		}
		if takesValue && !inline {
			if len(args) == 0 || strings.HasPrefix(args[0], "-") {
				a.doubt = fmt.Errorf("option %s: has no value, or one that begins with a hyphen; write %s=VALUE", arg, name)
				return nil
			}
			value, args = args[0], args[1:]
		}
		switch name {
		case "--bundle", "-b":
			a.bundle = value
		case "--root":
			a.root = value
		case "--log":
			a.log = value
		case "--log-format":
			a.logFormat = value
		}
	}
	return nil
}

// places are the files that a runtime could take for the config.json, when the
// command line is in doubt: the one in the current directory, and any that is named
// by an argument, by what follows a `=`, or by what follows the letter for it.
func places(args []string) []string {
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
