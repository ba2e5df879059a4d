// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/internal/config"
)

// closureArguments reads the closure arguments of a command.
type closureArguments struct{ print bool }

// register gives a command with closure arguments the option --print-roots and
// completion.
func (a *closureArguments) register(c *cobra.Command, configPath *string) {
	c.Flags().BoolVar(&a.print, "print-roots", false,
		"say on standard error which store path each argument became")
	c.ValidArgsFunction = func(
		cmd *cobra.Command, _ []string, begun string,
	) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completeStorePath(cmd, *configPath, begun)
	}
}

// parse returns the store paths that the arguments of a command mean.
func (a *closureArguments) parse(
	cmd *cobra.Command, store closure.Store, arguments []string,
) ([]closure.BaseName, error) {
	names := make([]closure.BaseName, len(arguments))
	for i, argument := range arguments {
		name, err := parseArgument(store, argument)
		if err != nil {
			return nil, err
		}
		if names[i] = name; a.print {
			if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s is %s\n", argument, store.Path(name)); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// parseRoots is parse, with each store path once.
func (a *closureArguments) parseRoots(
	cmd *cobra.Command, store closure.Store, arguments []string,
) ([]closure.BaseName, error) {
	names, err := a.parse(cmd, store, arguments)
	var roots []closure.BaseName
	for _, name := range names {
		if !slices.Contains(roots, name) {
			roots = append(roots, name)
		}
	}
	return roots, err
}

// parseArgument returns the store path that a closure argument means. A path in the
// store directory is taken by its text alone, as an annotation is; links are followed
// until they lead there, and no further: the link /nix/store/…-env/bin/sh means …-env.
//
// Whoever types the argument is trusted. Never call it with a container's words.
func parseArgument(store closure.Store, argument string) (closure.BaseName, error) {
	if argument == "" {
		return "", errors.New("an empty argument: name a store path or a link to one")
	}
	if strings.HasPrefix(argument, store.Dir+"/") {
		return store.Parse(argument)
	}
	path := argument
	if !filepath.IsAbs(path) {
		dir, err := os.Getwd()
		if err != nil {
			return "", fmt.Errorf("%q: %w", argument, err)
		}
		path = dir + "/" + path
	}
	name, err := followIntoStore(store, path)
	if err != nil {
		return "", fmt.Errorf("%q: %w", argument, err)
	}
	return name, nil
}

// maxLinks is how many links the kernel follows in one path.
const maxLinks = 40

// followIntoStore walks an absolute path, one component after the other, until it is in
// the store directory.
func followIntoStore(store closure.Store, path string) (closure.BaseName, error) {
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		component := rest[0]
		rest = rest[1:]
		switch component {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		if at == store.Dir {
			return store.ParseExact(at + "/" + component)
		}
		next := filepath.Join(at, component)
		info, err := os.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "follow", Path: next, Err: unix.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return "", fmt.Errorf("%s is %w %s", at, closure.ErrOutside, store.Dir)
}

// mostCompletions bounds what is offered to a shell, which takes its time with each.
const mostCompletions = 5000

// completeStorePath offers the valid store paths that begin with what was typed. For
// anything else, and below a store path, the shell completes file names.
func completeStorePath(
	cmd *cobra.Command, configPath, begun string,
) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, err := config.Read(configPath)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	base, ok := strings.CutPrefix(begun, c.StoreDir+"/")
	if !ok || strings.Contains(base, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	snapshot, err := nixdb.Open(cmd.Context(), c.Store())
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	defer func() { _ = snapshot.Close() }()
	names, err := snapshot.Begin(cmd.Context(), base, mostCompletions+1)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	// The shell inserts what all offers have in common: a part of them would mislead it.
	if len(names) > mostCompletions {
		hint := fmt.Sprintf("more than %d store paths begin so: type more", mostCompletions)
		return cobra.AppendActiveHelp(nil, hint), cobra.ShellCompDirectiveNoFileComp
	}
	paths := make([]cobra.Completion, len(names))
	for i, name := range names {
		paths[i] = c.Store().Path(name)
	}
	return paths, cobra.ShellCompDirectiveNoFileComp
}
