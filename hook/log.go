// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nix-closure/nix-closure/internal/config"
)

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
