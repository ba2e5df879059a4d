// SPDX-License-Identifier: Apache-2.0

// Nix-closure-hook is the OCI hook. It runs at every container's start, so it links no
// database, command line framework or protocol.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
	_ "github.com/nix-closure/nix-closure/internal/roomystack"
	"github.com/nix-closure/nix-closure/internal/version"
	"github.com/nix-closure/nix-closure/spec"
)

const usage = `Usage: nix-closure-hook [--config FILE] [--engine NAME] [--annotation KEY=VALUE]... STAGE

An OCI hook: gives a container with a nix-closure annotation exactly its closure
in /nix/store, or keeps it from starting. podman, CRI-O or an OCI runtime calls it,
and writes the container's state (for precreate: its config.json) to standard
input.

STAGE is one of %s.

  --config FILE            the configuration, instead of %s
  --engine NAME            the engine that calls the hook: podman, docker,
                           containerd or cri-o; it decides which pod annotations
                           are trusted
  --annotation KEY=VALUE   add to the container's annotations; may be repeated
  --version                print the version

To check by hand whether annotations and mounts are accepted:
  echo '{"annotations":{"nix-closure/roots":"/nix/store/..."},"root":{"path":"rootfs"}}' |
      nix-closure-hook precreate
`

func main() {
	args := os.Args[1:]
	if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
		fmt.Printf(usage, strings.Join(hook.Stages, ", "), config.Path)
		return
	}
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("nix-closure-hook", version.Version)
		return
	}
	call, err := parse(args)
	if err != nil {
		err = fmt.Errorf("nix-closure: %w; see --help", err)
		fmt.Fprintln(os.Stderr, err)
		hook.LogCall(call, err)
		os.Exit(1)
	}
	if err := hook.Run(call, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if call.Stage == "poststop" {
			return // this must not make a container's removal fail
		}
		os.Exit(1)
	}
}

// parse reads the command line. Package flag would cost more at start than three options
// are worth.
func parse(args []string) (hook.Call, error) {
	call := hook.Call{Config: config.Path}
	for len(args) > 1 {
		name, value, inline := strings.Cut(args[0], "=")
		args = args[1:]
		if !inline {
			value, args = args[0], args[1:]
		}
		switch name {
		case "--config":
			call.Config = value
		case "--engine":
			engine, err := spec.ParseEngine(value)
			if err != nil {
				return call, err
			}
			call.Engine = engine
		case "--annotation":
			key, value, ok := strings.Cut(value, "=")
			if _, there := call.Annotations[key]; !ok || there || !spec.Annotated(map[string]string{key: value}) {
				return call, fmt.Errorf("--annotation %q: not KEY=VALUE with a key of this program, each once", key)
			}
			if call.Annotations == nil {
				call.Annotations = map[string]string{}
			}
			call.Annotations[key] = value
		default:
			return call, fmt.Errorf("%q: not an option", name)
		}
	}
	if len(args) != 1 || !slices.Contains(hook.Stages, args[0]) {
		return call, fmt.Errorf("%q: the last argument is not one of %s", args, strings.Join(hook.Stages, ", "))
	}
	call.Stage = args[0]
	return call, nil
}
