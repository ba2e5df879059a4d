// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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

// Run does what there is to do for a container at a stage: in has the OCI state,
// or for precreate the config.json, and out takes what precreate rewrote.
//
// A container without an annotation is left alone. For one with an annotation,
// an error means that it must not start. An error has one line, which names the
// container, and is in the log too.
func Run(stage, configPath string, in io.Reader, out io.Writer) error {
	if stage == "precreate" {
		return precreate(configPath, in, out)
	}
	text, err := spec.ReadLimited(in, spec.MaxConfig)
	if err != nil {
		return &failure{"", "reading the OCI state from standard input", err}
	}
	state, err := spec.ParseState(text)
	if !errors.Is(err, spec.ErrNoState) && !spec.Annotated(state.Annotations) {
		return nil
	}
	if err != nil {
		err = &failure{state.ID, "reading the OCI state", err}
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
		// Of that namespace's users, one may be an ordinary user of the host's.
		err := &failure{state.ID, "looking at who runs the hook", errors.New("it is in the container's user namespace, where what it would believe may be anybody's; call it as createRuntime")}
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
	s := &start{&progress{}, c, configPath, stage, state, log, time.Now()}
	if err := createWatched(ctx, s); err != nil {
		logError(log, err)
		return err
	}
	return nil
}

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

// logFor returns the log that the configuration names, or the default one where
// it cannot be read.
func logFor(configPath, stage, container string) *slog.Logger {
	c, err := config.Read(configPath)
	if err != nil {
		c = config.Default()
	}
	return logOf(c, stage, container)
}

// logOf returns the log that a configuration names. An ordinary user's is in the
// runtime directory: that is made for the first line, and where another user made
// it, in /tmp, nothing is written that a link there could lead elsewhere.
func logOf(c config.Config, stage, container string) *slog.Logger {
	if filepath.Dir(c.LogFile) == c.RuntimeDir && ensurePrivate(c.RuntimeDir) != nil {
		return slog.New(slog.DiscardHandler)
	}
	return newLog(c.LogFile, stage, container)
}

// logError writes a failure to the log, whole and in its parts.
func logError(log *slog.Logger, err error) {
	var f *failure
	if errors.As(err, &f) {
		log = log.With("doing", f.doing, "error", f.err.Error())
	}
	log.Error(err.Error())
}

// newLog returns the log of a stage: JSON lines in a file. Without a file,
// containers start and stop all the same.
func newLog(path, stage, container string) *slog.Logger {
	to := io.Discard
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
		to = f
	}
	options := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			// Local time would read the time zone's file at each start.
			a.Value = slog.TimeValue(a.Value.Time().UTC())
		}
		return a
	}}
	return slog.New(slog.NewJSONHandler(to, options)).With("stage", stage, "container", container)
}
