// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/spec"
)

// annotationsIn returns the annotations in a config.json.
func annotationsIn(file string) (map[string]string, error) {
	text, err := readConfig(file)
	if err != nil {
		return nil, err
	}
	annotations, err := spec.ParseConfigAnnotations(text)
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return annotations, err
}

func readConfig(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return spec.ReadLimited(f, spec.MaxConfig)
}

// calledWith returns the annotations that a config.json has the hook called with, as a
// CDI device's are.
func calledWith(file string) (map[string]string, error) {
	text, err := readConfig(file)
	if err != nil {
		return nil, err
	}
	var c struct {
		Hooks map[string][]struct {
			Path string   `json:"path"`
			Args []string `json:"args"`
		} `json:"hooks"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s: hooks: %w", file, err)
	}
	all := map[string]string{}
	for _, hooks := range c.Hooks {
		for _, h := range hooks {
			if filepath.Base(h.Path) != "nix-closure-hook" {
				continue
			}
			for i, arg := range h.Args {
				value, ok := strings.CutPrefix(arg, "--annotation=")
				if !ok && arg == "--annotation" && i+1 < len(h.Args) {
					value, ok = h.Args[i+1], true
				}
				if key, value, isPair := strings.Cut(value, "="); ok && isPair {
					all[key] = value
				}
			}
		}
	}
	return all, nil
}

// checkAsked compares the record with what the container asks for, as its engine has it.
func (l *look) checkAsked() {
	r, file := l.record, l.record.Bundle+"/config.json"
	if l.Running != nil {
		file = l.Running.Config
	}
	asked, err := annotationsIn(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		l.note("what the engine has the container ask for was not compared: %v", err)
		return
	}
	if err != nil {
		l.unknown("reading the container's annotations: %v", err)
		return
	}
	called, err := calledWith(file)
	if err != nil {
		l.unknown("reading the container's hooks: %v", err)
		return
	}
	engine := r.Engine
	if engine == spec.UnknownEngine {
		engine = engineOf(r.Bundle, r.ID, asked)
	}
	all := map[string]string{}
	maps.Copy(all, asked)
	maps.Copy(all, called)
	const stop = "stop the container and start it again"
	request, err := spec.ParseAnnotations(l.host.Config.Store(), engine, r.ID, all)
	if err != nil {
		l.wrong(stop, "its annotations are not understood: %v", err)
		return
	}
	if request == nil {
		l.wrong(stop, "%s has no annotation of nix-closure, and the record says that it asked for %s", file,
			l.names(asRoots(r)))
		return
	}
	if difference := differs(request, r); difference != "" {
		l.wrong(stop, "the record is not what %s has the container ask for: %s", file, difference)
	}
	for _, root := range r.Roots {
		if !slices.Contains(request.Roots, root) && !l.mountsName(file, root) {
			l.wrong(stop, "the record has the root %s, which neither an annotation nor a mount in %s asks for",
				l.store.Path(root), file)
		}
	}
}

// asRoots are the store paths that a record names.
func asRoots(r *state.Record) []closure.BaseName {
	if r.ClosureInfo != "" {
		return append([]closure.BaseName{r.ClosureInfo}, r.Roots...)
	}
	return r.Roots
}

// differs says in what a record is not what was asked for, or nothing.
func differs(request *spec.Request, r *state.Record) string {
	for _, root := range request.Roots {
		if !slices.Contains(r.Roots, root) {
			return fmt.Sprintf("it lacks the root %s", root)
		}
	}
	switch {
	case request.ClosureInfo != r.ClosureInfo:
		return fmt.Sprintf("closure-info %q, not %q", r.ClosureInfo, request.ClosureInfo)
	case request.Writable != r.Writable:
		return fmt.Sprintf("writable %v, not %v", r.Writable, request.Writable)
	case request.Registration != (r.Registration != ""):
		return fmt.Sprintf("registration %v, not %v", r.Registration != "", request.Registration)
	case request.Listing == r.Unlisted():
		return fmt.Sprintf("listing %v, not %v", !r.Unlisted(), request.Listing)
	case request.Mode != "" && request.Mode != spec.ModeAuto && request.Mode != r.Mode:
		return fmt.Sprintf("mode %s, not %s", r.Mode, request.Mode)
	}
	return ""
}

// mountsName tells whether a mount in config.json names a store path, by its source or by
// where it goes. Where that cannot be told, it does not.
func (l *look) mountsName(file string, base closure.BaseName) bool {
	text, err := readConfig(file)
	if err != nil {
		return false
	}
	c, err := spec.ParseConfig(text)
	if err != nil {
		return false
	}
	for _, m := range c.Mounts {
		source := m.Source
		if !filepath.IsAbs(source) {
			source = filepath.Join(l.record.Bundle, source)
		}
		names := []string{source, m.Destination}
		if real, err := filepath.EvalSymlinks(source); err == nil {
			names = append(names, real)
		}
		for _, name := range names {
			if b, err := l.store.Parse(filepath.Clean(name)); err == nil && b == base {
				return true
			}
		}
	}
	return false
}
