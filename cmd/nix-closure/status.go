// SPDX-License-Identifier: Apache-2.0

package main

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
