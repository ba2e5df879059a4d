// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/stores/synthetic"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// usualPaths is the size of a closure where there is only one size.
const usualPaths = 1000

// host is where bundles are made, and what they refer to.
type host struct {
	dir      string
	programs smallPrograms
	built    string // the directory in which nix-closure's programs were built
	bin      string // the directory in which they are installed
	store    *synthetic.Store
	image    string
	// warm and cold are configured with runtime directories of their own, so that making
	// one cold leaves the other warm.
	warm, cold hookConfig
}

func (h *host) hook() string    { return filepath.Join(h.bin, "nix-closure-hook") }
func (h *host) command() string { return filepath.Join(h.bin, "nix-closure") }

// newHost makes the programs, the image, the configurations and the store.
func newHost(bin string, storeSize int, sizes []int, p *progress) (*host, error) {
	h := &host{dir: testhost.Dir(), built: bin, bin: filepath.Join(testhost.Dir(), "installed")}
	err := programs.Install(h.bin, filepath.Join(bin, "nix-closure-hook"), filepath.Join(bin, "nix-closure"),
		filepath.Join(bin, "nix-closure-runtime"))
	if err != nil {
		return nil, err
	}
	p.show("building programs")
	if h.programs, err = buildPrograms(filepath.Join(h.dir, "programs")); err != nil {
		return nil, err
	}
	h.image = filepath.Join(h.dir, "image")
	if err := makeImage(h.image, h.programs); err != nil {
		return nil, err
	}
	if h.warm, err = makeHookConfig(filepath.Join(h.dir, "warm.toml"), "/run/nix-closure"); err != nil {
		return nil, err
	}
	if h.cold, err = makeHookConfig(filepath.Join(h.dir, "cold.toml"), "/run/nix-closure-cold"); err != nil {
		return nil, err
	}
	p.show("making a store of %d paths", storeSize)
	h.store, err = synthetic.Make(storeSize, sizes)
	return h, err
}

// annotations ask for the closure that has n paths.
func (h *host) annotations(n int, mode string) map[string]string {
	return map[string]string{"nix-closure/roots": h.store.Root(n), "nix-closure/mode": mode}
}

// hookConfig is a config.toml of the hook, and the runtime directory that it names.
type hookConfig struct {
	file, runtimeDir string
}

func makeHookConfig(file, runtimeDir string) (hookConfig, error) {
	text := fmt.Sprintf("runtime-dir = %q\n", runtimeDir)
	return hookConfig{file, runtimeDir}, os.WriteFile(file, []byte(text), 0o644)
}

func (c hookConfig) args() []string { return []string{"--config", c.file} }

// forget removes what the hook keeps from one container for the next.
func (c hookConfig) forget() error {
	return errors.Join(
		os.RemoveAll(filepath.Join(c.runtimeDir, "views")),
		os.RemoveAll(filepath.Join(c.runtimeDir, "closures")),
	)
}

// timeProcess runs a program with the file as its standard input, and returns how many
// milliseconds that took.
func timeProcess(input, program string, args ...string) (float64, error) {
	stdin, err := os.Open(input)
	if err != nil {
		return 0, err
	}
	defer func() { _ = stdin.Close() }()
	cmd := exec.Command(program, args...)
	cmd.Stdin = stdin
	return timeCommand(cmd)
}

// timeCommand runs a command, and says how many milliseconds that took.
func timeCommand(cmd *exec.Cmd) (float64, error) {
	var stderr limited
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%.200s: %w: %s", cmd, err, stderr)
	}
	return milliseconds(took), nil
}

// output runs a command and returns what it prints.
func output(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var stderr limited
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%.200s: %w: %s", cmd, err, stderr)
	}
	return string(out), nil
}

// limited keeps the first of what is written.
type limited []byte

func (l *limited) Write(p []byte) (int, error) {
	*l = append(*l, p[:min(len(p), 900-min(len(*l), 900))]...)
	return len(p), nil
}
