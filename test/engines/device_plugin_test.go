// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	resources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

const (
	// pluginSockets is where the kubelet finds the device plugin's sockets, and
	// pluginView where the plugin sees that directory.
	pluginSockets = kubeletDir + "/plugins_registry/nix-closure"
	pluginView    = "/run/nix-closure-device-plugin"
	// pluginUser is no user of the host.
	pluginUser = 54321
	// notAdmitted is the kubelet's reason, and noneHealthy its message.
	notAdmitted = "UnexpectedAdmissionError"
	noneHealthy = "no healthy devices present; cannot allocate unhealthy devices nix-closure/"
	// units is how many a closure has.
	units = 1024
)

// removeDevice removes a named closure.
func removeDevice(t *testing.T, name string) {
	t.Helper()
	command(t, filepath.Join(*bin, "nix-closure"), "cdi", "remove", name)
}

// devicePlugin is a device plugin of one node.
type devicePlugin struct {
	process *exec.Cmd
	log     string
}

// newDevicePlugin prepares the directory of the sockets as the example's unit does, and
// starts the plugin as a user without privileges.
func newDevicePlugin(t *testing.T) *devicePlugin {
	t.Helper()
	// That user cannot read where the tests' programs are, nor the kubelet's directory.
	const program = "/usr/local/bin/nix-closure-device-plugin"
	text, err := os.ReadFile(filepath.Join(*bin, "nix-closure-device-plugin"))
	if err == nil {
		err = os.WriteFile(program, text, 0o755)
	}
	for _, dir := range []string{pluginSockets, pluginView} {
		if err == nil {
			err = os.MkdirAll(dir, 0o750)
		}
	}
	if err == nil {
		err = os.Chown(pluginSockets, pluginUser, pluginUser)
	}
	if err == nil {
		err = syscall.Mount(pluginSockets, pluginView, "", syscall.MS_BIND, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(pluginView, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = os.Remove(program)
	})
	p := &devicePlugin{log: t.TempDir() + "/log"}
	p.start(t)
	t.Cleanup(func() {
		p.end(t, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("device plugin: %s", readFile(t, p.log))
		}
	})
	return p
}

// command is the plugin with no privilege at all.
func (p *devicePlugin) command() *exec.Cmd {
	user := fmt.Sprint(pluginUser)
	return exec.Command("setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--bounding-set", "-all",
		"--inh-caps", "-all", "--no-new-privs", "/usr/local/bin/nix-closure-device-plugin", "--sockets", pluginView)
}

func (p *devicePlugin) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.process = p.command()
	p.process.Stdout, p.process.Stderr = log, log
	if err := p.process.Start(); err != nil {
		t.Fatal(err)
	}
}

// end ends the plugin, if it runs, and returns its exit status, -1 for a signal.
func (p *devicePlugin) end(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	if p.process.ProcessState == nil {
		if err := p.process.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		_ = p.process.Wait()
	}
	return p.process.ProcessState.ExitCode()
}

