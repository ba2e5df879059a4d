// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/confine"
	"github.com/nix-closure/nix-closure/internal/program"
)

func confineCommand(configPath *string) *cobra.Command {
	var r confine.Rules
	var ports []uint
	var arguments closureArguments
	c := &cobra.Command{
		Use:   "confine ROOT... -- CMD [ARG...]",
		Short: "Run a command that may read and execute a closure, and nothing else",
		Long: `Run a command that may read and execute a closure, and nothing else: by Landlock, a
part of the kernel, without namespaces, mounts or privileges. The command and all that
it starts cannot open, list, write or execute any other file, not even /dev/null, cannot
connect to or listen on TCP ports, and cannot send signals to other processes. What is
open already stays open: standard input, output and error.

A ROOT is a store path, or a link to one. A CMD without a slash is looked for in the
roots' bin/. Nothing keeps the closure from Nix's garbage collector meanwhile but what
the collector sees the processes use; ./result is a GC root.

It does not hide that a file is there, nor the mounts and processes of the host, and does
not refuse what this kernel's Landlock does not know: see docs/cli.md.

Exit status: the command's; 127 where it is not found, 126 where it cannot be executed,
125 after any other error. Without Landlock, it is an error.`,
		Example: `  nix-closure confine ./result -- hello
  nix-closure confine --allow-read /etc/ssl --allow-connect 443 ./result -- curl https://example.org
  nix-closure confine --allow-read /dev --allow-write /dev/null --allow-write . ./result -- make`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range ports {
				if p > 1<<16-1 {
					return &statusError{program.ExitFailed, usage(cmd, "--allow-connect %d: no port", p)}
				}
				r.Connect = append(r.Connect, uint16(p))
			}
			roots, command := splitAtDash(cmd, args)
			if len(roots) == 0 || len(command) == 0 {
				err := usage(cmd, "write the roots, -- and the command")
				return &statusError{program.ExitFailed, err}
			}
			err := runConfined(cmd, *configPath, r, arguments, roots, command)
			return &statusError{program.ExitStatus(err), err}
		},
	}
	arguments.register(c, configPath)
	c.Flags().StringArrayVar(&r.Read, "allow-read", nil, "a file or directory that may be read too; may be repeated")
	c.Flags().StringArrayVar(&r.Write, "allow-write", nil, "a file or directory that may be read and written too")
	c.Flags().UintSliceVar(&ports, "allow-connect", nil, "a TCP port that may be connected to, on any host; and "+
		"UDP's, where the kernel would refuse it")
	c.Flags().BoolVar(&r.BestEffort, "best-effort", false, "on an older kernel (before Linux 6.12), refuse as much as "+
		"it can; still an error where that is nothing")
	return c
}

// splitAtDash returns what is before -- and what is after it.
func splitAtDash(cmd *cobra.Command, args []string) (before, after []string) {
	n := cmd.ArgsLenAtDash()
	if n < 0 {
		return args, nil
	}
	return args[:n], args[n:]
}

// runConfined becomes the command; it returns only with an error.
func runConfined(
	cmd *cobra.Command, configPath string, r confine.Rules, arguments closureArguments, roots, command []string,
) error {
	c, err := config.Read(configPath)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	r.Store = c.Store()
	names, err := arguments.parseRoots(cmd, r.Store, roots)
	if err != nil {
		return err
	}
	if r.Closure, err = lookUp(cmd.Context(), c, names); err != nil {
		return err
	}
	paths := storePaths(r.Store, names)
	path, err := program.Find(r.Store.Dir, paths, command[0])
	if err != nil {
		return err
	}
	if !program.InClosure(r.Store.Dir, r.Closure.Names, path) {
		return fmt.Errorf("%s: %w: it is not in the closure", path, program.ErrCannotRun)
	}
	environment := append(withoutVariable(os.Environ(), "PATH"), "PATH="+program.Path(paths))
	if err := r.Apply(); err != nil {
		return err
	}
	err = unix.Exec(path, command, environment)
	kind := program.ErrCannotRun
	if errors.Is(err, unix.ENOENT) {
		kind = program.ErrNotFound
	}
	return fmt.Errorf("%s: %w: %w", path, kind, err)
}

// withoutVariable is an environment without a variable.
func withoutVariable(environment []string, name string) []string {
	var left []string
	for _, v := range environment {
		if !strings.HasPrefix(v, name+"=") {
			left = append(left, v)
		}
	}
	return left
}
