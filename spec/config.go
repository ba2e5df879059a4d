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

// MaxConfig bounds a config.json, in bytes. The largest of a node have some hundred
// kilobytes; 20,000 mounts have four megabytes.
const MaxConfig = 64 << 20

// Config is what this program reads of a config.json
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md). Rewrite keeps all
// other fields, and nothing looks at them.
type Config struct {
	Root        string // root.path: absolute, or relative to the bundle
	Mounts      []specs.Mount
	Annotations map[string]string
	// MountLabel is linux.mountLabel, the SELinux label of the container's mounts; mostly
	// empty.
	MountLabel string
	// UID and GID are the container's user (process.user), as the container numbers it.
	UID, GID uint32
	// Memory is the container's memory limit (linux.resources.memory.limit), in bytes; 0 or
	// less: no limit.
	Memory int64
	// MaskedPaths is linux.maskedPaths: the runtime covers these paths after the hooks.
	MaskedPaths []string
	// RootPropagates: linux.rootfsPropagation asks for mounts that propagate.
	RootPropagates bool
	// PIDs is the container's PID namespace: OwnPIDs, HostPIDs or the path of another one
	// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md#namespaces).
	PIDs string
}

// The values of PIDs that are not paths.
const (
	OwnPIDs  = "own"
	HostPIDs = "host"
)

// ReadConfig reads the config.json with this path. It fails for one larger than MaxConfig.
func ReadConfig(path string) (Config, error) {
	f, err := nopoll.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	text, err := nopoll.Read(int(f.Fd()), path, MaxConfig)
	if err != nil {
		return Config{}, err
	}
	if len(text) > MaxConfig {
		return Config{}, fmt.Errorf("%s: %w", path, tooLarge(MaxConfig))
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ReadLimited reads all of r, and fails after max bytes.
func ReadLimited(r io.Reader, max int) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, int64(max)+1))
	if err == nil && len(text) > max {
		err = tooLarge(max)
	}
	return text, err
}

func tooLarge(max int) error { return fmt.Errorf("larger than %d MiB", max>>20) }

// ParseConfigAnnotations returns the annotations of a config.json, and looks at nothing
// else in it.
func ParseConfigAnnotations(text []byte) (map[string]string, error) {
	var c struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("not of the expected form: %w", err)
	}
	return c.Annotations, nil
}

// configText has only the fields that are read. At every start, the decoder prepares itself
// for each field of each type.
type configText struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Mounts      []mountText       `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Process     struct {
		User struct {
			UID uint32 `json:"uid"`
			GID uint32 `json:"gid"`
		} `json:"user"`
	} `json:"process"`
	Linux struct {
		MountLabel        string          `json:"mountLabel"`
		MaskedPaths       []string        `json:"maskedPaths"`
		RootfsPropagation string          `json:"rootfsPropagation"`
		Namespaces        []namespaceText `json:"namespaces"`
		Resources         struct {
			Memory struct {
				Limit int64 `json:"limit"`
			} `json:"memory"`
		} `json:"resources"`
	} `json:"linux"`
}

type mountText struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
}

type namespaceText struct {
	Type string `json:"type"`
	Path string `json:"path"`
}

// ParseConfig parses the text of a config.json. It refuses a text that runtimes in Go and
// in C would read differently: see topLevel.
func ParseConfig(text []byte) (Config, error) {
	if c, ok := parsePlainConfig(text); ok && c.Root.Path != "" {
		return c.config(), nil
	}
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

// config returns what this program uses of c.
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

// oddCase reports whether the name of a field that is read may occur in another case,
// anywhere in the text. It is a quick check that most texts pass.
func oddCase(text []byte) bool {
	lower := bytes.ToLower(text)
	for _, name := range readFields {
		quoted := []byte(`"` + name + `"`)
		if bytes.Count(lower, quoted) != bytes.Count(text, quoted) {
			return true
		}
	}
	// A letter may be written as an escape, or be a letter that only folds to the one in
	// the name.
	return bytes.Contains(text, []byte(`\u`)) || bytes.Contains(text, []byte("\u017f"))
}

// readFields are the top-level fields of a config.json that this program reads.
var readFields = [...]string{"root", "mounts", "annotations", "process", "linux", "hooks"}

// topLevel splits a config.json into its top-level fields. It refuses a field whose name
// differs from one that is read only by upper and lower case. Runtimes in Go would take it
// for the same field, those in C would not, and this program must see what the runtime
// sees.
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
