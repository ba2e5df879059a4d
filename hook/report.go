// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
)

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

// Failure is an error in the form that every error of this program has on standard
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

// LogFailure writes what Failure returned for a runtime to the log that the
// configuration names.
func LogFailure(configPath string, err error) {
	var f *failure
	if errors.As(err, &f) {
		logError(logFor(configPath, runtimeStage, f.container), err)
	}
}

// LogCall writes to the log that a call of the hook was not understood: the container
// does not start, and some runtimes show only that the hook failed.
func LogCall(call Call, err error) { logError(logFor(call.Config, call.Stage, ""), err) }

// logFor returns the log that the configuration names, or the default one where
// it cannot be read.
func logFor(configPath, stage, container string) *logrus.Entry {
	c, err := config.Read(configPath)
	if err != nil {
		c = config.Default()
	}
	return logOf(c, stage, container)
}

// logOf returns the log that a configuration names. An ordinary user's is in the
// runtime directory: that is made for the first line, and where another user made
// it, in /tmp, nothing is written that a link there could lead elsewhere.
func logOf(c config.Config, stage, container string) *logrus.Entry {
	if filepath.Dir(c.LogFile) == c.RuntimeDir && state.EnsurePrivate(c.RuntimeDir) != nil {
		return logTo(io.Discard, stage, container)
	}
	return newLog(c.LogFile, stage, container)
}

// logError writes a failure to the log, whole and in its parts.
func logError(log *logrus.Entry, err error) {
	var f *failure
	if errors.As(err, &f) {
		log = log.WithFields(logrus.Fields{"doing": f.doing, "error": f.err.Error()})
	}
	log.Error(err.Error())
}

// newLog returns the log of a stage: JSON lines in a file. Without a file,
// containers start and stop all the same.
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

// utcFormatter writes JSON lines. Local time would read the time zone's file at each
// start.
type utcFormatter struct{ logrus.JSONFormatter }

func (f utcFormatter) Format(e *logrus.Entry) ([]byte, error) {
	e.Time = e.Time.UTC()
	f.TimestampFormat = time.RFC3339Nano
	return f.JSONFormatter.Format(e)
}

// maxLog bounds the log, in bytes, but for what hooks write that run already.
const maxLog = 16 << 20

// oldLog is added to the name of a log that has become too large.
const oldLog = ".1"

// openLog opens a log to append to it. A log of more than most bytes is renamed
// first, in place of the one that was renamed before.
//
// Other hooks do the same at the same time. Their lines are in one of the two files.
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

// appendTo opens a file to append to it. It does not follow another user's link:
// everybody may put one into /tmp.
func appendTo(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if !errors.Is(err, unix.ELOOP) {
		return f, err
	}
	if link, statErr := os.Lstat(path); statErr != nil || !ours(link) {
		return nil, err
	}
	return os.OpenFile(path, flags, 0o600)
}

func ours(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// renameLog renames the log that f is. It returns whether path is now for a new log,
// renamed by this process or by another.
//
// Only the holder of the lock on a log renames that log, and only if it still has its
// name: no process renames a log that another has just begun. Where path is a link, the
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

// logSwept says what a sweep removed, if anything was.
func logSwept(log *logrus.Entry, message string, swept state.Swept) {
	if !swept.Empty() {
		log.WithFields(logrus.Fields{
			"records": swept.Records, "gcRoots": swept.GCRoots, "views": swept.Views,
			"registrations": swept.Registrations, "closures": swept.Closures, "cache": swept.Cache,
		}).Info(message)
	}
}

// logSweep says what a sweep in passing did. What goes wrong keeps no container from
// starting.
func logSweep(log *logrus.Entry, swept state.Swept, err error) {
	logSwept(log, "swept", swept)
	if err != nil {
		logError(log, &failure{"", "sweeping", err})
	}
}
