// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/nopoll"
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
	// UID and GID are the container's user, as the container numbers it.
	UID, GID uint32
	// Memory is the container's memory limit in bytes; 0 or less: none.
	Memory int64
	// MaskedPaths are what the runtime covers after the hooks.
	MaskedPaths []string
	// RootPropagates: linux.rootfsPropagation asks for mounts that propagate.
	RootPropagates bool
	// PIDs is the container's PID namespace: OwnPIDs, HostPIDs or the path of
	// another's.
	PIDs string
}

// What PIDs says that is no path.
const (
	OwnPIDs  = "own"
	HostPIDs = "host"
)

// ReadConfig reads a config.json.
func ReadConfig(path string) (Config, error) {
	f, err := nopoll.Open(path, unix.O_RDONLY, 0)
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

// ParseConfigAnnotations returns the annotations of a config.json, and looks at
// nothing else.
func ParseConfigAnnotations(text []byte) (map[string]string, error) {
	var c struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("not of the expected form: %w", err)
	}
	return c.Annotations, nil
}

// configText is what is read of a config.json, and no more: the decoder prepares itself
// for each field of each type, at every start.
type configText struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Mounts []struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	} `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Process     struct {
		User struct {
			UID uint32 `json:"uid"`
			GID uint32 `json:"gid"`
		} `json:"user"`
	} `json:"process"`
	Linux struct {
		MountLabel        string   `json:"mountLabel"`
		MaskedPaths       []string `json:"maskedPaths"`
		RootfsPropagation string   `json:"rootfsPropagation"`
		Namespaces        []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
		Resources struct {
			Memory struct {
				Limit int64 `json:"limit"`
			} `json:"memory"`
		} `json:"resources"`
	} `json:"linux"`
}

// ParseConfig parses the text of a config.json.
func ParseConfig(text []byte) (Config, error) {
	var c configText
	err := json.Unmarshal(text, &c)
	if err != nil || c.Root.Path == "" || oddCase(text) {
		if _, err := topLevel(text); err != nil {
			return Config{}, err
		}
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return Config{}, fmt.Errorf("not of the expected form: field %s is a JSON %s", wrong.Field, wrong.Value)
	}
	if err != nil {
		return Config{}, fmt.Errorf("not of the expected form: %w", err)
	}
	if c.Root.Path == "" {
		return Config{}, errors.New("has no root.path")
	}
	return c.config(), nil
}

// config is what this program makes of it.
func (c *configText) config() Config {
	var mounts []specs.Mount
	for _, m := range c.Mounts {
		mounts = append(mounts, specs.Mount{
			Destination: m.Destination, Type: m.Type, Source: m.Source, Options: m.Options,
		})
	}
	pids := HostPIDs
	for _, n := range c.Linux.Namespaces {
		if n.Type == "pid" {
			pids = cmp.Or(n.Path, OwnPIDs)
		}
	}
	return Config{
		MaskedPaths: c.Linux.MaskedPaths, PIDs: pids,
		RootPropagates: isPropagation(c.Linux.RootfsPropagation),
		Root:           c.Root.Path, Mounts: mounts, Annotations: c.Annotations, MountLabel: c.Linux.MountLabel,
		UID: c.Process.User.UID, GID: c.Process.User.GID, Memory: c.Linux.Resources.Memory.Limit,
	}
}

// oddCase tells whether the name of a field that is read may be there in another
// case, anywhere. It is a quick look that most texts pass.
func oddCase(text []byte) bool {
	lower := bytes.ToLower(text)
	for _, name := range readFields {
		quoted := []byte(`"` + name + `"`)
		if bytes.Count(lower, quoted) != bytes.Count(text, quoted) {
			return true
		}
	}
	// A letter may be written as an escape, or be one that only folds to it.
	return bytes.Contains(text, []byte(`\u`)) || bytes.Contains(text, []byte("\u017f"))
}

// readFields are the fields at the top of a config.json whose meaning matters
// here.
var readFields = [...]string{"root", "mounts", "annotations", "process", "linux", "hooks"}

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
