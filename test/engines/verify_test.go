// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// verdicts is what verify finds.
type verdicts struct {
	Containers []struct {
		ID, Name, State string
		Paths           int
		Wrong           []struct{ What, Do string }
		Unknown, Notes  []string
	}
	Troubles []string
}

// verify runs verify, and returns its exit status too.
func verify(t *testing.T) (found verdicts, status int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(*bin, "nix-closure"), "verify", "--json", "--contents")
	out, err := cmd.Output()
	if decoded := json.Unmarshal(out, &found); decoded != nil {
		t.Fatalf("verify: %v %v\n%s", err, decoded, out)
	}
	return found, cmd.ProcessState.ExitCode()
}

// checkVerified fails unless verify finds these containers, by the ends of their names,
// and nothing to say of them.
func checkVerified(t *testing.T, ids map[string]string) {
	t.Helper()
	found, status := verify(t)
	got := map[string]string{}
	for _, c := range found.Containers {
		name := c.Name[strings.LastIndexByte(c.Name, '/')+1:]
		if got[name] = c.ID; c.State != "ok" || len(c.Notes) > 0 || c.Paths == 0 {
			t.Errorf("%+v", c)
		}
	}
	if status != 0 || len(found.Troubles) > 0 || !maps.Equal(got, ids) {
		t.Errorf("status %d, %q\n%v, want %v", status, found.Troubles, got, ids)
	}
}

// checkUnserved fails unless verify finds that a container runs without its closure, and
// no other.
func checkUnserved(t *testing.T, id string) {
	t.Helper()
	found, status := verify(t)
	if status != 1 || len(found.Containers) != 1 || found.Containers[0].ID != id ||
		found.Containers[0].State != "wrong" ||
		!strings.Contains(found.Containers[0].Wrong[0].What, "the hook was not called") ||
		!strings.Contains(found.Containers[0].Wrong[1].What, "shows /nix/store of the host") {
		t.Errorf("status %d, %+v", status, found)
	}
}

// Verify finds the containers of a pod, each with its name, and not the sandbox.
func TestVerifyPod(t *testing.T) {
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		p := n.run(t, handler, podConfig(t, map[string]string{
			"a.nix-closure/roots": store["env"], "b.nix-closure/roots": store["tools"], "b.nix-closure/mode": "bind",
			"c.nix-closure/roots": store["tools"], "c.nix-closure/writable": "true",
		}))
		ids := map[string]string{}
		for _, name := range []string{"a", "b", "c"} {
			ids[name] = p.start(t, name, wholeStore)
		}
		checkVerified(t, ids)
	})
}

// A container of a pod that was started without the hook is found.
func TestVerifyPodUnserved(t *testing.T) {
	n := newNode(t, nodeOptions{handlers: map[string]string{"runc": filepath.Join(*bin, "stack/runc")}})
	p := n.run(t, "runc", podConfig(t, roots("env")))
	checkUnserved(t, p.start(t, "a", wholeStore))
}

// Verify finds Docker's containers by name, and one that was started without the hook.
func TestVerifyDocker(t *testing.T) {
	d := newDocker(t)
	start := func(annotations map[string]string, binds ...string) (id, name string) {
		id = d.create(t, annotations, "exec busybox sleep 1000000", binds...)
		if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := d.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return id, strings.TrimPrefix(got.Container.Name, "/")
	}
	ids := map[string]string{}
	for _, mode := range []string{"overlay", "bind"} {
		annotations := roots("env")
		annotations["nix-closure/mode"] = mode
		id, name := start(annotations, storeDir+":"+storeDir)
		ids[name] = id
	}
	checkVerified(t, ids)
	for _, id := range ids {
		d.remove(t, id)
	}
	got, err := d.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Config: &container.Config{Image: "busybox", Cmd: []string{"/bin/busybox", "sleep", "1000000"}},
		HostConfig: &container.HostConfig{
			Annotations: roots("env"), NetworkMode: "none", Runtime: "runc", Binds: []string{storeDir + ":" + storeDir},
		},
	})
	if err == nil {
		_, err = d.ContainerStart(t.Context(), got.ID, client.ContainerStartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	checkUnserved(t, got.ID)
	d.remove(t, got.ID)
}

// Into a container of gVisor's nobody can look from outside: it is unknown.
func TestVerifyGVisor(t *testing.T) {
	n := newNode(t, nodeOptions{gvisor: true})
	n.startPlugin(t, "--gvisor", "gvisor")
	p := n.run(t, "gvisor", podConfig(t, roots("env")))
	id := p.start(t, "a")
	found, status := verify(t)
	if status != 4 || len(found.Containers) != 1 || found.Containers[0].ID != id ||
		found.Containers[0].State != "unknown" {
		t.Errorf("status %d, %+v", status, found)
	}
}
