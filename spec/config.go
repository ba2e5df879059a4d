// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxConfig bounds a config.json, in bytes. A node's largest are some hundred
// kilobytes; 20,000 mounts are four megabytes.
const MaxConfig = 64 << 20

// Config is what this program reads of a config.json. Fields that it does not
// know are kept by Rewrite, and not looked at.
type Config struct {
	Root        string // root.path: absolute, or relative to the bundle
	Mounts      []specs.Mount
	Annotations map[string]string
	// MountLabel is linux.mountLabel, the SELinux label for what is mounted
	// for the container; mostly empty.
	MountLabel string
}

// ReadConfig reads a bundle's config.json.
func ReadConfig(bundle string) (Config, error) {
	path := filepath.Join(bundle, "config.json")
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	text, err := ReadLimited(f, MaxConfig)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ReadLimited reads all of r, and fails past max bytes.
func ReadLimited(r io.Reader, max int) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, int64(max)+1))
	if err == nil && len(text) > max {
		err = fmt.Errorf("larger than %d MiB", max>>20)
	}
	return text, err
}

// ParseConfig parses the text of a config.json.
func ParseConfig(text []byte) (Config, error) {
	fields, err := topLevel(text)
	if err != nil {
		return Config{}, err
	}
	var c Config
	var root specs.Root
	var linux struct {
		MountLabel string `json:"mountLabel"`
	}
	for _, f := range []struct {
		name string
		into any
	}{
		{"root", &root}, {"mounts", &c.Mounts}, {"annotations", &c.Annotations}, {"linux", &linux},
	} {
		if raw, ok := fields[f.name]; ok {
			if err := json.Unmarshal(raw, f.into); err != nil {
				return Config{}, fmt.Errorf("%s: not of the expected form: %w", f.name, err)
			}
		}
	}
	if root.Path == "" {
		return Config{}, errors.New("has no root.path")
	}
	c.Root, c.MountLabel = root.Path, linux.MountLabel
	return c, nil
}

// readFields are the fields of a config.json whose meaning matters here.
var readFields = [...]string{"root", "mounts", "annotations", "linux", "hooks"}

// topLevel takes a config.json apart. A field whose name differs from one that
// is read only by upper and lower case is refused: runtimes in Go would take it
// for the same field, those in C would not, and this program must see what the
// runtime sees.
func topLevel(text []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if fields == nil {
		return nil, errors.New("not a JSON object: null")
	}
	for name := range fields {
		for _, known := range readFields {
			if name != known && strings.EqualFold(name, known) {
				return nil, fmt.Errorf("field %q: some runtimes take it for %q and some do not", name, known)
			}
		}
	}
	return fields, nil
}
