// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/nopoll"
	"github.com/nix-closure/nix-closure/internal/plainjson"
)

// failure is an error in the form that every error has on standard error: which
// container, what was tried, what is wrong and what to do.
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

// oneLine replaces characters that cannot be printed, so that text from an image or an
// annotation cannot look like a line of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// Failure returns an error in the form that every error of this program has on standard
// error. container may be empty.
func Failure(container, doing string, err error) error {
	if f := (*failure)(nil); errors.As(err, &f) {
		if f.container == "" {
			return &failure{container, f.doing, f.err}
		}
		return f
	}
	return &failure{container, doing, err}
}

// LogFailure writes the result of Failure to the log that the configuration names. It is
// for the runtime.
func LogFailure(configPath string, err error) {
	var f *failure
	if errors.As(err, &f) {
		logError(logFor(configPath, runtimeStage, f.container), err)
	}
}

// LogCall logs that a call of the hook was not understood. The container does not start,
// and some runtimes show only that the hook failed.
func LogCall(call Call, err error) { logError(logFor(call.Config, call.Stage, ""), err) }

// logFor returns the log that the configuration names, or the default log if the
// configuration cannot be read.
func logFor(configPath, stage, container string) *logrus.Entry {
	c, err := config.Read(configPath)
	if err != nil {
		c = config.Default()
	}
	return logOf(c, stage, container)
}

// logOf returns the log that a configuration names. An ordinary user's log is in the
// runtime directory, which logOf makes if necessary. If another user made that directory,
// in /tmp, nothing is logged: a link there could redirect the write.
func logOf(c config.Config, stage, container string) *logrus.Entry {
	if filepath.Dir(c.LogFile) == c.RuntimeDir && state.EnsurePrivate(c.RuntimeDir) != nil {
		return logTo(io.Discard, stage, container)
	}
	return newLog(c.LogFile, stage, container)
}

// logError logs a failure, as a whole and in its parts.
func logError(log *logrus.Entry, err error) {
	var f *failure
	if errors.As(err, &f) {
		log = log.WithFields(logrus.Fields{"doing": f.doing, "error": f.err.Error()})
	}
	log.Error(err.Error())
}

// newLog returns the log of a stage: JSON lines in a file. If the file cannot be opened,
// nothing is logged, and containers start and stop all the same.
func newLog(path, stage, container string) *logrus.Entry {
	to := io.Discard
	if f, err := openLog(path, maxLog); err == nil {
		to = f
	}
	return logTo(to, stage, container)
}

// logTo returns a log that goes to a file.
func logTo(to io.Writer, stage, container string) *logrus.Entry {
	log := &logrus.Logger{
		Out: to, Formatter: utcFormatter{}, Hooks: logrus.LevelHooks{}, Level: logrus.InfoLevel, ExitFunc: os.Exit,
	}
	return log.WithFields(logrus.Fields{"stage": stage, "container": container})
}

// utcFormatter writes JSON lines with times in UTC. Local time would cost reading the
// time zone file at each start.
type utcFormatter struct{ logrus.JSONFormatter }

func (f utcFormatter) Format(e *logrus.Entry) ([]byte, error) {
	e.Time = e.Time.UTC()
	if text, ok := plainLine(e); ok {
		return text, nil
	}
	f.TimestampFormat = time.RFC3339Nano
	return f.JSONFormatter.Format(e)
}

// plainLine returns the line of an entry whose fields are strings and numbers. It is what
// the formatter returns, which prepares encoding/json for one line; see plainjson.
func plainLine(e *logrus.Entry) (_ []byte, ok bool) {
	if e.HasCaller() {
		return nil, false
	}
	fields := map[string]any{
		logrus.FieldKeyTime: e.Time.Format(time.RFC3339Nano), logrus.FieldKeyMsg: e.Message,
		logrus.FieldKeyLevel: e.Level.String(),
	}
	for name, value := range e.Data {
		if _, taken := fields[name]; taken {
			return nil, false
		}
		fields[name] = value
	}
	var w plainjson.Writer
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		switch value := fields[name].(type) {
		case string:
			w.String(name, value)
		case int:
			w.Int(name, int64(value))
		default:
			return nil, false
		}
	}
	return append(w.Text(), '\n'), true
}

// maxLog bounds the log, in bytes. Hooks that already run may write beyond it.
const maxLog = 16 << 20

// oldLog is the suffix of a log that has become too large.
const oldLog = ".1"

// openLog opens a log to append to it. It first renames a log of more than most bytes,
// which replaces the log that was renamed before.
//
// Other hooks may do the same at the same time. Their lines are in one of the two files.
func openLog(path string, most int64) (*os.File, error) {
	f, err := appendTo(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() <= most || !renameLog(f, info, path) {
		return f, nil //nolint:nilerr // a large log is better than none
	}
	fresh, err := appendTo(path)
	if err != nil {
		return f, nil //nolint:nilerr // the same
	}
	f.Close()
	return fresh, nil
}

// appendTo opens a file to append to it. It does not follow another user's link, because
// anybody may put one into /tmp.
func appendTo(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE
	f, err := nopoll.Open(path, flags|unix.O_NOFOLLOW, 0o600)
	if !errors.Is(err, unix.ELOOP) {
		return f, err
	}
	if link, statErr := os.Lstat(path); statErr != nil || !ours(link) {
		return nil, err
	}
	return nopoll.Open(path, flags, 0o600)
}

func ours(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// renameLog renames the log that f is. It reports whether path is free for a new log,
// because this process or another renamed the old one.
//
// A process renames a log only if it holds the lock on the log and the log still has its
// name. So no process renames a log that another has just begun. If path is a link, the
// log keeps growing.
func renameLog(f *os.File, info fs.FileInfo, path string) bool {
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false // another process is about to rename it
	}
	defer func() { _ = unix.Flock(fd, unix.LOCK_UN) }()
	now, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true
	case err != nil:
		return false
	case os.SameFile(info, now):
		return os.Rename(path, path+oldLog) == nil
	}
	return now.Mode().IsRegular()
}

// logSwept logs what a sweep removed, if anything.
func logSwept(log *logrus.Entry, message string, swept state.Swept) {
	if !swept.Empty() {
		log.WithFields(logrus.Fields{
			"records": swept.Records, "gcRoots": swept.GCRoots, "views": swept.Views,
			"registrations": swept.Registrations, "closures": swept.Closures, "cache": swept.Cache,
		}).Info(message)
	}
}

// logSweep logs the result of a sweep at a start or end. An error there keeps no
// container from starting.
func logSweep(log *logrus.Entry, swept state.Swept, err error) {
	logSwept(log, "swept", swept)
	if err != nil {
		logError(log, &failure{"", "sweeping", err})
	}
}
