// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kills is how often something is killed, at least.
const kills = 50

// killable is what can be killed; a hook has the shortest life, and two chances.
var killable = []string{"containerd", "shim", "hook", "hook", "plugin"}

// processes are the ids of those that run a program.
func processes(t *testing.T, program string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if exe, err := os.Readlink("/proc/" + e.Name() + "/exe"); err == nil && filepath.Base(exe) == program {
			all = append(all, pid)
		}
	}
	return all
}

// killOne kills one of the processes that run a program, as soon as there is one.
func killOne(t *testing.T, random *rand.Rand, program string) bool {
	t.Helper()
	for range 2000 {
		if all := processes(t, program); len(all) > 0 {
			return syscall.Kill(all[random.IntN(len(all))], syscall.SIGKILL) == nil
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// awaitWord waits until a container has said something, for a second at most: one that
// was killed says nothing.
func awaitWord(ctx context.Context, log string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if text, err := os.ReadFile(log); err == nil && len(text) > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitEnd waits until no process runs one of these programs.
func awaitEnd(t *testing.T, programs ...string) {
	t.Helper()
	var left map[string][]int
	for range 3000 {
		left = map[string][]int{}
		for _, p := range programs {
			if all := processes(t, p); len(all) > 0 {
				left[p] = all
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("processes that do not end: %v", left)
}

// While pods come and go, containerd, a shim, a hook or the plugin is killed, again
// and again. No container ever runs with anything but its closure, and one sweep
// removes what is left.
func TestKilled(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	annotations, want := manyPaths(t)
	n := newNode(t, nodeOptions{required: true,
		handlers: map[string]string{"nix-closure": filepath.Join(*bin, "nix-closure-runtime")}})
	plugin := n.startPlugin(t)

	// Each container says what it sees, in its log.
	const says = "busybox echo saw $(busybox ls -A /nix/store | busybox sort | busybox sha256sum); exec busybox " +
		"sleep 1000000"
	modes := []string{"overlay", "bind"}
	var logs []string // in these modes, in turn
	configs := make(chan *cri.PodSandboxConfig)
	var workers sync.WaitGroup
	var up sync.RWMutex // held for writing while containerd is being started again
	for range atOnce {
		workers.Go(func() {
			for config := range configs {
				up.RLock()
				runtime := n.runtime
				up.RUnlock()
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				// Any of it may fail.
				if got, err := runtime.RunPodSandbox(ctx,
					&cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "nix-closure"}); err == nil {
					created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
						PodSandboxId: got.PodSandboxId, SandboxConfig: config,
						Config: &cri.ContainerConfig{
							Metadata: &cri.ContainerMetadata{Name: "a"}, Image: &cri.ImageSpec{Image: image},
							LogPath: "a.log",
							Command: []string{"/bin/busybox", "sh", "-c", says},
							Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
								NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions,
							}},
						},
					})
					if err == nil {
						_, _ = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
						// Any of the kills may come before it has said what it sees.
						awaitWord(ctx, filepath.Join(config.LogDirectory, "a.log"))
					}
					_ = removeInTurn(ctx, runtime, got.PodSandboxId)
				}
				cancel()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(configs)
		for i := 0; ; i++ {
			a := maps.Clone(annotations)
			a["nix-closure/mode"] = modes[i%len(modes)]
			config := podConfig(t, a)
			logs = append(logs, filepath.Join(config.LogDirectory, "a.log"))
			select {
			case configs <- config:
			case <-done:
				return
			}
		}
	}()

	killed := map[string]int{}
	without := func() (kinds []string) {
		for _, what := range killable {
			if killed[what] == 0 {
				kinds = append(kinds, what)
			}
		}
		return kinds
	}
	for tries := 0; tries < 5*kills && (sum(killed) < kills || len(without()) > 0); tries++ {
		time.Sleep(time.Duration(100+random.IntN(300)) * time.Millisecond)
		switch what := killable[random.IntN(len(killable))]; what {
		case "containerd":
			up.Lock()
			_ = n.process.Process.Kill()
			_ = n.process.Wait()
			_ = n.client.Close()
			_ = n.connection.Close()
			n.start(t)
			up.Unlock()
			plugin.connected(t)
			killed[what]++
		case "plugin":
			plugin.end(t, syscall.SIGKILL)
			plugin = n.startPlugin(t)
			killed[what]++
		case "shim":
			if killOne(t, random, "containerd-shim-runc-v2") {
				killed[what]++
			}
		case "hook":
			if killOne(t, random, "nix-closure-hook") {
				killed[what]++
			}
		}
	}
	close(done)
	workers.Wait()
	t.Logf("killed: %v", killed)
	if sum(killed) < kills || len(without()) > 0 {
		t.Errorf("killed only %d times, and never %q", sum(killed), without())
	}

	saw := map[string]int{}
	for i, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it did not start
		}
		for line := range strings.Lines(string(text)) {
			_, said, ok := strings.Cut(line, "saw ")
			if !ok {
				t.Errorf("%s: %q", path, line)
				continue
			}
			if sum, _, _ := strings.Cut(said, " "); sum != want {
				t.Errorf("%s: a container saw another store: %s", path, line)
				continue
			}
			saw[modes[i%len(modes)]]++
		}
	}
	t.Logf("containers that ran, of %d pods: %v", len(logs), saw)
	for _, mode := range modes {
		if saw[mode] < 5 {
			t.Errorf("only %d containers ran in mode %s", saw[mode], mode)
		}
	}
	n.removeAll(t)
	// What no engine knows any more.
	for _, pid := range slices.Concat(processes(t, "containerd-shim-runc-v2"), processes(t, "busybox")) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	awaitEnd(t, "containerd-shim-runc-v2", "busybox", "nix-closure-hook")
	if out, err := exec.Command(filepath.Join(*bin, "nix-closure"), "gc", "--unused-for",
		"0s").CombinedOutput(); err != nil {
		t.Errorf("gc: %v %s", err, out)
	}
	left := leftovers(t)
	for _, dir := range []string{"views", "registrations"} {
		entries, err := os.ReadDir(filepath.Join(runtimeDir, dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	if len(left) > 0 {
		t.Errorf("left after a sweep: %q", left)
	}
}

func sum(counts map[string]int) (total int) {
	for _, n := range counts {
		total += n
	}
	return total
}

// removeInTurn removes a pod as a kubelet does, its containers first. A pod that still
// has one can stop containerd (2.4) for good: RemovePodSandbox and, within it,
// RemoveContainer take the same lock for reading, and a plugin that registers in
// between waits for it, for writing.
func removeInTurn(ctx context.Context, runtime cri.RuntimeServiceClient, pod string) error {
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	got, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}})
	if err != nil {
		return err
	}
	for _, c := range got.Containers {
		if _, err := runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			return err
		}
	}
	_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

// removeAll removes all pods, until there is none.
func (n *node) removeAll(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		pods, err := n.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err == nil && len(pods.Items) == 0 {
			return
		}
		for _, p := range pods.GetItems() {
			_, _ = n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
			_, _ = n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error(fmt.Errorf("pods that cannot be removed: %w", ctx.Err()))
}
