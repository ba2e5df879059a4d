// SPDX-License-Identifier: Apache-2.0

package main

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The small programs travel as source in this one, so that they can be built
// wherever it is run from.
//
//go:embed programs/*/main.go
var sources embed.FS

// programs are the paths of the small programs, built and static.
type programs struct {
	empty, count, measure, become, idle, walk string
}

func buildPrograms(dir string) (programs, error) {
	p := programs{
		empty:   filepath.Join(dir, "empty"),
		count:   filepath.Join(dir, "count"),
		measure: filepath.Join(dir, "measure"),
		become:  filepath.Join(dir, "become"),
		idle:    filepath.Join(dir, "idle"),
		walk:    filepath.Join(dir, "walk"),
	}
	for _, program := range []string{p.empty, p.count, p.measure, p.become, p.idle, p.walk} {
		if err := build(program); err != nil {
			return programs{}, fmt.Errorf("building %s: %w", program, err)
		}
	}
	return p, nil
}

// build makes the program that is named by the last element of the path.
func build(program string) error {
	text, err := sources.ReadFile("programs/" + filepath.Base(program) + "/main.go")
	if err != nil {
		return err
	}
	source := program + "-source"
	if err := os.MkdirAll(source, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "main.go"), text, 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", program, "main.go")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, output)
	}
	return nil
}
