// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
)

// Plan is what install or its undoing changes.
type Plan struct {
	Engine  string
	Changes []Change
	// Notes are for the person who installs.
	Notes []string
}

// The commands after which engines have a change in force. podman needs none.
const (
	RestartContainerd = "systemctl restart containerd"
	RestartCRIO       = "systemctl restart crio"
	ReloadDocker      = "systemctl reload docker"
)

// Change is what becomes of one file. Nil is a file that is not there.
type Change struct {
	Path          string
	Before, After []byte
	// whole: the file is install's own, from its first byte to its last.
	whole bool
}

// create plans a file of install's own.
func (p *Plan) create(path string, text []byte) error {
	before, err := readRegular(path)
	if err != nil {
		return err
	}
	p.Changes = append(p.Changes, Change{Path: path, Before: before, After: text, whole: true})
	return nil
}

// edit plans a change of a file that belongs to somebody else.
func (p *Plan) edit(path string, before, after []byte) {
	p.Changes = append(p.Changes, Change{Path: path, Before: before, After: after})
}

// readRegular reads a file that install may replace. Nil: there is none.
func readRegular(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file (%s), so that it is not replaced: who made it, "+
			"such as a NixOS module, must make the change", path, info.Mode().Type())
	}
	text, err := os.ReadFile(path)
	if text == nil {
		text = []byte{}
	}
	return text, err
}

// settle takes out what is as it should be, and puts the rest in order.
func (p *Plan) settle() {
	p.Changes = slices.DeleteFunc(p.Changes, func(c Change) bool {
		return (c.Before == nil) == (c.After == nil) && bytes.Equal(c.Before, c.After)
	})
	slices.SortFunc(p.Changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
}

// Diff is the plan as a unified diff, for patch -p1 -d /.
func (p Plan) Diff() string {
	var b strings.Builder
	for _, c := range p.Changes {
		from, to := "a"+c.Path, "b"+c.Path
		if c.Before == nil {
			from = "/dev/null"
		}
		if c.After == nil {
			to = "/dev/null"
		}
		b.WriteString(udiff.Unified(from, to, string(c.Before), string(c.After)))
	}
	return b.String()
}

// apply changes one file. A file that is there keeps its owner and mode.
func (c Change) apply() error {
	now, err := readRegular(c.Path)
	if err != nil {
		return err
	}
	if (now == nil) != (c.Before == nil) || !bytes.Equal(now, c.Before) {
		return fmt.Errorf("%s was changed by somebody else in the meantime; start again", c.Path)
	}
	if c.After == nil {
		return os.Remove(c.Path)
	}
	return writeFile(c.Path, c.After, 0o644) // rootless engines read it too
}

// makeDirs makes the directories above a file, and returns those that it made,
// the deepest first.
func makeDirs(path string) (made []string, _ error) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		made = append(made, dir)
	}
	for _, dir := range slices.Backward(made) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		// Engines of every user read what is there, whatever the umask.
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return made, nil
}
