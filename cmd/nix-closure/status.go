// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/cobra"

// statusError is an exit status of a command's own, with or without an error to be
// printed.
type statusError struct {
	error
	status int
}

func (e *statusError) Error() string {
	if e.error == nil {
		return ""
	}
	return e.error.Error()
}

func (e *statusError) Unwrap() error { return e.error }

// statusUsage is the exit status for a command line that is not understood.
const statusUsage = 2

func misuse(err error) error { return &statusError{err, statusUsage} }

// flagsAreUsage has a command exit with statusUsage for flags that are not understood.
func flagsAreUsage(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misuse(err) })
}
