// SPDX-License-Identifier: Apache-2.0

// Command become executes another program: what a wrapper costs that does nothing.
//
//	become PROGRAM [ARGUMENT…]
package main

import (
	"os"
	"syscall"
)

func main() {
	if syscall.Exec(os.Args[1], os.Args[1:], os.Environ()) != nil {
		os.Exit(1)
	}
}
