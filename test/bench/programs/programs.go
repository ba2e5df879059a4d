// SPDX-License-Identifier: Apache-2.0

// Package programs builds the small programs of the benchmarks, and installs programs.
package programs

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The small programs travel as source in the benchmark, so that they can be built wherever
// it is run from.
//
//go:embed */main.go
var sources embed.FS

// Build makes small programs in a directory, static and as an installation has them.
func Build(dir string, names ...string) error {
	built := filepath.Join(dir, "built")
	for _, name := range names {
		if err := build(name, built); err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		if err := Install(dir, filepath.Join(built, name)); err != nil {
			return err
		}
	}
	return nil
}

func build(name, dir string) error {
	text, err := sources.ReadFile(name + "/main.go")
	if err != nil {
		return err
	}
	source := filepath.Join(dir, name+"-source")
	if err := os.MkdirAll(source, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "main.go"), text, 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "main.go")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, output)
	}
	return nil
}

// Install copies programs into a directory, as an installation does. A copy is in the page
// cache in large folios, and a file as the linker leaves it is not: then a hook takes a
// fifth longer.
func Install(dir string, files ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		if err := Copy(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
	}
	return nil
}

// Copy copies one program.
func Copy(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}
