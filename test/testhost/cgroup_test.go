// SPDX-License-Identifier: Apache-2.0

package testhost

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/internal/settle"
)

// asMachine tells this program to be a machine, and not to test one.
const asMachine = "NIX_CLOSURE_TEST_AS_MACHINE"

func TestMain(m *testing.M) {
	if os.Getenv(asMachine) == "" {
		os.Exit(settle.Run(m.Run))
	}
	os.Exit(Run(func() int {
		if err := leaveCgroups(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(Dir())
		return 0
	}))
}

// leaveCgroups makes a cgroup at the top of each hierarchy, one below it, and there a
// process that does not end.
func leaveCgroups() error {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, ":/\n") && line != "0::/init\n" {
			return fmt.Errorf("not at the top: %s", text)
		}
	}
	points, err := mountPoints()
	if err != nil || len(points) == 0 {
		return fmt.Errorf("no hierarchies: %w", err)
	}
	for _, point := range points {
		if slices.Contains(points, unified) && len(points) > 1 {
			return fmt.Errorf("two versions: %q", points)
		}
		left := filepath.Join(point, "left")
		if err := os.MkdirAll(left+"/below", 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			for _, dir := range []string{left, left + "/below"} {
				if text, err := os.ReadFile(filepath.Join(point, file)); err == nil {
					if err := os.WriteFile(filepath.Join(dir, file), text, 0); err != nil {
						return err
					}
				}
			}
		}
		sleep := exec.Command("sleep", "1000000")
		if err := sleep.Start(); err != nil {
			return err
		}
		if err := os.WriteFile(left+"/below/cgroup.procs", fmt.Append(nil, sleep.Process.Pid), 0); err != nil {
			return err
		}
	}
	return nil
}

// mountPoints are those of all hierarchies.
func mountPoints() (points []string, _ error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " - cgroup") {
			points = append(points, strings.Fields(line)[4])
		}
	}
	return points, err
}

// cgroupDirs are all on the host.
func cgroupDirs(t *testing.T) (dirs []string) {
	t.Helper()
	points, err := mountPoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range points {
		// Others come and go.
		out, _ := exec.Command("find", point, "-xdev", "-type", "d").Output()
		dirs = append(dirs, strings.Fields(string(out))...)
	}
	return dirs
}

// What a machine makes of cgroups is gone with it, and was below its own.
func TestCgroups(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asMachine+"=1")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	before := cgroupDirs(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v %s", err, errs.String())
	}
	name := filepath.Base(strings.TrimSpace(string(out)))
	for _, dir := range cgroupDirs(t) {
		if strings.Contains(dir, name) || strings.Contains(dir, "/left") && !slices.Contains(before, dir) {
			t.Errorf("left: %s", dir)
		}
	}
}
