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
		{name: "root of the container", stage: "createRuntime", pid: c.Process.Pid,
			want: view.Owner{UID: 100000, GID: 200000}},
		{name: "a user of the container", stage: "createRuntime", pid: c.Process.Pid, uid: 1000, gid: 1999,
			want: view.Owner{UID: 7, GID: 201999}},
		{name: "a user without a number", stage: "createRuntime", pid: c.Process.Pid, uid: 1001, want: view.Owner{},
			fails: true},
		{name: "a group without a number", stage: "createRuntime", pid: c.Process.Pid, gid: 2000, want: view.Owner{},
			fails: true},
		{name: "the same user namespace", stage: "createRuntime", pid: os.Getpid(), uid: 1000, gid: 100,
			want: view.Owner{UID: 1000, GID: 100}},
		{name: "from inside", stage: "createContainer", pid: 1, uid: 1000, gid: 100,
			want: view.Owner{UID: 1000, GID: 100}},
		{name: "no process", stage: "createRuntime", pid: 1 << 30, want: view.Owner{}, fails: true},
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
