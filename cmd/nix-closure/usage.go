// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
)

// exitUsage is the exit status for a command line that is not understood.
const exitUsage = 2

// usageError says that a command line is not understood.
type usageError struct {
	command string // whose --help says more; empty: the error says it all
	err     error
}

func (e *usageError) Error() string {
	if e.command == "" {
		return e.err.Error()
	}
	return fmt.Sprintf("%s; see %s --help", e.err, e.command)
}

func (e *usageError) Unwrap() error { return e.err }

// usage makes a usageError of a command.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

// misuse makes a usageError that no help says more of.
func misuse(err error) error { return &usageError{err: err} }

// statusError is an error with an exit status of its own; without an error, there is
// nothing to say.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return fmt.Sprint(e.err) }

func (e *statusError) Unwrap() error { return e.err }

// report writes an error as one line, and returns the exit status that it has.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var own *statusError
	if errors.As(err, &own) && own.err == nil {
		return own.status
	}
	// Where standard error is gone, the exit status remains.
	_, _ = fmt.Fprintf(stderr, "nix-closure: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	var misused *usageError
	switch {
	case own != nil:
		return own.status
	case errors.As(err, &misused):
		return exitUsage
	case errors.Is(err, closure.ErrNotValid):
		return closure.ExitNotValid
	}
	return 1
}

// markUsage makes usageErrors of what cobra says of flags and arguments.
func markUsage(c *cobra.Command) {
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%w", err) })
	arguments := c.Args
	if arguments == nil {
		arguments = cobra.ArbitraryArgs
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args)
		if err == nil {
			err = errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups())
		}
		var misused *usageError
		if err == nil || errors.As(err, &misused) {
			return err
		}
		return usage(cmd, "%w", err)
	}
	for _, sub := range c.Commands() {
		markUsage(sub)
	}
}

// knownCommand is called with what follows the program's name if no command has it.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		meant = ", did you mean " + strings.Join(like, " or ") + "?"
	}
	return usage(cmd, "unknown command %q%s", args[0], meant)
}
