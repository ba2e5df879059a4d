// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// The container's user has other numbers outside the container.
func TestContainerOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to map users")
	}
	c := exec.Command("/proc/self/exe", "-test.run", "^TestWaits$")
	c.Env = append(os.Environ(), waits+"=1")
	in, err := c.StdinPipe()
	must(t, err)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000},
			{ContainerID: 1000, HostID: 7, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 2000}},
	}
	must(t, c.Start())
	defer func() { must(t, in.Close(), c.Wait()) }()
	for _, x := range []struct {
		name, stage string
		pid         int
		uid, gid    uint32
		want        view.Owner
		fails       bool
	}{
		{"root of the container", "createRuntime", c.Process.Pid, 0, 0, view.Owner{UID: 100000, GID: 200000}, false},
		{"a user of the container", "createRuntime", c.Process.Pid, 1000, 1999, view.Owner{UID: 7, GID: 201999}, false},
		{"a user without a number", "createRuntime", c.Process.Pid, 1001, 0, view.Owner{}, true},
		{"a group without a number", "createRuntime", c.Process.Pid, 0, 2000, view.Owner{}, true},
		{"the same user namespace", "createRuntime", os.Getpid(), 1000, 100, view.Owner{UID: 1000, GID: 100}, false},
		{"from inside", "createContainer", 1, 1000, 100, view.Owner{UID: 1000, GID: 100}, false},
		{"no process", "createRuntime", 1 << 30, 0, 0, view.Owner{}, true},
	} {
		got, err := containerOwner(x.stage, x.pid, spec.Config{UID: x.uid, GID: x.gid})
		if x.fails != (err != nil) || err == nil && got != x.want {
			t.Errorf("%s: %+v, %v", x.name, got, err)
		}
	}
}

const waits = "NIX_CLOSURE_TEST_WAITS"

// TestWaits is the process that TestContainerOwner inspects.
func TestWaits(*testing.T) {
	if os.Getenv(waits) != "" {
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
}

func TestWritableSize(t *testing.T) {
	for _, c := range []struct {
		configured config.Size
		limit      int64
		want       int64
	}{
		{0, 0, 1 << 30},
		{0, -1, 1 << 30},
		{0, 256 << 20, 128 << 20},
		{0, 64 << 30, 32 << 30},
		{0, 9223372036854771712, 1 << 30}, // no limit, as cgroup writes it
		{4096, 0, 4096},
		{4096, 256 << 20, 4096},
	} {
		if got := writableSize(config.Config{WritableSize: c.configured}, spec.Config{Memory: c.limit}); got != c.want {
			t.Errorf("%d, %d: %d, want %d", c.configured, c.limit, got, c.want)
		}
	}
}
