// SPDX-License-Identifier: Apache-2.0

// Package config reads the node's configuration, /etc/nix-closure/config.toml.
// Every key has a default, and so has the file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/nix-closure/nix-closure/closure"
)

// Path is where the configuration is if nobody says otherwise.
const Path = "/etc/nix-closure/config.toml"

// Config is the node's configuration.
type Config struct {
	StoreDir   string `toml:"store-dir"`
	StateDir   string `toml:"state-dir"`
	RuntimeDir string `toml:"runtime-dir"`
	LogFile    string `toml:"log-file"`
	Mode       string `toml:"mode"`
	NixStore   string `toml:"nix-store"` // empty: the usual places
	Substitute bool   `toml:"substitute"`
	MaxPaths   int    `toml:"max-paths"`
	Runtime    string `toml:"runtime"`
	Allow      []any  `toml:"allow"`
}

// Default is the configuration of a host without a file.
func Default() Config {
	return Config{
		StoreDir:   "/nix/store",
		StateDir:   "/nix/var/nix",
		RuntimeDir: "/run/nix-closure",
		LogFile:    "/var/log/nix-closure.log",
		Mode:       "auto",
		MaxPaths:   50000,
		Runtime:    "runc",
	}
}

// Store is the Nix store that the configuration names.
func (c Config) Store() closure.Store {
	return closure.Store{Dir: c.StoreDir, StateDir: c.StateDir}
}

// Read reads the configuration in path. Where path is the default one, it need
// not exist.
func Read(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if path == Path && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, err
	}
	c, err := Parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads the text of a configuration. A key that it does not know is an
// error: a typing mistake must not weaken anything.
func Parse(text []byte) (Config, error) {
	c := Default()
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			row, _ := strict.Errors[0].Position()
			return Config{}, fmt.Errorf("line %d: unknown key %q", row, strings.Join(strict.Errors[0].Key(), "."))
		}
		var decode *toml.DecodeError
		if errors.As(err, &decode) {
			row, _ := decode.Position()
			return Config{}, fmt.Errorf("line %d: %w", row, err)
		}
		return Config{}, err
	}
	return c, c.check()
}

// mostPaths is more than any store has.
const mostPaths = 10_000_000

// notInMountOptions are the characters that overlay's options give a meaning to.
const notInMountOptions = ":,\\\"\n"

func (c Config) check() error {
	for _, p := range []struct {
		key, path   string
		mountOption bool
	}{
		{"store-dir", c.StoreDir, true},
		{"state-dir", c.StateDir, false},
		{"runtime-dir", c.RuntimeDir, true},
		{"log-file", c.LogFile, false},
	} {
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path || p.path == "/" {
			return fmt.Errorf("%s = %q: not an absolute path without `.`, `..` or a slash too many", p.key, p.path)
		}
		if p.mountOption && strings.ContainsAny(p.path, notInMountOptions) {
			return fmt.Errorf("%s = %q: has a colon, comma, backslash, quote or line break, which a mount option cannot carry", p.key, p.path)
		}
	}
	if c.NixStore != "" && !filepath.IsAbs(c.NixStore) {
		return fmt.Errorf("nix-store = %q: not an absolute path", c.NixStore)
	}
	switch c.Mode {
	case "auto", "overlay", "bind":
	default:
		return fmt.Errorf("mode = %q: not one of auto, overlay, bind", c.Mode)
	}
	if c.Substitute {
		return errors.New("substitute = true: fetching is not something that this version does; realise roots before the container starts")
	}
	if len(c.Allow) > 0 {
		return errors.New("[[allow]]: this version does not enforce a policy, and starts nothing rather than everything")
	}
	if c.MaxPaths < 1 || c.MaxPaths > mostPaths {
		return fmt.Errorf("max-paths = %d: not a number from 1 to %d", c.MaxPaths, mostPaths)
	}
	return nil
}
