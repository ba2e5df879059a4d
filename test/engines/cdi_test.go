// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cdi"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	devices "tags.cncf.io/container-device-interface/pkg/cdi"
)

const (
	cdiFile  = "/etc/cdi/nix-closure.json"
	cdiRoots = "/nix/var/nix/gcroots/nix-closure-cdi"
	kind     = "nix-closure/closure="
)

// command runs a program, and returns what it prints.
func command(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// generate adds a device of the roots, for the length of a test.
func generate(t *testing.T, name string, roots ...string) {
	t.Helper()
	command(t, filepath.Join(*bin, "nix-closure"), "cdi", "generate", name+"="+strings.Join(roots, ":"))
	t.Cleanup(func() {
		for _, path := range []string{cdiFile, cdiRoots} {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
	})
}

// isAlone tests an engine that has nothing of this program but its file of devices. run runs
// a container that mounts the whole store, and returns what that sees.
func isAlone(t *testing.T, run func(t *testing.T, devices ...string) ([]string, error)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "goes")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	goes := strings.TrimSpace(command(t, "nix-store", "--add", file))
	generate(t, "env", store["env"])
	generate(t, "tools", store["tools"])
	generate(t, "both", store["env"], store["tools"])
	generate(t, "goes", goes)
	has := func(want []string, devices ...string) {
		t.Helper()
		if sees, err := run(t, devices...); err != nil || !slices.Equal(sees, want) {
			t.Errorf("%q: %v: it sees %q\nwant %q", devices, err, sees, want)
		}
	}
	refused := func(says string, devices ...string) {
		t.Helper()
		sees, err := run(t, devices...)
		isRefused(t, sees, err, says)
	}
	// A daemon hears of a change of the file, and reads it a moment later.
	noticed := func(says string) {
		t.Helper()
		for range 50 {
			if _, err := run(t, kind+"env"); err != nil && strings.Contains(err.Error(), says) {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		refused(says, kind+"env")
	}
	// The control: without a device there is the whole store.
	if sees, err := run(t); err != nil || !slices.Contains(sees, filepath.Base(store["foreign"])) {
		t.Fatalf("without a device: %v %q", err, sees)
	}
	for range 50 {
		if _, err := run(t, kind+"goes"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	env, tools := closureOf(t, store["env"]), closureOf(t, store["tools"])
	both := slices.Concat(env, tools)
	slices.Sort(both)
	has(env, kind+"env")
	has(tools, kind+"tools")
	has(slices.Compact(both), kind+"both")
	refused("closure", kind+"env", kind+"tools")
	refused(kind+"none", kind+"none")

	if err := os.RemoveAll(cdiRoots); err != nil {
		t.Fatal(err)
	}
	command(t, "nix-store", "--delete", goes)
	refused(goes+" is not valid", kind+"goes")

	text, err := os.ReadFile(cdiFile)
	if err != nil {
		t.Fatal(err)
	}
	gone := bytes.ReplaceAll(text, []byte(*bin), []byte("/nowhere"))
	// Atomically: engines read the file as soon as it changes.
	err = os.WriteFile(cdiFile+".new", gone, 0o644)
	if err == nil {
		err = os.Rename(cdiFile+".new", cdiFile)
	}
	if err != nil {
		t.Fatal(err)
	}
	noticed("/nowhere/nix-closure-hook")
	if err := os.Remove(cdiFile); err != nil {
		t.Fatal(err)
	}
	noticed("nresolvable CDI devices")
}

// Docker as it is knows devices.
func TestDeviceAloneOfDocker(t *testing.T) {
	d := newDockerWith(t, []byte("{}"))
	isAlone(t, func(t *testing.T, devices ...string) ([]string, error) {
		return d.runOnce(t, "busybox", nil, devices...)
	})
}

// A client of containerd's puts devices into the container's specification.
func TestDeviceAloneOfClient(t *testing.T) {
	n := newNode(t, nodeOptions{})
	if _, err := n.client.Import(namespaces.WithNamespace(t.Context(), "default"), busyboxImage(t)); err != nil {
		t.Fatal(err)
	}
	// As a client that was just started: it reads the files now, and not when it hears of a
	// change.
	if err := devices.Configure(devices.WithAutoRefresh(false)); err != nil {
		t.Fatal(err)
	}
	count := 0
	isAlone(t, func(t *testing.T, devices ...string) (sees []string, err error) {
		count++
		id := fmt.Sprintf("alone-%d", count)
		t.Run(id, func(t *testing.T) { sees, err = n.listWith(t, id, devices) })
		nothingLeft(t)
		return sees, err
	})
}

// listWith runs a container of a client of containerd's, with devices and the whole store,
// by runc, and returns what it lists.
func (n *node) listWith(t *testing.T, id string, devices []string) ([]string, error) {
	t.Helper()
	known := cdi.WithCDIDevices(devices...)
	if err := known(t.Context(), nil, nil, &specs.Spec{}); err != nil {
		return nil, err // the client would not make the container
	}
	var out bytes.Buffer
	whole := specs.Mount{Destination: storeDir, Type: "bind", Source: storeDir, Options: []string{"rbind", "ro"}}
	ctx, task, err := n.taskOf(t, "default", image, filepath.Join(*bin, "stack/runc"), id, []oci.SpecOpts{
		oci.WithProcessArgs("/bin/sh", "-c", listStore), oci.WithMounts([]specs.Mount{whole}), known,
	}, cio.NewCreator(cio.WithStreams(nil, &out, io.Discard)))
	if err != nil {
		return nil, err
	}
	ended, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-ended
	task.IO().Wait()
	return names(out.String()), nil
}

// The CRI takes devices by a field of its own, and by an annotation of the container.
func TestDeviceAloneOfPod(t *testing.T) {
	n := newNode(t, nodeOptions{})
	for name, ask := range map[string]func(*cri.ContainerConfig, []string){
		"field": func(c *cri.ContainerConfig, devices []string) {
			for _, name := range devices {
				c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: name})
			}
		},
		"annotation": func(c *cri.ContainerConfig, devices []string) {
			c.Annotations = map[string]string{"cdi.k8s.io/nix-closure": strings.Join(devices, ",")}
			if len(devices) == 0 {
				c.Annotations = nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			isAlone(t, func(t *testing.T, devices ...string) ([]string, error) {
				return n.deviceBy(t, ask, devices)
			})
		})
	}
}

// deviceBy runs a pod of one container that mounts the whole store, and returns what that
// sees.
func (n *node) deviceBy(t *testing.T, ask func(*cri.ContainerConfig, []string), devices []string) ([]string, error) {
	t.Helper()
	p := n.run(t, "", podConfig(t, nil))
	defer func() {
		p.remove(t)
		nothingLeft(t)
	}()
	id, err := p.createWith(t, "a", func(c *cri.ContainerConfig) { ask(c, devices) })
	if err != nil {
		return nil, err
	}
	return n.sees(t, id), nil
}

// createWith makes and starts a container that mounts the whole store.
func (p *pod) createWith(t *testing.T, name string, change func(*cri.ContainerConfig)) (string, error) {
	t.Helper()
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Command:  []string{"/bin/busybox", "sleep", "1000000"},
		Mounts:   []*cri.Mount{wholeStore},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	change(c)
	made, err := p.node.runtime.CreateContainer(t.Context(),
		&cri.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err != nil {
		return "", err
	}
	_, err = p.node.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

// In a pod with several containers, each has its own device: the sandbox and a container
// without one have nothing of them. Beside them, a container may have its closure by an
// annotation, which is its own.
func TestDevicesOfPod(t *testing.T) {
	generate(t, "env", store["env"])
	generate(t, "tools", store["tools"])
	device := func(name string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: kind + name}} }
	}
	start := func(t *testing.T, n *node, p *pod, name string, change func(*cri.ContainerConfig), want string) {
		t.Helper()
		id, err := p.createWith(t, name, change)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sees := n.sees(t, id)
		if want == "" && !slices.Contains(sees, filepath.Base(store["foreign"])) {
			t.Errorf("%s: it sees %q", name, sees)
		} else if want != "" && !slices.Equal(sees, closureOf(t, store[want])) {
			t.Errorf("%s: it sees %q", name, sees)
		}
	}
	t.Run("devices alone", func(t *testing.T) {
		n := newNode(t, nodeOptions{})
		p := n.run(t, "", podConfig(t, nil))
		start(t, n, p, "a", device("env"), "env")
		start(t, n, p, "b", device("tools"), "tools")
		start(t, n, p, "c", func(*cri.ContainerConfig) {}, "")
		p.remove(t)
		nothingLeft(t)
	})
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		p := n.run(t, handler, podConfig(t, map[string]string{"b.nix-closure/roots": store["tools"]}))
		start(t, n, p, "a", device("env"), "env")
		start(t, n, p, "b", func(*cri.ContainerConfig) {}, "tools")
		p.remove(t)
		nothingLeft(t)
	})
}
