// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// An ordinary user's own places, as a rootless engine's hook finds them: in a user
// namespace in which the user has the id 0, and without an environment.
func TestDefaultPaths(t *testing.T) {
	const inside = "NIX_CLOSURE_TEST_PLACES"
	if os.Getenv(inside) != "" {
		fmt.Printf("%+v\n", defaultPaths())
		return
	}
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to map users")
	}
	for _, c := range []struct {
		name string
		attr *syscall.SysProcAttr
		want string
	}{
		{"root", nil, "{runtimeDir:/run/nix-closure logFile:/var/log/nix-closure.log rootless:false}"},
		{"a user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}},
			"{runtimeDir:/tmp/nix-closure-54321 logFile:/tmp/nix-closure-54321/nix-closure.log rootless:true}"},
		{"a user's own namespace", &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER,
			Credential: &syscall.Credential{NoSetGroups: true},
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 54321, Size: 1},
				{ContainerID: 1, HostID: 100000, Size: 65536}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 54321, Size: 1}},
		}, "{runtimeDir:/tmp/nix-closure-54321 logFile:/tmp/nix-closure-54321/nix-closure.log rootless:true}"},
	} {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestDefaultPaths$")
		cmd.Env = []string{inside + "=1", "XDG_RUNTIME_DIR=/nowhere", "HOME=/nowhere"}
		cmd.SysProcAttr = c.attr
		out, err := cmd.CombinedOutput()
		if first, _, _ := strings.Cut(string(out), "\n"); err != nil || first != c.want {
			t.Errorf("%s: %v: %s\nwant %s", c.name, err, out, c.want)
		}
	}
}
