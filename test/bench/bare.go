// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// bareRuns is more than a container has: a process takes a millisecond, and the
// difference of two is asked for.
const bareRuns = 200

// bare is what a process takes that a runtime would start as a hook.
type bare struct {
	empty, hook []time.Duration
}

// measureBare starts a program that does nothing, and the hook for a container
// without annotation, in turn.
func (h *host) measureBare(p *progress) (*bare, error) {
	state := filepath.Join(h.dir, "state.json")
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"id":         "nix-closure-bench",
		"status":     "creating",
		"pid":        os.Getpid(),
		"bundle":     h.dir,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(state, text, 0o644); err != nil {
		return nil, err
	}
	p.show("processes without a container")
	b := &bare{}
	for i := range warmUps + bareRuns {
		empty, err := timeProcess(state, h.programs.empty)
		if err != nil {
			return nil, err
		}
		hook, err := timeProcess(state, h.hook, "createRuntime")
		if err != nil {
			return nil, err
		}
		if i >= warmUps {
			b.empty, b.hook = append(b.empty, empty), append(b.hook, hook)
		}
	}
	return b, nil
}

// timeProcess runs a program with the file as its standard input.
func timeProcess(input, program string, args ...string) (time.Duration, error) {
	stdin, err := os.Open(input)
	if err != nil {
		return 0, err
	}
	defer stdin.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdin = stdin
	begin := time.Now()
	err = cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	return took, nil
}
