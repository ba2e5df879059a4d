// SPDX-License-Identifier: Apache-2.0

// Package ociruntime finds runc or crun.
package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is where a runtime is that is on no PATH.
var defaultPath = []string{
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin",
}

// Lookup returns the absolute path of the runtime with a name: by PATH, which is the
// engine's or the operator's, and by which that would have found it, and then in the usual
// places. This program itself is not taken for it, whatever it is called.
func Lookup(name string) (string, error) {
	if filepath.IsAbs(name) {
		if err := runnable(name); err != nil {
			return "", fmt.Errorf("runtime = %q: %w", name, err)
		}
		return name, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("runtime = %q: neither a name nor an absolute path; name runc or crun", name)
	}
	//nolint:forbidigo // the environment is the engine's or the operator's, and no image's
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

// runnable tells why a path is not another program's.
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
