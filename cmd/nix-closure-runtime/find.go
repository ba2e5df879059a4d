// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// usualPlaces is where a runtime is that is on no PATH.
var usualPlaces = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin"}

// find returns the absolute path of the runtime with a name: by PATH, which is the
// engine's and by which the engine would have found it, and then in the usual
// places. This program itself is not taken for it, whatever it is called.
func find(name string) (string, error) {
	if filepath.IsAbs(name) {
		if isSelf(name) {
			return "", fmt.Errorf("runtime = %q is nix-closure-runtime itself; name runc or crun", name)
		}
		return name, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("runtime = %q is neither a name nor an absolute path; name runc or crun", name)
	}
	//nolint:forbidigo // the environment is the engine's, and no image's
	if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) && !isSelf(path) {
		return path, nil
	}
	for _, dir := range usualPlaces {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) == nil && !isSelf(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("runtime = %q is neither on PATH nor in the usual places; name it by its absolute path", name)
}

func isSelf(path string) bool {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false // no runtime starts without /proc
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(self, other)
}
