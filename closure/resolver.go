// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Resolver asks the program that reads Nix's database. That is a separate program, so that
// the hook, which every container starts, links no database.
type Resolver struct {
	Program string   // absolute path of nix-closure
	Args    []string // before the query: the configuration
}

// Resolve has the program resolve q, into the cache of the program's configuration.
func (r Resolver) Resolve(ctx context.Context, store Store, q Query) (Resolution, error) {
	args := append([]string{"resolve", "--json"}, r.Args...)
	paths := q.Roots
	if q.Info != "" {
		args, paths = append(args, "--closure-info"), append([]BaseName{q.Info}, q.Roots...)
	}
	args = append(args, "--")
	for _, p := range paths {
		args = append(args, store.Path(p))
	}
	cmd := exec.CommandContext(ctx, r.Program, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = waitDelay
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if said := firstLine(errs.String()); errors.As(err, &exit) && said != "" {
			return Resolution{}, &saidError{strings.TrimPrefix(said, "nix-closure: "), exit.ExitCode()}
		}
		return Resolution{}, fmt.Errorf("running %s: %w", r.Program, err)
	}
	var res Resolution
	if err := json.Unmarshal(out.Bytes(), &res); err != nil || !IsDigest(res.Digest) || len(res.Pins) == 0 {
		return Resolution{}, fmt.Errorf("%s: not understood: %q; "+
			"is it of the same version as the hook?", r.Program, firstLine(out.String()))
	}
	return res, nil
}

// saidError is an error that the program printed.
type saidError struct {
	text   string
	status int
}

func (e *saidError) Error() string { return e.text }

func (e *saidError) Is(target error) bool {
	return target == ErrNotValid && e.status == ExitNotValid
}

// waitDelay is how long a program's children may hold its output open after it ended or was
// stopped.
const waitDelay = time.Second

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
