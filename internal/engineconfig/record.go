// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
)

// errNotDir is from below a path that is a file.
var errNotDir = syscall.ENOTDIR

// Records is the directory in which install remembers what it changed: for each engine
// a file with what the files were before.
type Records string

// SystemRecords are root's.
const SystemRecords Records = "/etc/nix-closure/installed"

// record is what install did to one engine. It is written before anything is changed.
type record struct {
	Files []recorded `json:"files"`
	Dirs  []string   `json:"directories"` // that install made, the deepest first
}

type recorded struct {
	Path string `json:"path"`
	// Wrote is what install wrote; Before what was there before its first change, and
	// null where nothing was.
	Wrote  []byte  `json:"wrote"`
	Before *[]byte `json:"before"`
	// The file's own, before.
	Mode fs.FileMode `json:"mode,omitempty"`
	UID  int         `json:"uid,omitempty"`
	GID  int         `json:"gid,omitempty"`
}

func (r Records) path(engine string) string { return filepath.Join(string(r), engine+".json") }

func (r Records) read(engine string) (rec record, _ error) {
	text, err := os.ReadFile(r.path(engine))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(text, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w", r.path(engine), err)
	}
	return rec, nil
}

func (rec *record) find(path string) *recorded {
	for i := range rec.Files {
		if rec.Files[i].Path == path {
			return &rec.Files[i]
		}
	}
	return nil
}

// Check completes a plan: it takes out what is done already, and refuses a plan that
// would replace a file that is not install's own.
func (r Records) Check(p *Plan) error {
	rec, err := r.read(p.Engine)
	if err != nil {
		return err
	}
	p.settle()
	for _, c := range p.Changes {
		if !c.whole || c.Before == nil {
			continue
		}
		was := rec.find(c.Path)
		switch {
		case was == nil:
			return fmt.Errorf("%s is there and was not written by `nix-closure install %s`; "+
				"compare it with what is printed, remove it, and install again", c.Path, p.Engine)
		case !bytes.Equal(was.Wrote, c.Before):
			return fmt.Errorf("%s was changed since `nix-closure install %s` wrote it; "+
				"compare it with what is printed, remove it, and install again", c.Path, p.Engine)
		}
	}
	return nil
}

// Apply carries out a plan that Check has passed, and remembers what was before.
func (r Records) Apply(p Plan) error {
	rec, err := r.read(p.Engine)
	if err != nil {
		return err
	}
	for _, c := range p.Changes {
		if was := rec.find(c.Path); was != nil {
			was.Wrote = c.After
			continue
		}
		new := recorded{Path: c.Path, Wrote: c.After}
		if c.Before != nil {
			new.Before = &c.Before
			info, err := os.Stat(c.Path)
			if err != nil {
				return err
			}
			new.Mode = info.Mode().Perm()
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				new.UID, new.GID = int(st.Uid), int(st.Gid)
			}
		}
		rec.Files = append(rec.Files, new)
	}
	if len(p.Changes) == 0 {
		return nil
	}
	for _, path := range append([]string{r.path(p.Engine)}, paths(p.Changes)...) {
		made, err := makeDirs(path)
		if err != nil {
			return err
		}
		for _, dir := range made {
			if !slices.Contains(rec.Dirs, dir) {
				rec.Dirs = append(rec.Dirs, dir)
			}
		}
	}
	if err := r.write(p.Engine, rec); err != nil {
		return err
	}
	for _, c := range p.Changes {
		if err := c.apply(); err != nil {
			return err
		}
	}
	return nil
}

func paths(changes []Change) (all []string) {
	for _, c := range changes {
		all = append(all, c.Path)
	}
	return all
}

func (r Records) write(engine string, rec record) error {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	// What the files were before may be secret.
	return writeFile(r.path(engine), append(text, '\n'), 0o600)
}

// Undo plans the way back: every file as it was before install's first change.
func (r Records) Undo(engine string) (Plan, error) {
	plan := Plan{Engine: engine}
	rec, err := r.read(engine)
	if err != nil {
		return plan, err
	}
	for _, f := range rec.Files {
		now, err := readRegular(f.Path)
		if err != nil {
			return plan, err
		}
		var before []byte
		if f.Before != nil {
			before = append([]byte{}, *f.Before...)
		}
		// Somebody undid it already, or it never came to be written.
		if (now == nil) == (f.Before == nil) && bytes.Equal(now, before) || now == nil && f.Before == nil {
			continue
		}
		if !bytes.Equal(now, f.Wrote) {
			plan.Changes = []Change{{Path: f.Path, Before: f.Wrote, After: before}}
			return plan, fmt.Errorf("%s was changed since `nix-closure install %s` wrote it, and nothing is undone; "+
				"make the change that is printed by hand, remove the file's entry from %s, and try again",
				f.Path, engine, r.path(engine))
		}
		plan.Changes = append(plan.Changes, Change{Path: f.Path, Before: now, After: before})
	}
	plan.settle()
	return plan, nil
}

// ApplyUndo carries out what Undo planned, and forgets the engine.
func (r Records) ApplyUndo(p Plan) error {
	rec, err := r.read(p.Engine)
	if err != nil {
		return err
	}
	for _, c := range p.Changes {
		if err := c.apply(); err != nil {
			return err
		}
		if was := rec.find(c.Path); c.After != nil && was != nil {
			if err := errors.Join(os.Chmod(c.Path, was.Mode), os.Lchown(c.Path, was.UID, was.GID)); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(r.path(p.Engine)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Deepest first. What somebody else put something into stays.
	slices.SortFunc(rec.Dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range append(rec.Dirs, string(r)) {
		_ = os.Remove(dir)
	}
	return nil
}

// writeFile writes a file whole or not at all. A file that is there keeps its owner and
// mode; a new one has the mode that is given, whatever the umask.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return atomicfile.Replace(path, text)
	}
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text())
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	err := os.Chmod(temporary, mode)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return nil
}
