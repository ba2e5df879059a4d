// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// sysctls are what a kubelet changes of the host.
var sysctls = []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"}

// coverSysctls puts plain files in the place of those, for the length of a test: what
// is written there, the kernel does not hear of.
func coverSysctls(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, s := range sysctls {
		file, name := filepath.Join(dir, filepath.Base(s)), "/proc/sys/"+s
		if err := os.WriteFile(file, []byte(readFile(t, name)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(file, name, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(name, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
}

// kubelet is a kubelet that has no API server, only static pods.
type kubelet struct {
	process   *exec.Cmd
	dir       string // its configuration and its log
	manifests string // the directory of the pods' manifests
	address   string // of its HTTPS server, on the loopback of its network namespace
}

// kubeletDir is a kubelet's directory. What it notes of device plugins is there whatever
// --root-dir says.
const kubeletDir = "/var/lib/kubelet"

// startKubelet starts a kubelet, and ends it with the test.
func (n *node) startKubelet(t *testing.T) *kubelet {
	t.Helper()
	coverSysctls(t)
	// On the host, this directory only becomes a mount point.
	if err := os.MkdirAll(kubeletDir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", kubeletDir, "tmpfs", 0, "mode=0750"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(kubeletDir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	k := &kubelet{dir: filepath.Join(testhost.Dir(), "kubelet"), address: freeAddress(t)}
	k.manifests = k.dir + "/manifests"
	if err := os.MkdirAll(k.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(k.address, ":")
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: %s
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%s
staticPodPath: %s
fileCheckFrequency: 200ms
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
oomScoreAdj: 0
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
podLogsDir: %s/logs
`, port, n.socket(), k.manifests, k.dir)
	if err := os.WriteFile(k.dir+"/config.yaml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.dir+"/log", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k.start(t)
	t.Cleanup(func() {
		k.stop()
		if text, _ := os.ReadFile(k.dir + "/log"); t.Failed() {
			t.Logf("kubelet: %s", text[max(0, len(text)-5000):])
		}
		// It mounts a tmpfs for each pod's token, and unmounts it.
	})
	return k
}

func (k *kubelet) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(k.dir+"/log", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.process = exec.Command(filepath.Join(*bin, "stack/kubelet"), "--config", k.dir+"/config.yaml",
		"--root-dir", kubeletDir, "--hostname-override", "node")
	k.process.Stdout, k.process.Stderr = log, log
	if err := k.process.Start(); err != nil {
		t.Fatal(err)
	}
}

func (k *kubelet) stop() {
	_ = k.process.Process.Signal(syscall.SIGTERM)
	_ = k.process.Wait()
}

// containersOf are the containers of a pod that run.
func (n *node) containersOf(t *testing.T, pod string) []*cri.Container {
	t.Helper()
	got, err := n.runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{"io.kubernetes.pod.name": pod},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return got.Containers
}

// running waits until a container of a pod runs that is none of those, and returns
// its id.
func (n *node) running(t *testing.T, pod string, except ...string) string {
	t.Helper()
	for range 600 {
		for _, c := range n.containersOf(t, pod) {
			if !slices.Contains(except, c.Id) {
				return c.Id
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no container of pod %s runs\n%s", pod, n.log())
	return ""
}

// A static pod runs with its closure, again after its container ended, and leaves
// nothing behind when it is gone. What names no RuntimeClass, as a static pod, has the
// default one.
func TestKubelet(t *testing.T) {
	t.Run("wrapper", func(t *testing.T) {
		testKubelet(t, newNode(t, nodeOptions{handlers: map[string]string{"runc": filepath.Join(*bin,
			"nix-closure-runtime")}}))
	})
	t.Run("plugin", func(t *testing.T) {
		n := newNode(t, nodeOptions{})
		n.startPlugin(t)
		testKubelet(t, n)
	})
}

func testKubelet(t *testing.T, n *node) {
	manifests := n.startKubelet(t).manifests
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    nix-closure/roots: %s
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: %s
    imagePullPolicy: Never
    command: ["/bin/busybox", "sleep", "1000000"]
`, store["env"], image)
	if err := os.WriteFile(manifests+"/web.yaml", []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	want := closureOf(t, store["env"])
	first := n.running(t, "web-node")
	if got := n.sees(t, first); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if err := syscall.Kill(n.pid(t, first), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := n.running(t, "web-node", first)
	if got := n.sees(t, second); !slices.Equal(got, want) {
		t.Errorf("after a restart: %q\nwant %q", got, want)
	}
	if err := os.Remove(manifests + "/web.yaml"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
