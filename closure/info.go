// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxStorePathsFile bounds what is read of a `store-paths` file, in bytes:
// a quarter of a million paths of the greatest length that Nix allows.
const maxStorePathsFile = 64 << 20

// ReadInfo reads the `store-paths` of a closure-info, the output of nixpkgs'
// closureInfo, and returns the store paths that it lists.
//
// A closure-info is made by whoever may add to the store, so it is hostile: its
// own directory and the file in it are opened without following a symbolic
// link, the file must be a regular one, and every line must be a store path and
// nothing below one.
func ReadInfo(store Store, info BaseName) ([]BaseName, error) {
	f, err := openInfo(store, info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxStorePathsFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	if len(text) > maxStorePathsFile {
		return nil, fmt.Errorf("%s: larger than %d MiB", f.Name(), maxStorePathsFile>>20)
	}
	names, err := ParseStorePaths(store, string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return names, nil
}

func openInfo(store Store, info BaseName) (*os.File, error) {
	path := store.Path(info)
	name := path + "/store-paths"
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s: not a directory, so not the output of nixpkgs' closureInfo", path)
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%s: does not exist", path)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(dir)
	// O_NONBLOCK: a FIFO must not hold the container's start up.
	fd, err := unix.Openat(dir, "store-paths", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%s: has no file `store-paths`, so it is not the output of nixpkgs' closureInfo", path)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s: a symbolic link", name)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s: not a regular file", name), err)
	}
	return f, nil
}

// ParseStorePaths parses the text of a `store-paths` file: a store path a line.
// No line may be empty or name something below a store path, and there is at
// least one. That a list was cut off in the middle of a name is not seen here,
// but where the paths are looked up.
func ParseStorePaths(store Store, text string) ([]BaseName, error) {
	if text == "" {
		return nil, errors.New("lists no store path")
	}
	text = strings.TrimSuffix(text, "\n")
	names := make([]BaseName, 0, strings.Count(text, "\n")+1)
	for line := range strings.SplitSeq(text, "\n") {
		base, err := store.Parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(names)+1, err)
		}
		if line != store.Path(base) {
			return nil, fmt.Errorf("line %d: %q: below a store path, not one", len(names)+1, line)
		}
		names = append(names, base)
	}
	return names, nil
}
