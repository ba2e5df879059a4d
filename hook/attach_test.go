// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// The container's process, also a sandbox's, is identified by its start time too, because
// another process may have its PID meanwhile.
func TestAttachToAnEndedProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make a mount namespace")
	}
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	must(t, other.Start())
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()
	began, err := proc.StartTime(other.Process.Pid)
	must(t, err)
	for _, c := range []struct {
		start uint64
		ended bool
	}{{began, false}, {began - 1, true}, {0, true}} {
		sandbox := checked{
			start: &start{
				progress: &progress{}, call: Call{Stage: "createRuntime"}, state: spec.State{Pid: other.Process.Pid},
				log: logTo(io.Discard, "createRuntime", "x"),
			},
			bundle: spec.Config{Root: "/no/root"}, pidStart: c.start, inspected: &inspected{host: &spec.Host{}},
		}
		// The thread joins another namespace and ends with its goroutine.
		failed := make(chan error)
		go func() { failed <- sandbox.isolateSandbox() }()
		if err := <-failed; err == nil || strings.Contains(err.Error(), "has ended meanwhile") != c.ended {
			t.Errorf("start %d: %v", c.start, err)
		}
	}
}
