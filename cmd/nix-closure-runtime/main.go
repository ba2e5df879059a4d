// SPDX-License-Identifier: Apache-2.0

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Nix-closure-runtime is an OCI runtime that executes another one, runc or crun. Before
// that, it adds nix-closure-hook to containers that ask for a closure. Engines without
// hooks of their own can use it as their runtime.
//
// Engines call it for every command on every container, so what it does for the others is
// little: it opens no poller, does not read its cgroup's limit of processors, and parses no
// config.json that mentions no annotation.
package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/nopoll"
)

// The runtime must run in the thread that the engine started, because only that thread
// has per-thread attributes such as the signal for the parent's death.
func init() { runtime.LockOSThread() }

func main() {
	args := os.Args[1:]
	a := parse(args)
	c, err := config.Read(config.Path)
	if err != nil && a.Makes {
		a.fail("reading the configuration", err)
	}
	if err != nil {
		// Existing containers can still be stopped and removed.
		c = config.Default()
	}
	program, err := a.choose(args, c.Runtime)
	if err != nil {
		a.fail("looking for the runtime", err)
	}
	if err := a.prepare(args); err != nil {
		a.fail("reading the command line", err)
	}
	// After this, only the arguments and the environment of this program remain, as the
	// runtime's own.
	err = unix.Exec(program, append([]string{program}, args...), environment())
	a.fail("becoming "+program, err)
}

// environment returns the environment of this program, byte for byte. os.Environ would
// drop the second of two variables with the same name.
func environment() []string {
	text, err := nopoll.ReadFile("/proc/self/environ", 0)
	if err != nil {
		return os.Environ()
	}
	all := strings.Split(string(text), "\x00")
	return all[:len(all)-1]
}

// prepare rewrites the config.json of a container that asks for a closure, and changes
// nothing for other containers.
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
