// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxStorePathsFile bounds what is read of a `store-paths` file, in bytes. It is enough for
// a quarter of a million paths of the greatest length that Nix allows.
const maxStorePathsFile = 64 << 20

// ReadInfo reads the `store-paths` file of a closure-info, the output of nixpkgs'
// closureInfo, and returns the store paths in it. It fails with TooLargeError if there are
// more than most.
//
// Every user who may add to the store can make a closure-info, so the file is hostile.
// ReadInfo guarantees, against its author, that it reads one regular file in the
// closure-info itself: it follows no symbolic link, does not wait on a FIFO, and reads at
// most 64 MiB. Every line must be a store path.
func ReadInfo(store Store, info BaseName, most int) ([]BaseName, error) {
	return readInfo(store, info, "store-paths", maxStorePathsFile, func(text io.Reader) ([]BaseName, error) {
		return ParseStorePaths(store, text, most)
	})
}

// readInfo reads a file of a closure-info with parse, at most max bytes of it.
func readInfo[T any](
	store Store, info BaseName, file string, max int64, parse func(io.Reader) ([]T, error),
) ([]T, error) {
	f, err := openInfo(store, info, file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	text := &io.LimitedReader{R: f, N: max + 1} // the file may grow after fstat
	var parsed []T
	if st.Size() <= max {
		parsed, err = parse(text)
	}
	if st.Size() > max || text.N == 0 {
		return nil, fmt.Errorf("%s: larger than %d MiB", f.Name(), max>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return parsed, nil
}

func openInfo(store Store, info BaseName, file string) (*os.File, error) {
	path := store.Path(info)
	name := path + "/" + file
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
	// O_NONBLOCK: opening a FIFO would wait, and the container's start with it.
	fd, err := unix.Openat(dir, file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%s: has no file `%s`, so it is not the output of nixpkgs' closureInfo", path, file)
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

// ParseStorePaths parses the text of a `store-paths` file: one store path a line, and at
// least one. An empty line, or a path below a store path, is an error. So are more than
// most paths (TooLargeError).
//
// ParseStorePaths does not notice a text that was cut off in the middle of the last name.
// The look-up of that path does.
func ParseStorePaths(store Store, text io.Reader, most int) ([]BaseName, error) {
	var names []BaseName
	lines := newLineReader(text)
	for {
		line, err := lines.next()
		last := errors.Is(err, io.EOF)
		if last && len(line) == 0 {
			break
		}
		if last {
			err = nil
		}
		var name BaseName
		if err == nil {
			name, err = store.ParseExact(string(line))
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", lines.number, err)
		}
		if len(names) == most {
			return nil, &TooLargeError{most}
		}
		names = append(names, name)
	}
	if names == nil {
		return nil, errors.New("lists no store path")
	}
	return names, nil
}
