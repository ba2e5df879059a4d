// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// Stages are the stages of a container's life at which this program can be
// called, in the order of their lives: names of the runtime specification, and
// precreate, which is podman's and CRI-O's.
var Stages = []string{"precreate", "prestart", "createRuntime", "createContainer", "poststop"}

// patience is how long the end of a container waits for others.
const (
	patience = 10 * time.Second
	// fetchMargin is for what comes before and after fetching.
	fetchMargin = 15 * time.Second
)

// Call is how the hook is called.
type Call struct {
	Stage  string
	Config string // path of the configuration
	// Engine is who has it called.
	Engine spec.Engine
	// Annotations are added to what the container carries. They are of who wrote
	// the call, such as a CDI specification's author.
	Annotations map[string]string
}

// add returns the container's annotations with those of the call. One that has
// another value in each is an error: neither can be meant without the other.
func (c Call) add(annotations map[string]string) (map[string]string, error) {
	if len(c.Annotations) == 0 {
		return annotations, nil
	}
	all := maps.Clone(annotations)
	if all == nil {
		all = map[string]string{}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Annotations)) {
		if own, ok := all[key]; ok && own != c.Annotations[key] {
			return annotations, fmt.Errorf("annotation %s: the container has %q, and the hook was called with %q, "+
				"as for a device; ask for one of them", key, own, c.Annotations[key])
		}
		all[key] = c.Annotations[key]
	}
	return all, nil
}

// Run does what there is to do for a container at a stage: in has the OCI state,
// or for precreate the config.json, and out takes what precreate rewrote.
//
// A container without an annotation is left alone. For one with an annotation,
// an error means that it must not start. An error has one line, which names the
// container, and is in the log too.
func Run(call Call, in io.Reader, out io.Writer) error {
	stage, configPath := call.Stage, call.Config
	if stage == "precreate" {
		return precreate(call, in, out)
	}
	text, err := spec.ReadLimited(in, spec.MaxConfig)
	if err != nil {
		err = &failure{"", "reading the OCI state from standard input", err}
		logError(logFor(configPath, stage, ""), err)
		return err
	}
	state, err := spec.ParseState(text)
	if !errors.Is(err, spec.ErrNoState) && !spec.Annotated(state.Annotations) && len(call.Annotations) == 0 {
		return nil
	}
	if err != nil {
		err = &failure{state.ID, "reading the OCI state", err}
		logError(logFor(configPath, stage, state.ID), err)
		return err
	}
	if state.Annotations, err = call.add(state.Annotations); err != nil && stage != "poststop" {
		err = &failure{state.ID, "reading the annotations", err}
		logError(logFor(configPath, stage, state.ID), err)
		return err
	}
	c, err := config.Read(configPath)
	if err != nil {
		err = &failure{state.ID, "reading the configuration", err}
		logError(logFor(configPath, stage, state.ID), err)
		return err
	}
	if stage == "createContainer" && c.Rootless {
		// A user of that namespace may be an ordinary user of the host.
		err := &failure{state.ID, "looking at who runs the hook", errors.New("createContainer hooks run in the container's " +
			"user namespace, where file owners cannot be trusted; register the hook as createRuntime")}
		// Root's log is out of reach there. This one only helps to see why a container does
		// not start: the hook never reads it.
		logError(logOf(c, stage, state.ID), err)
		return err
	}
	log := logOf(c, stage, state.ID)
	if stage == "poststop" {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		poststop(ctx, c, state, log)
		return nil
	}
	// What is made in the image must be open to the container's users, whatever
	// the runtime's own mask is.
	syscall.Umask(0o022)
	limit := startDeadline()
	if c.Substitute {
		// A kubelet waits for two minutes, of which fetching has 100 seconds if
		// nobody says otherwise.
		limit = max(limit, time.Duration(c.SubstituteTimeout)+fetchMargin)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s := &start{progress: &progress{}, config: c, call: call, state: state, log: log, began: time.Now()}
	if err := createWatched(ctx, s); err != nil {
		logError(log, err)
		return err
	}
	return nil
}

// LogCall writes to the log that a call of the hook was not understood: the container
// does not start, and some runtimes show only that the hook failed.
func LogCall(call Call, err error) { logError(logFor(call.Config, call.Stage, ""), err) }

// failure is an error in the one form that every error has on standard error:
// which container, what was being done, what went wrong and what to do.
type failure struct {
	container string // empty: not known yet
	doing     string
	err       error
}

func (f *failure) Error() string {
	container := "container " + f.container
	if f.container == "" {
		container = "a container"
	}
	return oneLine(fmt.Sprintf("nix-closure: %s: %s: %v", container, f.doing, f.err))
}

func (f *failure) Unwrap() error { return f.err }

// oneLine keeps what came from an image or an annotation from looking like a
// line of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
