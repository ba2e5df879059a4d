// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath are the directories of runtimes that are not on PATH.
var defaultPath = []string{
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin",
}

// choose returns the absolute path of the runtime for a command line.
//
// A container is made by the runtime that the configuration names, or not at all.
// Commands on an existing container go to the runtime that created it: the other does
// not know the container, and would remove what the first keeps of it. The creator also
// stops a running container when the configuration cannot be read or names no runtime.
func (a arguments) choose(args []string, configured string) (string, error) {
	if a.Makes {
		return lookupRuntime(configured)
	}
	made := a.madeBy(args)
	other := map[string]string{"runc": "crun", "crun": "runc"}[made]
	if other != "" && strings.Contains(filepath.Base(configured), other) {
		return lookupRuntime(made)
	}
	program, err := lookupRuntime(configured)
	if err != nil && made != "" {
		return lookupRuntime(made)
	}
	return program, err
}

// madeBy returns runc or crun, if one of them has a container whose ID is one of the
// arguments.
func (a arguments) madeBy(args []string) string {
	for _, id := range args {
		if id == "" || strings.HasPrefix(id, "-") || strings.HasPrefix(id, ".") || strings.Contains(id, "/") {
			continue
		}
		for _, r := range []struct{ name, keeps string }{{"runc", "state.json"}, {"crun", "status"}} {
			root := a.Root
			if root == "" {
				root = "/run/" + r.name
			}
			if _, err := os.Lstat(root + "/" + id + "/" + r.keeps); err == nil {
				return r.name
			}
		}
	}
	return ""
}

// lookupRuntime returns the absolute path of the runtime with this name. It searches PATH,
// which is the engine's, as the engine would, and then the usual directories. It never
// returns this program itself, under any name.
func lookupRuntime(name string) (string, error) {
	if filepath.IsAbs(name) {
		if err := runnable(name); err != nil {
			return "", fmt.Errorf("runtime = %q: %w", name, err)
		}
		return name, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("runtime = %q: neither a name nor an absolute path; name runc or crun", name)
	}
	//nolint:forbidigo // the environment is the engine's, and no image's
	if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) && runnable(path) == nil {
		return path, nil
	}
	for _, dir := range defaultPath {
		if path := filepath.Join(dir, name); runnable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("runtime = %q: neither on PATH nor in the usual places; name it by its absolute path", name)
}

// runnable reports why a path is not the path of another program.
func runnable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return errors.Unwrap(err) // without the path
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a file")
	}
	if self, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(self, st) {
		return errors.New("is nix-closure-runtime itself; name runc or crun")
	}
	return unix.Access(path, unix.X_OK)
}
