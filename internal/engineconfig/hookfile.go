// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// HookFile is a hook file of podman or CRI-O, in version 1.0.0 of its form
// (oci-hooks(5)).
type HookFile struct {
	File    string `json:"-"`
	Version string `json:"version"`
	Hook    struct {
		Path string   `json:"path"`
		Args []string `json:"args,omitempty"`
		Env  []string `json:"env,omitempty"`
	} `json:"hook"`
	When struct {
		Always        *bool             `json:"always,omitempty"`
		Annotations   map[string]string `json:"annotations,omitempty"`
		Commands      []string          `json:"commands,omitempty"`
		HasBindMounts *bool             `json:"hasBindMounts,omitempty"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// HookFiles reads the hook files of directories as podman and CRI-O do: of two with
// the same name, the one of the later directory counts. unreadable has those that no
// engine can read, with the reason.
func HookFiles(dirs []string) (files []HookFile, unreadable map[string]error) {
	unreadable = map[string]error{}
	byName := map[string]HookFile{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				unreadable[dir] = err
			}
			continue
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".json" {
				continue
			}
			path := filepath.Join(dir, e.Name())
			f, err := readHookFile(path)
			if err != nil {
				unreadable[path] = err
				continue
			}
			byName[e.Name()] = f
		}
	}
	for _, f := range byName {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b HookFile) int { return strings.Compare(a.File, b.File) })
	return files, unreadable
}

// hookStages are those that podman and CRI-O know. CRI-O does not know precreate.
var hookStages = []string{
	"precreate", "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
}

func readHookFile(path string) (f HookFile, _ error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	f.File = path
	var version struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return f, err
	}
	if version.Version != "1.0.0" {
		return f, nil // the older form, which this program's files never had
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return f, err
	}
	for _, stage := range f.Stages {
		if !slices.Contains(hookStages, stage) {
			return f, fmt.Errorf("unknown stage %q", stage)
		}
	}
	for key, value := range f.When.Annotations {
		for _, pattern := range []string{key, value} {
			if _, err := regexp.Compile(pattern); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

// Ours tells whether the file calls this program's hook, or is meant to.
func (f HookFile) Ours() bool {
	return strings.Contains(filepath.Base(f.Hook.Path), "nix-closure") ||
		strings.Contains(filepath.Base(f.File), "nix-closure")
}

// Matches tells whether the engine calls the hook for a container with one annotation.
// Of a container with bind mounts and of one without, it is the one without.
func (f HookFile) Matches(key, value string) bool {
	matched := false
	if f.When.Always != nil {
		if !*f.When.Always {
			return false
		}
		matched = true
	}
	if f.When.HasBindMounts != nil {
		if *f.When.HasBindMounts {
			return false
		}
		matched = true
	}
	for keyPattern, valuePattern := range f.When.Annotations {
		k, keyErr := regexp.MatchString(keyPattern, key)
		v, valueErr := regexp.MatchString(valuePattern, value)
		if !k || !v || keyErr != nil || valueErr != nil {
			return false
		}
		matched = true
	}
	// Every command must match too; one that matches all is not worth knowing.
	return matched && len(f.When.Commands) == 0
}

// Stage is the stage for which the hook's program is called, by its arguments.
func (f HookFile) Stage() string {
	if len(f.Hook.Args) < 2 {
		return ""
	}
	return f.Hook.Args[len(f.Hook.Args)-1]
}

// Engine is the engine that the hook's program is told of.
func (f HookFile) Engine() string {
	for i, arg := range f.Hook.Args {
		if arg == "--engine" && i+1 < len(f.Hook.Args) {
			return f.Hook.Args[i+1]
		}
		if value, ok := strings.CutPrefix(arg, "--engine="); ok {
			return value
		}
	}
	return ""
}

// hookFiles are the hook files for an engine, by their paths. They are those of
// examples/podman and examples/cri-o, to the byte.
func hookFiles(dir, program, engine string) map[string][]byte {
	files := map[string][]byte{}
	for _, stage := range []string{"createRuntime", "poststop"} {
		path := fmt.Sprintf("%s/nix-closure-%s.json", dir, stage)
		files[path] = fmt.Appendf(nil, `{
  "version": "1.0.0",
  "hook": {
    "path": %s,
    "args": ["nix-closure-hook", "--engine", %q, %q],
    "env": ["GOMAXPROCS=1"]
  },
  "when": {
    "annotations": {
      "^([^/]+\\.)?nix-closure/(?s:.*)$": "^(?s:.*)$"
    }
  },
  "stages": [%q]
}
`, quoteJSON(program), engine, stage, stage)
	}
	return files
}

func quoteJSON(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(text)
}
