// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is a pod that runs.
type pod struct {
	node    *node
	id      string
	config  *cri.PodSandboxConfig
	handler string
}

// pods counts, for names.
var pods int

// podConfig is a pod on the host's network.
func podConfig(t *testing.T, annotations map[string]string) *cri.PodSandboxConfig {
	pods++
	name := fmt.Sprintf("pod-%d", pods)
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Annotations:  annotations,
		LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			// Processes of its own, as a kubelet has each container but with
			// shareProcessNamespace.
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

// run runs a pod until the test ends.
func (n *node) run(t *testing.T, handler string, config *cri.PodSandboxConfig) *pod {
	t.Helper()
	got, err := n.runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("running a pod: %v\n%s", err, n.log())
	}
	p := &pod{node: n, id: got.PodSandboxId, config: config, handler: handler}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// pid is the sandbox's process.
func (p *pod) pid(t *testing.T) int {
	t.Helper()
	got, err := p.node.runtime.PodSandboxStatus(t.Context(),
		&cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return pidOf(t, got.Info)
}

// pid is a container's process.
func (n *node) pid(t *testing.T, id string) int {
	t.Helper()
	got, err := n.runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return pidOf(t, got.Info)
}

func pidOf(t *testing.T, status map[string]string) int {
	t.Helper()
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(status["info"]), &info); err != nil || info.Pid <= 0 {
		t.Fatalf("%v %s", err, status)
	}
	return info.Pid
}

// remove stops and removes the pod; a second time does nothing.
func (p *pod) remove(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := p.node.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stopping a pod: %v", err)
	}
	if _, err := p.node.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("removing a pod: %v", err)
	}
}

// create makes a container that waits, and does not start it.
func (p *pod) create(ctx context.Context, name string, mounts ...*cri.Mount) (id string, _ error) {
	return p.createOf(ctx, image, name, nil, mounts...)
}

// createOf is create for a container of any image, with annotations of its own.
func (p *pod) createOf(ctx context.Context, image, name string, own map[string]string, mounts ...*cri.Mount) (id string,
	_ error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Command:  []string{"/bin/busybox", "sleep", "1000000"},
		LogPath:  name + ".log",
		Mounts:   mounts,

		Annotations: own,
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	got, err := p.node.runtime.CreateContainer(ctx,
		&cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return "", err
	}
	return got.ContainerId, nil
}

// start makes and starts a container.
func (p *pod) start(t *testing.T, name string, mounts ...*cri.Mount) (id string) {
	t.Helper()
	id, err := p.create(t.Context(), name, mounts...)
	if err == nil {
		_, err = p.node.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		t.Fatalf("starting a container: %v\n%s", err, p.node.log())
	}
	return id
}

// exec runs a command in a container and returns what it prints.
func (n *node) exec(t *testing.T, id string, command ...string) string {
	t.Helper()
	got, err := n.runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	if err != nil || got.ExitCode != 0 {
		t.Fatalf("%q: %v %s", command, err, got)
	}
	return string(got.Stdout)
}

// sees is what a container has in its store directory.
func (n *node) sees(t *testing.T, id string) []string {
	t.Helper()
	return names(n.exec(t, id, "/bin/busybox", "ls", "-A", storeDir))
}

// roots asks for attributes of the store.
func roots(attributes ...string) map[string]string {
	var paths []string
	for _, a := range attributes {
		paths = append(paths, store[a])
	}
	return map[string]string{"nix-closure/roots": strings.Join(paths, " ")}
}
