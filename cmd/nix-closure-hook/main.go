// SPDX-License-Identifier: Apache-2.0

// Nix-closure-hook is the OCI hook. It is on every container's start path, so it
// links no database, command line framework or protocol.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/version"
)

const usage = `Usage: nix-closure-hook [--config FILE] STAGE

An OCI hook: gives a container with a nix-closure annotation exactly its closure
in /nix/store, or keeps it from starting. Called by podman, CRI-O or an OCI
runtime, which writes the container's state (for precreate: its config.json) to
standard input.

STAGE is one of %s.

  --config FILE   the configuration, instead of %s
  --version       print the version

By hand, to see whether annotations and mounts are accepted:
  echo '{"annotations":{"nix-closure/roots":"/nix/store/..."},"root":{"path":"rootfs"}}' |
      nix-closure-hook precreate
`

func main() {
	path, args := config.Path, os.Args[1:]
	if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
		fmt.Printf(usage, strings.Join(hook.Stages, ", "), config.Path)
		return
	}
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("nix-closure-hook", version.Version)
		return
	}
	if len(args) > 1 && args[0] == "--config" {
		path, args = args[1], args[2:]
	}
	if len(args) != 1 || !slices.Contains(hook.Stages, args[0]) {
		fmt.Fprintf(os.Stderr, "nix-closure: %q: not [--config FILE] and one of %s; see --help\n",
			os.Args[1:], strings.Join(hook.Stages, ", "))
		os.Exit(1)
	}
	if err := hook.Run(args[0], path, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if args[0] == "poststop" {
			return // a container's removal never fails for this
		}
		os.Exit(1)
	}
}
