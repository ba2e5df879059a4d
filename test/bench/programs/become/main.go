// SPDX-License-Identifier: Apache-2.0

// Command become does nothing but to become the program that its first argument names:
// what a runtime's wrapper cannot cost less than.
package main

import (
	"os"
	"syscall"
)

func main() {
	_ = syscall.Exec(os.Args[1], os.Args[1:], nil) // which returns only if it fails
	os.Exit(1)
}
