// SPDX-License-Identifier: Apache-2.0

// Package config reads the node's configuration, /etc/nix-closure/config.toml. Every key
// has a default, and the file is optional.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/nopoll"
	"github.com/nix-closure/nix-closure/internal/policy"
	"github.com/nix-closure/nix-closure/spec"
)

// Path is the path of the configuration, unless --config names another.
const Path = "/etc/nix-closure/config.toml"

// Config is the node's configuration. docs/configuration.md describes the keys.
type Config struct {
	StoreDir   string    `toml:"store-dir"`
	StateDir   string    `toml:"state-dir"`
	RuntimeDir string    `toml:"runtime-dir"`
	LogFile    string    `toml:"log-file"`
	Mode       spec.Mode `toml:"mode"`
	NixStore   string    `toml:"nix-store"` // empty: the usual places
	Substitute bool      `toml:"substitute"`
	// SubstituteTimeout bounds the time of fetching for one container.
	SubstituteTimeout Duration `toml:"-"`
	MaxPaths          int      `toml:"-"`
	// WritableSize bounds what one container adds to its store, in bytes; 0: half of the
	// container's memory limit, or 1 GiB without one.
	WritableSize Size `toml:"-"`
	// RuntimeInodes and RuntimeSize (in bytes) bound what views, registrations and the cache
	// take of the runtime directory's file system; 0: a quarter of it.
	RuntimeInodes int64  `toml:"-"`
	RuntimeSize   Size   `toml:"-"`
	Runtime       string `toml:"runtime"`
	// Engine is the engine that calls nix-closure-runtime, if the wrapper cannot recognise
	// it: "cri-o", or empty.
	Engine string `toml:"engine"`
	// SharedPID: a container may have the PID namespace of the host, or of a container with
	// another closure.
	SharedPID bool `toml:"shared-pid"`
	// FUSE: a container may have volumes on FUSE file systems, which can show anything.
	FUSE bool `toml:"fuse"`
	// Rootless: the user who runs this program is not the host's root, who owns /run. No
	// key sets it.
	Rootless bool          `toml:"-"`
	Allow    []policy.Rule `toml:"allow"`
}

// Default returns the configuration of a host without a file, for the user who runs this
// program.
func Default() Config {
	p := defaultPaths()
	return Config{
		StoreDir:          "/nix/store",
		StateDir:          "/nix/var/nix",
		RuntimeDir:        p.runtimeDir,
		LogFile:           p.logFile,
		Mode:              spec.ModeAuto,
		SubstituteTimeout: Duration(100 * time.Second), // the kubelet waits two minutes
		MaxPaths:          50000,
		Runtime:           "runc",
		Rootless:          p.rootless,
	}
}

// Store returns the Nix store of the configuration.
func (c Config) Store() closure.Store {
	return closure.Store{Dir: c.StoreDir, StateDir: c.StateDir}
}

// Policy returns the policy of the configuration.
func (c Config) Policy() policy.Policy {
	return policy.Policy{Store: c.Store(), RuntimeDir: c.RuntimeDir, Rules: c.Allow}
}

// Read reads the configuration with this path. The file at Path need not exist. Its runtime
// directory and log file are for root only: other users have their own.
func Read(path string) (Config, error) {
	text, err := nopoll.ReadFile(path, 0)
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
	if path == Path && c.Rootless {
		p := defaultPaths()
		c.RuntimeDir, c.LogFile = p.runtimeDir, p.logFile
	}
	return c, nil
}

// Parse parses the text of a configuration. An unknown key is an error: a typing mistake
// must not weaken anything.
func Parse(text []byte) (Config, error) {
	if c, ok := parsePlain(string(text)); ok {
		return c, c.check()
	}
	return parseTOML(text)
}

func parseTOML(text []byte) (Config, error) {
	c := Default()
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	var document struct {
		*Config
		units
	}
	document.Config = &c
	if err := d.Decode(&document); err != nil {
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
	if err := document.apply(&c); err != nil {
		return Config{}, err
	}
	return c, c.check()
}

// notInMountOptions are the characters that have a meaning in overlay's options.
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
			return fmt.Errorf("%s = %q: has a colon, comma, backslash, quote or line break, "+
				"which a mount option cannot carry", p.key, p.path)
		}
	}
	if c.NixStore != "" && !filepath.IsAbs(c.NixStore) {
		return fmt.Errorf("nix-store = %q: not an absolute path", c.NixStore)
	}
	if !c.Mode.Valid() {
		return fmt.Errorf("mode = %q: not one of auto, overlay, bind", c.Mode)
	}
	// The other engines are recognised, or say nothing that could be believed.
	if c.Engine != "" && c.Engine != "cri-o" {
		return fmt.Errorf("engine = %q: neither empty nor cri-o, "+
			"the one engine that nix-closure-runtime cannot recognise", c.Engine)
	}
	if c.Allow != nil && len(c.Allow) == 0 {
		return errors.New("allow = []: would allow everything, not nothing; leave it out if that is meant")
	}
	for i, rule := range c.Allow {
		if err := rule.Validate(c.StoreDir); err != nil {
			return fmt.Errorf("[[allow]] number %d: %w", i+1, err)
		}
	}
	return nil
}