// says waits until the plugin's log has a line with each of some texts.
func (p *devicePlugin) says(t *testing.T, texts ...string) {
	t.Helper()
	for range 200 {
		for line := range strings.Lines(readFile(t, p.log)) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("the plugin's log has no line with %q:\n%s", texts, readFile(t, p.log))
}

// healthy is how many units of each named closure the kubelet can give.
func (k *kubelet) healthy(ctx context.Context) (map[string]int, error) {
	connection, err := grpc.NewClient("unix://"+kubeletDir+"/pod-resources/kubelet.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	all, err := resources.NewPodResourcesListerClient(connection).GetAllocatableResources(ctx,
		&resources.AllocatableResourcesRequest{})
	count := map[string]int{}
	for _, d := range all.GetDevices() {
		if name, ok := strings.CutPrefix(d.ResourceName, "nix-closure/"); ok {
			count[name] += len(d.DeviceIds)
		}
	}
	return count, err
}

// has waits until the kubelet can give these units, and no others.
func (k *kubelet) has(t *testing.T, want map[string]int) {
	t.Helper()
	var got map[string]int
	var err error
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		got, err = k.healthy(ctx)
		cancel()
		if err == nil && fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("the kubelet has %v, want %v: %v", got, want, err)
}

// runs gives the kubelet a pod, whose containers ask for so many units of resources, by
// their names.
func (k *kubelet) runs(t *testing.T, pod string, containers map[string]map[string]int) {
	t.Helper()
	p := core.Pod{}
	p.Name, p.Namespace = pod, "default"
	// Without a closure, a container sees the host's whole store.
	p.Spec.Volumes = []core.Volume{{Name: "store", VolumeSource: core.VolumeSource{
		HostPath: &core.HostPathVolumeSource{Path: storeDir}}}}
	for name, asks := range containers {
		c := core.Container{Name: name, Command: []string{"/bin/busybox", "sleep", "1000000"},
			VolumeMounts: []core.VolumeMount{{Name: "store", MountPath: storeDir}}}
		c.Resources.Limits = core.ResourceList{}
		for r, n := range asks {
			c.Resources.Limits[core.ResourceName(r)] = *resource.NewQuantity(int64(n), resource.DecimalSI)
		}
		// The kubelet's own default.
		c.Resources.Requests = c.Resources.Limits
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	// The kubelet reads a file as soon as it is there.
	file := filepath.Join(k.manifests, pod+".yaml")
	if err := os.WriteFile(k.dir+"/new", asStatic(t, p, image), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(k.dir+"/new", file); err != nil {
		t.Fatal(err)
	}
}

// one asks for one unit of each of some named closures.
func one(closures ...string) map[string]int {
	asks := map[string]int{}
	for _, name := range closures {
		asks["nix-closure/"+name] = 1
	}
	return asks
}

// ends removes a pod.
func (k *kubelet) ends(t *testing.T, pod string) {
	t.Helper()
	if err := os.Remove(filepath.Join(k.manifests, pod+".yaml")); err != nil {
		t.Error(err)
	}
}

// refuses waits until the kubelet has refused a pod, with a reason and with a message.
func (k *kubelet) refuses(t *testing.T, pod, reason, message string) {
	t.Helper()
	var got core.PodStatus
	for range 300 {
		if got = podStatus(k.address, pod+"-node", nil); got.Phase != "" && got.Phase != core.PodPending {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if got.Phase != core.PodFailed || got.Reason != reason || !strings.Contains(got.Message, message) {
		t.Errorf("pod %s: %s, reason %q, message %q; want reason %q, message %q", pod, got.Phase, got.Reason,
			got.Message, reason, message)
	}
	k.ends(t, pod)
}

// waits waits until the only container of a pod does not start, for a reason.
func (k *kubelet) waits(t *testing.T, pod, reason string) {
	t.Helper()
	var got core.PodStatus
	for range 300 {
		got = podStatus(k.address, pod+"-node", nil)
		if len(got.ContainerStatuses) == 1 {
			s := got.ContainerStatuses[0]
			for _, state := range []core.ContainerState{s.State, s.LastTerminationState} {
				if state.Waiting != nil && strings.Contains(state.Waiting.Message, reason) ||
					state.Terminated != nil && strings.Contains(state.Terminated.Message, reason) {
					return
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := json.Marshal(got)
	t.Errorf("pod %s does not wait for the reason %q: %s", pod, reason, text)
}

// container waits until a container of a pod runs that is none of those, and returns its ID.
func (n *node) container(t *testing.T, pod, name string, except ...string) string {
	t.Helper()
	for range 600 {
		for _, s := range n.containersOf(t, pod+"-node") {
			if s.Metadata.Name == name && !slices.Contains(except, s.Id) {
				return s.Id
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("container %s of pod %s does not run\n%s", name, pod, n.log())
	return ""
}

// A pod that asks for a named closure has exactly that closure, without an annotation, a
// RuntimeClass or the NRI plugin. The plugin is a user without privileges.
func TestDevicePlugin(t *testing.T) {
	n := newNode(t, nodeOptions{})
	k := n.startKubelet(t)
	long := strings.Repeat("x", 64)
	for name, root := range map[string]string{"env": store["env"], "tools": store["tools"], "a:b": store["env"],
		long: store["env"]} {
		generate(t, name, root)
	}
	p := newDevicePlugin(t)
	k.has(t, map[string]int{"env": units, "tools": units})
	for _, name := range []string{"a:b", long} {
		p.says(t, "device not advertised: nix-closure/closure="+name, "cannot be the name of a resource")
	}
	p.says(t, "registered with the kubelet", "resource=nix-closure/env")

	k.runs(t, "two", map[string]map[string]int{"env": one("env"), "tools": one("tools"), "none": nil})
	see := func(id string, attribute string) {
		t.Helper()
		if got, want := n.sees(t, id), closureOf(t, store[attribute]); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", attribute, got, want)
		}
	}
	env, tools := n.container(t, "two", "env"), n.container(t, "two", "tools")
	see(env, "env")
	see(tools, "tools")
	// The same container without the resource sees all of it.
	if got := n.sees(t, n.container(t, "two", "none")); !slices.Contains(got, filepath.Base(store["foreign"])) {
		t.Errorf("without a closure: %q", got)
	}
	k.runs(t, "twice", map[string]map[string]int{"a": {"nix-closure/env": 2}})
	k.refuses(t, "twice", notAdmitted, "asks for 2 of it; a closure is there or not, so ask for 1")
	// Two closures are not one.
	k.runs(t, "both", map[string]map[string]int{"a": one("env", "tools")})
	k.waits(t, "both", "the container has a closure already")
	k.ends(t, "both")

	k.ends(t, "two")
	nothingLeft(t)
	if status := p.end(t, syscall.SIGTERM); status != 0 {
		t.Errorf("after SIGTERM: exit status %d", status)
	}
	if left, err := os.ReadDir(pluginSockets); err != nil || len(left) > 0 {
		t.Errorf("sockets left: %v %v", left, err)
	}
}

// What a node does not have, no pod gets there. What it has may change.
func TestDevicePluginChanges(t *testing.T) {
	n := newNode(t, nodeOptions{})
	k := n.startKubelet(t)
	add := func(text string) string {
		file := filepath.Join(t.TempDir(), "thing")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(command(t, "nix-store", "--add", file))
	}
	thing := add("thing")
	// The plugin comes first.
	p := newDevicePlugin(t)
	generate(t, "env", store["env"])
	generate(t, "thing", thing)
	k.has(t, map[string]int{"env": units, "thing": units})

	// A root that is not valid any more, and one that is again.
	command(t, "nix-store", "--delete", "--ignore-liveness", thing)
	k.has(t, map[string]int{"env": units})
	p.says(t, "closure unhealthy", "resource=nix-closure/thing", thing+" is not valid in Nix's database")
	k.runs(t, "invalid", map[string]map[string]int{"a": one("thing")})
	k.refuses(t, "invalid", notAdmitted, noneHealthy+"thing")
	add("thing")
	k.has(t, map[string]int{"env": units, "thing": units})
	k.runs(t, "valid", map[string]map[string]int{"a": one("thing")})
	if got := n.sees(t, n.container(t, "valid", "a")); !slices.Equal(got, []string{filepath.Base(thing)}) {
		t.Errorf("%q", got)
	}
	k.ends(t, "valid")

	// A closure that is added, and one that is removed.
	generate(t, "tools", store["tools"])
	removeDevice(t, "thing")
	k.has(t, map[string]int{"env": units, "tools": units})
	p.says(t, "closure not advertised any more", "resource=nix-closure/thing")
	k.runs(t, "removed", map[string]map[string]int{"a": one("thing")})
	k.refuses(t, "removed", notAdmitted, noneHealthy+"thing")

	// A file that engines cannot read, and no file.
	if err := os.WriteFile(cdiFile, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.has(t, map[string]int{})
	p.says(t, "named closures not known", cdiFile)
	if err := os.Remove(cdiFile); err != nil {
		t.Fatal(err)
	}
	generate(t, "env", store["env"])
	k.has(t, map[string]int{"env": units})
	removeDevice(t, "env")
	k.has(t, map[string]int{})
	nothingLeft(t)
}

// Pods go on, and new ones come, whichever of the plugin and the kubelet is started anew.
func TestDevicePluginRestarts(t *testing.T) {
	n := newNode(t, nodeOptions{})
	k := n.startKubelet(t)
	generate(t, "env", store["env"])
	p := newDevicePlugin(t)
	all := map[string]int{"env": units}
	k.has(t, all)
	k.runs(t, "first", map[string]map[string]int{"a": one("env")})
	first := n.container(t, "first", "a")
	want := closureOf(t, store["env"])
	see := func(why, id string) {
		t.Helper()
		if got := n.sees(t, id); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", why, got, want)
		}
	}
	see("first", first)

	p.end(t, syscall.SIGKILL)
	k.has(t, map[string]int{})
	k.runs(t, "without", map[string]map[string]int{"a": one("env")})
	k.refuses(t, "without", notAdmitted, noneHealthy+"env")
	// A container of a pod that was admitted starts again with its closure.
	if err := syscall.Kill(n.pid(t, first), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := n.container(t, "first", "a", first)
	see("started again without the plugin", second)
	p.start(t)
	k.has(t, all)
	k.runs(t, "after-plugin", map[string]map[string]int{"a": one("env")})
	see("after the plugin's restart", n.container(t, "after-plugin", "a"))

	// The plugin is asked again by a kubelet that was restarted.
	k.stop()
	registered := strings.Count(readFile(t, p.log), "registered with the kubelet")
	k.start(t)
	k.has(t, all)
	k.runs(t, "after-kubelet", map[string]map[string]int{"a": one("env")})
	see("after the kubelet's restart", n.container(t, "after-kubelet", "a"))
	if now := strings.Count(readFile(t, p.log), "registered with the kubelet"); now != registered+1 {
		t.Errorf("the kubelet registered it %d times, want %d", now, registered+1)
	}
	// The socket is removed.
	sockets, err := filepath.Glob(pluginSockets + "/*")
	if err != nil || len(sockets) != 1 {
		t.Fatal(sockets, err)
	}
	if err := os.Remove(sockets[0]); err != nil {
		t.Fatal(err)
	}
	k.has(t, all)
	if got := n.container(t, "first", "a"); got != second {
		t.Errorf("container %s was replaced by %s", second, got)
	}
	// One plugin a directory.
	if out, err := p.command().CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "another nix-closure-device-plugin serves there; end it first") {
		t.Errorf("a second plugin: %v %s", err, out)
	}
	for _, pod := range []string{"first", "after-plugin", "after-kubelet"} {
		k.ends(t, pod)
	}
	nothingLeft(t)
}

// What the documents warn of: the kubelet admits a static pod that asks for a resource that
// it has never heard of, and starts it without.
func TestDevicePluginUnknownFailsOpen(t *testing.T) {
	n := newNode(t, nodeOptions{})
	k := n.startKubelet(t)
	k.runs(t, "unknown", map[string]map[string]int{"a": one("unknown")})
	if got := n.sees(t, n.container(t, "unknown", "a")); !slices.Contains(got, filepath.Base(store["foreign"])) {
		t.Errorf("it does not fail open any more; mend the documents: %q", got)
	}
	k.ends(t, "unknown")
}

// What the documents say of a RuntimeClass that is gVisor: the container does not start.
func TestDeviceUnderGVisor(t *testing.T) {
	n := newNode(t, nodeOptions{gvisor: true})
	generate(t, "env", store["env"])
	start := func(devices ...*cri.CDIDevice) error {
		p := n.run(t, "gvisor", podConfig(t, nil))
		defer p.remove(t)
		got, err := n.runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{
			PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "a"}, Image: &cri.ImageSpec{Image: image}, LogPath: "a.log",
				Command: []string{"/bin/busybox", "sleep", "1000000"}, CDIDevices: devices,
			},
		})
		if err == nil {
			_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: got.ContainerId})
		}
		return err
	}
	if err := start(); err != nil {
		t.Errorf("without a device: %v", err)
	}
	if err := start(&cri.CDIDevice{Name: kind + "env"}); err == nil {
		t.Error("it starts with a device; mend the documents, and see what it sees")
	}
	nothingLeft(t)
}

// The DaemonSet's plugin has no privileges either, and the pod of the examples its closure.
func TestExampleDevicePlugin(t *testing.T) {
	archive := buildExampleImage(t)
	n := newNode(t, nodeOptions{})
	n.load(t, archive, exampleImage)
	k := n.startKubelet(t)
	generate(t, "hello", store["env"])
	set := only[*apps.DaemonSet](t, example(t, "kubernetes/components/device-plugin/device-plugin.yaml"))
	template := core.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	template.Name, template.Namespace = set.Name, set.Namespace
	if err := os.WriteFile(k.manifests+"/set.yaml", asStatic(t, template, exampleImage), 0o644); err != nil {
		t.Fatal(err)
	}
	k.has(t, map[string]int{"hello": units})
	status := readFile(t, fmt.Sprintf("/proc/%d/status", n.pid(t, n.container(t, set.Name, "plugin"))))
	for _, want := range []string{"Uid:\t54321\t54321\t54321\t54321\n", "CapEff:\t0000000000000000\n",
		"CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the plugin's process lacks %q:\n%s", want, status)
		}
	}
	pod := only[*core.Pod](t, example(t, "kubernetes/pod-named.yaml"))
	pod.Namespace = "default"
	pod.Spec.Containers[0].Command = []string{"/bin/busybox", "sleep", "1000000"}
	if err := os.WriteFile(k.manifests+"/pod.yaml", asStatic(t, *pod, image), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := n.sees(t, n.container(t, pod.Name, "hello")), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	for _, f := range []string{"pod", "set"} {
		k.ends(t, f)
	}
	nothingLeft(t)
}

// The unit runs the plugin as newDevicePlugin does, and takes all else from it.
func TestExampleDevicePluginUnit(t *testing.T) {
	const unit = "nix-closure-device-plugin.service"
	text := example(t, "systemd/"+unit)
	for _, line := range []string{
		"User=nix-closure",
		"ExecStart=" + installedIn + "/nix-closure-device-plugin --sockets " + pluginView,
		"BindPaths=" + pluginSockets + ":" + pluginView,
		"CapabilityBoundingSet=",
		"NoNewPrivileges=yes",
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("the unit lacks %q", line)
		}
	}
	verifyUnits(t, unit)
	// In tenths; 10.0 is a service that is not confined.
	command(t, "systemd-analyze", "security", "--offline=yes", "--threshold=10", examples+"/systemd/"+unit)
}
