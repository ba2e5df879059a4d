// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NotStartedError says that the runtime did not start the container's command.
type NotStartedError struct {
	ID     string // of the container
	Reason string // the runtime's
}

func (e *NotStartedError) Error() string { return e.Reason }

// NotFound tells whether the command was not found.
func (e *NotStartedError) NotFound() bool {
	return strings.Contains(e.Reason, "executable file") && strings.Contains(e.Reason, "not found") || // crun, and runc
		strings.Contains(e.Reason, "exec: ") && strings.Contains(e.Reason, "no such file or directory")
}

// Run runs the container to its end, and returns the exit status of its command: 128 and
// the signal's number where one ended it. Signals of this process are the command's.
// Nothing of the container is left when it returns.
func (c Container) Run(rootless bool) (status int, Err error) {
	var err error
	if c.Terminal {
		if c.size, err = unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err != nil {
			return 0, errors.New("--tty: standard input is not a terminal")
		}
	}
	s, err := newScratch(c.Scratch)
	if err != nil {
		return 0, fmt.Errorf("making the container's root: %w", err)
	}
	if err := s.fill(c, rootless); err != nil {
		return 0, fmt.Errorf("writing the bundle: %w", err)
	}
	id := "run-" + strings.ToLower(rand.Text())
	call := func(args ...string) *exec.Cmd {
		global := []string{"--root", s.state(), "--log", s.log(), "--log-format", "json"}
		if rootless && strings.Contains(filepath.Base(c.Runtime), "crun") {
			global = append(global, "--cgroup-manager", "disabled")
		}
		cmd := exec.CommandContext(context.Background(), c.Runtime, append(global, args...)...)
		cmd.Dir = "/"
		return cmd
	}
	defer func() {
		// The runtime has removed the container, unless it was killed.
		if _, err := os.Lstat(s.state() + "/" + id); err == nil {
			if out, err := call("delete", "--force", id).CombinedOutput(); err != nil {
				Err = errors.Join(Err, fmt.Errorf("removing the container: %w: %s", err, bytes.TrimSpace(out)))
			}
		}
	}()
	cmd := call("run", "--bundle", s.bundle(), id)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A terminal sends its signals to all processes of the group in its foreground: that is
	// the runtime's alone, so that the command gets each once.
	foreground := inForeground()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Ctty: 0}
	if foreground {
		defer takeForeground()
	}
	state, err := supervise(cmd)
	if err != nil {
		return 0, fmt.Errorf("running %s: %w", c.Runtime, err)
	}
	status = exitStatus(state)
	if status != 0 {
		if reason := lastError(s.log()); reason != "" {
			return status, &NotStartedError{id, reason}
		}
	}
	return status, nil
}

// inForeground tells whether standard input is this process's terminal and this process
// in its foreground.
func inForeground() bool {
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// takeForeground takes the foreground of the terminal back. A process in the background
// that does so is stopped, unless it ignores that.
func takeForeground() {
	signal.Ignore(unix.SIGTTOU)
	_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, unix.Getpgrp())
	signal.Reset(unix.SIGTTOU)
}

func exitStatus(state *os.ProcessState) int {
	wait, ok := state.Sys().(syscall.WaitStatus)
	if ok && wait.Signaled() {
		return 128 + int(wait.Signal())
	}
	return state.ExitCode()
}

// kept are the signals that are this process's own, or that the runtime gets by itself:
// from its children, from the Go runtime, and from the terminal.
var kept = map[os.Signal]bool{
	unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGWINCH: true,
	unix.SIGTSTP: true, unix.SIGTTIN: true, unix.SIGTTOU: true, unix.SIGKILL: true, unix.SIGSTOP: true,
}

const lastSignal = 64

// supervise starts a program, passes signals on to it, and waits for its end.
func supervise(cmd *exec.Cmd) (*os.ProcessState, error) {
	signals := make(chan os.Signal, lastSignal)
	for n := 1; n <= lastSignal; n++ {
		if s := syscall.Signal(n); !kept[s] {
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	return cmd.ProcessState, nil
}

// lastError is the last error in a runtime's log, or nothing.
func lastError(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	last := ""
	for line := range bytes.Lines(text) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	return last
}
