// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// whereMissing says what an engine does where a program of ours is missing.
type whereMissing struct {
	severity    Severity
	consequence string
	fix         []string
	advice      string
}

// program looks at a program that an engine starts: the hook, or the wrapper. kind is the
// name that it was built by.
func (e *exam) program(engine, path, kind string, missing whereMissing) {
	if path == filepath.Join(e.programs(), kind) {
		// To name it once more does not mend it.
		missing.fix, missing.advice = nil, "install this program's files anew, by its package or `make install`"
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		e.find(Finding{
			ID: "program-missing", Severity: missing.severity, Engine: engine,
			What: "the program " + path + " is not there", Consequence: missing.consequence, Fix: missing.fix,
			Advice: missing.advice,
		})
		return
	}
	if err != nil {
		e.unknown(engine, "looking for "+path, err)
		return
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		e.find(Finding{
			ID: "program-mode", Severity: Closed, Engine: engine,
			What:        fmt.Sprintf("%s cannot be started (mode %s)", path, info.Mode()),
			Consequence: "no container with an annotation starts",
			Fix:         []string{"chmod 0755 " + quote(path)},
		})
		return
	}
	e.trusted(engine, path)
	e.isOurs(engine, path, kind, missing)
	e.beside(engine, filepath.Dir(realPath(path)), kind)
}

// isOurs makes sure that a program is what its name says. It is not started for that.
func (e *exam) isOurs(engine, path, kind string, missing whereMissing) {
	info, err := buildinfo.ReadFile(path)
	if err == nil && strings.HasSuffix(info.Path, "/cmd/"+kind) {
		return
	}
	f, openErr := os.Open(path)
	if openErr != nil {
		e.unknown(engine, "reading "+path, openErr)
		return
	}
	defer f.Close()
	head := make([]byte, 4)
	if _, readErr := f.Read(head); readErr == nil && bytes.HasPrefix(head, []byte("#!")) {
		e.unknown(engine, path, errors.New("a script, which may or may not end in "+kind))
		return
	}
	e.find(Finding{
		ID: "program-other", Severity: Open, Engine: engine,
		What:        fmt.Sprintf("%s is another program, not %s", path, kind),
		Consequence: "containers with an annotation start without their closure",
		Fix:         missing.fix, Advice: missing.advice,
	})
}

// beside makes sure that the programs that one of ours starts are beside it.
func (e *exam) beside(engine, dir, kind string) {
	needs := []string{"nix-closure"}
	if kind != engineconfig.HookProgram {
		needs = append(needs, engineconfig.HookProgram)
	}
	for _, name := range needs {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			e.trusted(engine, path)
			continue
		}
		var fix []string
		if from := filepath.Join(e.programs(), name); from != path {
			fix = []string{fmt.Sprintf("install -m 0755 %s %s", quote(from), quote(path))}
		} else if err == nil {
			fix = []string{"chmod 0755 " + quote(path)}
		}
		e.find(Finding{
			ID: "program-apart", Severity: Closed, Engine: engine,
			What:        fmt.Sprintf("%s is not beside %s, in %s", name, kind, dir),
			Consequence: "a container whose closure is not remembered does not start",
			Fix:         fix, Advice: "install all programs of one version into one directory",
		})
	}
}

func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// trusted makes sure that nobody but root, or the user whose podman it is, can replace a file:
// not the file, no directory above it and no link that leads to it.
func (e *exam) trusted(engine, path string) {
	for links := 0; links < 40; links++ {
		for p := path; ; p = filepath.Dir(p) {
			if !e.owned(engine, p, path) {
				return
			}
			if p == "/" {
				break
			}
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || real == path {
			return
		}
		path = real
	}
}

// owned looks at one file, directory or link.
func (e *exam) owned(engine, path, of string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	var who, fix string
	mode := st.Mode & 0o7777
	switch {
	case st.Uid != 0 && int(st.Uid) != e.owner:
		who, fix = fmt.Sprintf("user %d, its owner,", st.Uid), "chown -h root:root "+quote(path)
	case info.Mode()&fs.ModeSymlink != 0:
		return true
	// In a directory with the sticky bit each can replace what is theirs only.
	case info.IsDir() && mode&0o1000 != 0:
		return true
	case mode&0o022 != 0:
		who, fix = fmt.Sprintf("others than its owner (mode %04o)", mode), "chmod go-w "+quote(path)
	default:
		return true
	}
	what := who + " can change " + path
	if path != of {
		what += ", where " + filepath.Base(of) + " is"
	}
	e.find(Finding{
		ID: "writable", Severity: Open, Engine: engine, What: what,
		Consequence: "they can have every container start without its closure, and " +
			"whatever they write runs with the engine's rights",
		Fix: []string{fix},
	})
	return false
}
