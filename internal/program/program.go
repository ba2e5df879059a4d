// SPDX-License-Identifier: Apache-2.0

// Package program finds the programs of store paths, as a shell would whose PATH has the
// bin/ of each and nothing else.
package program

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit statuses for what could not be started, as of env(1), chroot(1) and podman-run(1).
const (
	ExitFailed    = 125 // before the command was looked at
	ExitCannotRun = 126 // it is there and cannot be started
	ExitNotFound  = 127
)

// Errors of a command that cannot be started.
var (
	ErrNotFound  = errors.New("not found")
	ErrCannotRun = errors.New("cannot be executed")
)

// ExitStatus is the exit status for an error.
func ExitStatus(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return ExitNotFound
	case errors.Is(err, ErrCannotRun):
		return ExitCannotRun
	}
	return ExitFailed
}

// Path is PATH for store paths: the bin/ of each that has one.
func Path(storePaths []string) string {
	var dirs []string
	for _, p := range storePaths {
		if st, err := os.Stat(p + "/bin"); err == nil && st.IsDir() {
			dirs = append(dirs, p+"/bin")
		}
	}
	return strings.Join(dirs, ":")
}

// Only returns the only program of a store path: the store path itself where that is an
// executable file, or what is in its bin/. Where there are more, the error has the list.
func Only(storePath string) (string, error) {
	st, err := os.Stat(storePath)
	if err != nil {
		return "", err
	}
	if st.Mode().IsRegular() {
		return storePath, check(storePath)
	}
	entries, err := os.ReadDir(storePath + "/bin")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var names []string
	for _, e := range entries {
		// A name with a dot in front is what a wrapper calls.
		if !strings.HasPrefix(e.Name(), ".") && check(storePath+"/bin/"+e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	switch len(names) {
	case 0:
		return "", fmt.Errorf("%s has no program in bin/; say which command to run, after --", storePath)
	case 1:
		return storePath + "/bin/" + names[0], nil
	}
	return "", fmt.Errorf("%s has more than one program: %s; say which, after --", storePath, strings.Join(names, " "))
}

// Find returns the program that a command means: one with a slash is a path, and is
// looked at only where it is in the store directory; any other is in the bin/ of one of
// the store paths.
func Find(storeDir string, storePaths []string, command string) (string, error) {
	if strings.Contains(command, "/") {
		if !strings.HasPrefix(command, storeDir+"/") {
			return command, nil
		}
		return command, check(command)
	}
	var found error
	for _, p := range storePaths {
		path := p + "/bin/" + command
		err := check(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, ErrCannotRun) {
			found = err
		}
	}
	if found != nil {
		return "", found
	}
	return "", fmt.Errorf("%s: %w in the bin/ of %s", command, ErrNotFound, strings.Join(storePaths, ", "))
}

// check tells why a file is no program.
func check(path string) error {
	st, err := os.Stat(path)
	if pathError := (*os.PathError)(nil); errors.As(err, &pathError) {
		err = pathError.Err // without the path
	}
	if err == nil && st.IsDir() {
		return fmt.Errorf("%s: %w: is a directory", path, ErrCannotRun)
	}
	if err == nil {
		err = unix.Access(path, unix.X_OK)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	return fmt.Errorf("%s: %w: %w", path, ErrCannotRun, err)
}

// InClosure tells whether a path is in one of the store paths of a closure, whose base
// names are sorted, or is not in the store directory at all.
func InClosure[T ~string](storeDir string, names []T, path string) bool {
	below, ok := strings.CutPrefix(filepath.Clean(path), storeDir+"/")
	if !ok {
		return true
	}
	name, _, _ := strings.Cut(below, "/")
	_, found := slices.BinarySearch(names, T(name))
	return found
}
