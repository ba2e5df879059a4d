// SPDX-License-Identifier: Apache-2.0

// Command become executes another program: what a wrapper costs that does nothing. The
// other one is what is there by its own name with ".to" at the end.
package main

import (
	"os"
	"syscall"
)

func main() {
	if syscall.Exec(os.Args[0]+".to", os.Args, os.Environ()) != nil {
		os.Exit(1)
	}
}
