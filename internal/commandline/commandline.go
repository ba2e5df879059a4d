// SPDX-License-Identifier: Apache-2.0

// Package commandline parses the command line of an OCI runtime, runc or crun. The runtime
// specification leaves it open; runc's is the model for the others.
package commandline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Arguments is what is understood of a runtime's command line.
type Arguments struct {
	Makes  bool   // the command may make a container
	ID     string // of that container; in doubt, the last argument, which is mostly the ID
	Bundle string // as given; empty: the current directory
	Root   string // where the runtime keeps its containers; empty: its default
	// Log and LogFormat say where the runtime writes errors; empty: to standard error only.
	Log, LogFormat string
	// PreserveFDs is how many of the runtime's file descriptors, from 3 on, the container
	// gets, as given; empty: only those of LISTEN_FDS.
	PreserveFDs string
	// Doubt is the reason why the runtime may take another directory for the bundle than
	// Bundle; nil: there is no doubt.
	Doubt error
}

// The options of runc 1 and crun 1, as engines write them; true: the option takes a value.
// Every runtime that has one of these options reads it in the same way, or refuses the
// command line. Options that they read differently are not here: `-b=X` is X for runc and
// =X for crun, `-bundle X` is X for runc and undle for crun, and crun's --config names the
// file that it reads instead of config.json.
var (
	globalOptions = options{
		{"--cgroup-manager", true}, {"--criu", true}, {"--log", true}, {"--log-format", true}, {"--log-level", true},
		{"--root", true}, {"--rootless", true},
		{"--debug", false}, {"--systemd-cgroup", false},
		{"--help", false}, {"-h", false}, {"-?", false}, {"--usage", false},
		{"--version", false}, {"-v", false}, {"-V", false},
	}
	createOptions = options{
		{"--bundle", true}, {"-b", true}, {"--console-socket", true}, {"--pid-file", true}, {"--pidfd-socket", true},
		{"--preserve-fds", true}, {"--detach", false}, {"-d", false}, {"--keep", false}, {"--no-new-keyring", false},
		{"--no-pivot", false}, {"--no-subreaper", false},
		{"--help", false}, {"-h", false}, {"-?", false}, {"--usage", false},
	}
)

// options are options and whether each takes a value. A map would be made at every start.
type options []struct {
	name       string
	takesValue bool
}

func (known options) find(name string) (takesValue, ok bool) {
	for _, o := range known {
		if o.name == name {
			return o.takesValue, true
		}
	}
	return false, false
}

// makers are the commands that make a container.
var makers = []string{"create", "run", "restore"}

// IsMaker reports whether a command makes a container.
func IsMaker(arg string) bool { return slices.Contains(makers, arg) }

// Parse parses a command line, without the program's name. It follows the rules of no
// single runtime: what they do not all read in the same way leaves a Doubt.
func Parse(args []string) Arguments {
	var a Arguments
	rest := a.options(args, globalOptions)
	if a.Doubt != nil {
		a.Makes = slices.ContainsFunc(args, IsMaker)
	} else if len(rest) > 0 {
		a.Makes = IsMaker(rest[0])
	}
	if !a.Makes {
		return a
	}
	a.ID = args[len(args)-1]
	if a.Doubt != nil {
		return a
	}
	if rest[0] == "restore" {
		a.Doubt = errors.New("a container with a closure cannot be restored from a checkpoint; create it anew")
		return a
	}
	var operands []string
	for rest = a.options(rest[1:], createOptions); len(rest) > 0; rest = a.options(rest[1:], createOptions) {
		operands = append(operands, rest[0])
	}
	switch {
	case a.Doubt != nil:
	case len(operands) != 1:
		a.Doubt = fmt.Errorf("%d arguments are no options, and the container's id alone is expected", len(operands))
	default:
		a.ID = operands[0]
	}
	return a
}

// options parses options, and returns the arguments from the first that is no option. In
// doubt, it returns nothing.
func (a *Arguments) options(args []string, known options) []string {
	for len(args) > 0 {
		arg := args[0]
		if len(arg) < 2 || arg[0] != '-' {
			return args
		}
		args = args[1:]
		name, value, inline := strings.Cut(arg, "=")
		takesValue, ok := known.find(name)
		if !ok || inline && !strings.HasPrefix(name, "--") {
			a.Doubt = fmt.Errorf("option %s: not every runtime would read it alike; write --bundle and other "+
				"long options, of those that this version knows, before the container's id", arg)
			return nil
		}
		if takesValue && !inline {
			if len(args) == 0 || strings.HasPrefix(args[0], "-") {
				a.Doubt = fmt.Errorf("option %s: has no value, or one that begins with a hyphen; "+
					"write %s=VALUE", arg, name)
				return nil
			}
			value, args = args[0], args[1:]
		}
		switch name {
		case "--bundle", "-b":
			a.Bundle = value
		case "--root":
			a.Root = value
		case "--preserve-fds":
			a.PreserveFDs = value
		case "--log":
			a.Log = value
		case "--log-format":
			a.LogFormat = value
		}
	}
	return nil
}
