// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listens tells whether a process has a TCP socket that listens (proc_pid_net(5)).
func listens(t *testing.T, pid int) bool {
	t.Helper()
	own := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil {
			own[target] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const state, inode, listen = 3, 9, "0A"
			if f := strings.Fields(line); len(f) > inode && f[state] == listen && own["socket:["+f[inode]+"]"] {
				return true
			}
		}
	}
	return false
}

// Without an engine the plugin waits for one, and ends when it is asked to. It listens
// nowhere if nobody says so.
func TestPluginAlone(t *testing.T) {
	for _, http := range []bool{false, true} {
		args := []string{"--socket", t.TempDir() + "/nri.sock"}
		if http {
			args = append(args, "--http", freeAddress(t))
		}
		log, err := os.Create(t.TempDir() + "/log")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(*bin, "nix-closure-nri"), args...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var text []byte
		for range 300 {
			if text, _ = os.ReadFile(log.Name()); strings.Contains(string(text), "not connected") {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := listens(t, cmd.Process.Pid); got != http {
			t.Errorf("--http %t: listens: %t", http, got)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(string(text), "not connected") {
			t.Errorf("after SIGTERM: %v\n%s", err, text)
		}
		_ = log.Close()
	}
}
