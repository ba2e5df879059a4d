// SPDX-License-Identifier: Apache-2.0

// Nix-closure-runtime is an OCI runtime that becomes another, runc or crun, and
// before it does, adds nix-closure-hook to the containers that ask for a closure.
// Engines that have no hooks of their own can name it as their runtime.
package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
)

// The runtime is to be what the engine started: what a thread has of its own, such
// as the signal for its parent's death, only this one has.
func init() { runtime.LockOSThread() }

func main() {
	args := os.Args[1:]
	a := parse(args)
	c, err := config.Read(config.Path)
	if err != nil && a.Makes {
		a.fail("reading the configuration", err)
	}
	if err != nil {
		// What is there can be stopped and removed all the same.
		c = config.Default()
	}
	program, err := a.choose(args, c.Runtime)
	if err != nil {
		a.fail("looking for the runtime", err)
	}
	if err := a.prepare(args); err != nil {
		a.fail("reading the command line", err)
	}
	// From here on there is nothing of this program but its arguments and
	// environment, which are the runtime's.
	err = unix.Exec(program, append([]string{program}, args...), environment())
	a.fail("becoming "+program, err)
}

// environment is what this program was started with, byte for byte: of a variable
// that is there twice, os.Environ has one.
func environment() []string {
	text, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return os.Environ()
	}
	all := strings.Split(string(text), "\x00")
	return all[:len(all)-1]
}

// prepare rewrites the config.json of a container that asks for a closure, and
// leaves any other alone.
func (a arguments) prepare(args []string) error {
	if !a.Makes {
		return nil
	}
	if a.Doubt == nil {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return hook.AddHooks(config.Path, a.ID, a.Bundle, filepath.Join(filepath.Dir(self), "nix-closure-hook"))
	}
	for _, file := range configFiles(args) {
		if annotated, err := hook.HasAnnotations(file); err != nil {
			return err
		} else if annotated {
			return a.Doubt
		}
	}
	return nil
}

func (a arguments) fail(doing string, err error) {
	err = hook.Failure(a.ID, doing, err)
	hook.LogFailure(config.Path, err)
	a.report(err)
	os.Exit(1)
}
