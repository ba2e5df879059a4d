// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/nix-closure/nix-closure/closure"
)

// writeSystemd writes a drop-in, in the way of systemd.exec(5): a read-only tmpfs hides
// what is not bound again.
func (e exported) writeSystemd(w *bufio.Writer) error {
	lines := []string{"[Service]"}
	if e.view != "" {
		paths, err := systemdPaths(e.view, e.store.Dir)
		if err != nil {
			return err
		}
		lines = append(lines, "BindReadOnlyPaths="+paths)
	} else {
		dir, err := systemdPaths(e.store.Dir)
		if err != nil {
			return err
		}
		lines = append(lines, "TemporaryFileSystem="+dir+":ro")
		for _, name := range e.closure.Names {
			line, err := e.systemdLine(name)
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
	}
	e.comment(w)
	_, err := w.WriteString(strings.Join(lines, "\n") + "\n")
	return err
}

// systemdLine is the line of one store path. systemd follows a symlink that it binds: the
// service sees what is at its end in its place. Where that is not in the closure, it must
// not be seen.
func (e exported) systemdLine(name closure.BaseName) (string, error) {
	path := e.store.Path(name)
	mode, err := e.look(name)
	if err != nil {
		return "", err
	}
	if mode&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if to, err := e.store.Parse(target); err != nil || !slices.Contains(e.closure.Names, to) {
			_, err := fmt.Fprintf(e.stderr, "left out: %s is a symlink that leads out of the closure, "+
				"and systemd would follow it\n", path)
			return "# " + path + " is a symlink that leads out of the closure.", err
		}
	}
	line, err := systemdPaths(path)
	return "BindReadOnlyPaths=" + line, err
}

// systemdPaths is a word of a unit file: paths with a colon between them. systemd takes it
// apart twice, first into words and then at the colons, and takes off what quotes and
// backslashes there are the second time only.
func systemdPaths(paths ...string) (string, error) {
	quoted := ""
	for i, path := range paths {
		if strings.ContainsFunc(path, unicode.IsControl) {
			return "", fmt.Errorf("%q: has a control character, which a unit file cannot carry", path)
		}
		if i > 0 {
			quoted += ":"
		}
		quoted += strings.NewReplacer(`%`, `%%`, `\`, `\\`, `"`, `\"`, `'`, `\'`, `:`, `\:`).Replace(path)
	}
	if strings.ContainsFunc(quoted, unicode.IsSpace) {
		quoted = `"` + quoted + `"`
	}
	return quoted, nil
}
