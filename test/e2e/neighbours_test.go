// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// running starts a container of an image without an annotation, and returns its ID and its
// process.
func running(t *testing.T, runtime string, flags ...string) (id string, pid string) {
	t.Helper()
	args := append([]string{"--runtime", runtime, "run", "--detach"}, flags...)
	id = strings.TrimSpace(must(t, "podman", append(args, bareImage, store["env"]+"/bin/sleep", "600")...))
	t.Cleanup(func() { remove(t, id) })
	return id, strings.TrimSpace(must(t, "podman", "inspect", "--format", "{{.State.Pid}}", id))
}

// A process in a PID namespace below the joined one is seen too.
func TestNeighboursBelow(t *testing.T) {
	for _, runtime := range runtimes {
		same := container{runtime: runtime, root: "env"}.start(t)
		pid := strings.TrimSpace(must(t, "podman", "inspect", "--format", "{{.State.Pid}}", same))
		c := container{runtime: runtime, root: "env", flags: []string{"--pid", "container:" + same}}
		c.mustRun(t, store["env"]+"/bin/true")

		// The host's mount namespace, in a PID namespace of its own that is below.
		cmd := exec.Command("nsenter", "--target", pid, "--pid", "--", "unshare", "--pid", "--fork", "--", "sleep",
			"600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		child := func(pid int) int {
			for range 500 {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
				if fields := strings.Fields(string(text)); err == nil && len(fields) > 0 {
					n, err := strconv.Atoi(fields[0])
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Fatalf("process %d has no child", pid)
			return 0
		}
		between := child(cmd.Process.Pid)
		sleeping, err := os.FindProcess(child(between))
		if err != nil {
			t.Fatal(err)
		}
		// The one that is in the joined namespace itself goes.
		if between, err := os.FindProcess(between); err != nil || between.Kill() != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/nix/store", sleeping.Pid)); err != nil {
			t.Fatal(err)
		}
		stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
		want := fmt.Sprintf("with process %d in it, and would see what it sees (/proc/PID/root): the host's store",
			sleeping.Pid)
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, want) {
			t.Errorf("%s: %v %q %s, want %s", runtime, err, stdout, said, want)
		}
		if err := sleeping.Kill(); err != nil {
			t.Error(err)
		}
		remove(t, same)
		nothingLeft(t)
	}
}

// A container that sees nothing of the store may have its PID namespace joined, such as a
// pod's sandbox.
func TestNeighbourWithoutStore(t *testing.T) {
	for _, runtime := range runtimes {
		args := []string{"--runtime", runtime, "run", "--detach", "-v", "/bin/busybox:/busybox", bareImage, "/busybox",
			"sleep", "600"}
		id := strings.TrimSpace(must(t, "podman", args...))
		t.Cleanup(func() { remove(t, id) })
		c := container{runtime: runtime, root: "env", flags: []string{"--pid", "container:" + id}}
		c.mustRun(t, store["env"]+"/bin/true")
		remove(t, id)
		nothingLeft(t)
	}
}

// A record with the number of a process that has ended says nothing of the process that
// has the number now.
func TestNeighbourOfAnEarlierRecord(t *testing.T) {
	for _, runtime := range runtimes {
		same := container{runtime: runtime, root: "env"}.start(t)
		text, err := os.ReadFile(runtimeDir + "/containers/" + same + ".json")
		if err != nil {
			t.Fatal(err)
		}
		_, digest, _ := strings.Cut(string(text), `"digest":"`)
		digest, _, _ = strings.Cut(digest, `"`)
		if len(digest) < 32 {
			t.Fatalf("no digest in %s", text)
		}
		whole, pid := running(t, runtime, "-v", "/nix:/nix")
		// Its bundle is there, so that no sweep takes it.
		record := `{"id":"earlier","bundle":"/","pid":%s,"pidStart":1,"sharedPID":true,"digest":%q}`
		dead(t, "earlier", fmt.Sprintf(record, pid, digest))
		c := container{runtime: runtime, root: "env", flags: []string{"--pid", "container:" + whole}}
		stdout, _, err := c.run(store["env"]+"/bin/echo", "it runs")
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, "shows /nix/store of the host") {
			t.Errorf("%s: %v %q %s", runtime, err, stdout, said)
		}
		removeAll(t, runtimeDir+"/containers/earlier.json")
		removeAll(t, gcRoots+"/earlier")
		remove(t, same)
		remove(t, whole)
		nothingLeft(t)
	}
}

// A rootless engine's hook may not look at the host's processes, nor at other users': its
// containers may not either.
func TestRootlessNeighbours(t *testing.T) {
	nixDaemon(t)
	u := user(t, "neighbours")
	other := user(t, "elsewhere") // has processes in a PID namespace that may not be looked at
	others := other.start(t, container{runtime: "crun", root: "env"})
	for _, runtime := range runtimes {
		c := container{runtime: runtime, root: "env"}
		id := u.start(t, c)
		c.flags = []string{"--pid", "container:" + id}
		u.mustRun(t, c, store["env"]+"/bin/true")
		c.root = "foreign"
		stdout, _, err := u.run(c, store["foreign"]+"/bin/echo", "it runs")
		said := ""
		for _, l := range u.log(t) {
			if l.Level == "error" {
				said = l.Msg
			}
		}
		want := "it belongs to container " + id + ", which has another closure"
		if err == nil || stdout != "" || !strings.Contains(said, want) {
			t.Errorf("%s: %v %q %s, want %s", runtime, err, stdout, said, want)
		}
		u.remove(t, id)
		u.nothingLeft(t)
	}
	other.remove(t, others)
}
