// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// claims are what only some engine may say, but somebody else does.
func claims() []testhost.Claim { return testhost.Claims(store["foreign"]) }

// isRefused fails unless an error has one of these.
func isRefused(t *testing.T, sees []string, err error, reasons ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it starts, and sees %q", sees)
		return
	}
	// runc escapes what a hook printed, for its own log.
	said := strings.ReplaceAll(err.Error(), `\"`, `"`)
	if !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(said, r) }) {
		t.Errorf("it is refused, but the reason has none of %q: %v", reasons, err)
	}
}

// check fails if a container that an engine ran sees more or less than it may.
func check(t *testing.T, c testhost.Claim, engine string, sees []string, err error) {
	t.Helper()
	want := c.Outcome(engine)
	if want == testhost.Refused {
		isRefused(t, sees, err, c.Reasons()...)
	} else if closure := closureOf(t, store[want]); err != nil || !slices.Equal(sees, closure) {
		t.Errorf("%v: it sees %q\nwant %q", err, sees, closure)
	}
}

// asking are annotations of what asks for env.
func asking(says map[string]string) map[string]string {
	all := roots("env")
	maps.Copy(all, says)
	return all
}

const listStore = "/bin/busybox ls -A " + storeDir

// runOnce runs a container of Docker's to its end, and returns what it lists.
func (d docker) runOnce(t *testing.T, image string, says map[string]string, devices ...string) ([]string, error) {
	t.Helper()
	o := container.HostConfig{Annotations: says, NetworkMode: "none",
		Binds: []string{storeDir + ":" + storeDir + ":ro"}}
	if len(devices) > 0 {
		o.DeviceRequests = []container.DeviceRequest{{Driver: "cdi", DeviceIDs: devices}}
	}
	got, err := d.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Config:     &container.Config{Image: image, Cmd: []string{"/bin/busybox", "sh", "-c", listStore}},
		HostConfig: &o,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, stdout, _, err := d.run(t, got.ID)
	d.remove(t, got.ID)
	nothingLeft(t)
	return names(stdout), err
}

// Docker says nothing of pods, so nobody is believed.
func TestBelievedOfDocker(t *testing.T) {
	d := newDocker(t)
	for _, c := range claims() {
		t.Run(c.Name, func(t *testing.T) {
			writeConfig(t, c.Config)
			sees, err := d.runOnce(t, "busybox", asking(c.Says))
			check(t, c, "", sees, err)
		})
	}
}

// Docker knows devices, which ask for a closure by their name.
func TestDeviceOfDocker(t *testing.T) {
	generate(t, "env", store["env"])
	generate(t, "tools", store["tools"])
	d := newDocker(t)
	const env, tools = "nix-closure/closure=env", "nix-closure/closure=tools"
	closure := closureOf(t, store["env"])
	if sees, err := d.runOnce(t, "busybox", nil, env); err != nil || !slices.Equal(sees, closure) {
		t.Errorf("%v: it sees %q", err, sees)
	}
	if sees, err := d.runOnce(t, "busybox", roots("env"), env); err != nil || !slices.Equal(sees, closure) {
		t.Errorf("with the same annotation: %v: it sees %q", err, sees)
	}
	sees, err := d.runOnce(t, "busybox", roots("tools"), env)
	isRefused(t, sees, err, "nix-closure/roots")
	sees, err = d.runOnce(t, "busybox", nil, env, tools)
	isRefused(t, sees, err, "closure")
	for _, c := range claims() {
		t.Run(c.Name, func(t *testing.T) {
			writeConfig(t, c.Config)
			if c.Config != "" {
				c.Want = map[string]string{"*": testhost.ItsOwn} // the rules are not for devices
			}
			sees, err := d.runOnce(t, "busybox", c.Says, env)
			if err == nil {
				check(t, c, "", sees, err)
				return
			}
			// With a key of one container alone, the wrapper, too, has a reason.
			isRefused(t, sees, err, c.Reasons()...)
		})
	}
}

// list runs a container of a client of containerd's that mounts the whole store, by the wrapper,
// and returns what it lists.
func (n *node) list(t *testing.T, namespace, image, id string, says map[string]string) (sees []string, _ error) {
	t.Helper()
	var out bytes.Buffer
	whole := specs.Mount{Destination: storeDir, Type: "bind", Source: storeDir, Options: []string{"rbind", "ro"}}
	more := []oci.SpecOpts{
		oci.WithProcessArgs("/bin/sh", "-c", listStore), oci.WithAnnotations(says),
		oci.WithMounts([]specs.Mount{whole}),
	}
	streams := cio.NewCreator(cio.WithStreams(nil, &out, io.Discard))
	ctx, task, err := n.taskOf(t, namespace, image, filepath.Join(*bin, "nix-closure-runtime"), id, more, streams)
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

// A client of containerd is believed where its namespace is the CRI's, for it is root,
// and nowhere else.
func TestBelievedOfClient(t *testing.T) {
	n := newNode(t, nodeOptions{})
	if _, err := n.client.Import(namespaces.WithNamespace(t.Context(), "default"), busyboxImage(t)); err != nil {
		t.Fatal(err)
	}
	for namespace, engine := range map[string]string{"default": "", "k8s.io": "containerd"} {
		for i, c := range claims() {
			t.Run(namespace+"/"+c.Name, func(t *testing.T) {
				writeConfig(t, c.Config)
				sees, err := n.list(t, namespace, image, fmt.Sprintf("claim-%d", i), asking(c.Says))
				check(t, c, engine, sees, err)
			})
		}
	}
	nothingLeft(t)
}

// device runs a pod of the namespace team-a with one container, a, that mounts the whole store
// and asks for a device, and returns what that sees.
func (n *node) device(t *testing.T, handler string, ofPod map[string]string, names ...string) (sees []string, _ error) {
	t.Helper()
	config := podConfig(t, ofPod)
	config.Metadata.Namespace = "team-a"
	p := n.run(t, handler, config)
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "a"},
		Image:    &cri.ImageSpec{Image: image},
		Command:  []string{"/bin/busybox", "sleep", "1000000"},
		Mounts:   []*cri.Mount{wholeStore},
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{}},
	}
	container.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
	for _, name := range names {
		container.CDIDevices = append(container.CDIDevices, &cri.CDIDevice{Name: "nix-closure/closure=" + name})
	}
	defer func() {
		p.remove(t)
		nothingLeft(t)
	}()
	made, err := n.runtime.CreateContainer(t.Context(),
		&cri.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: config})
	if err == nil {
		_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: made.ContainerId})
	}
	if err != nil {
		return nil, err
	}
	return n.sees(t, made.ContainerId), nil
}

// Kubernetes gives a device to a container, whose annotations may say the same and no other.
// A key for one container is refused, or is another's.
func TestDeviceOfPod(t *testing.T) {
	type m = map[string]string
	generate(t, "env", store["env"])
	generate(t, "tools", store["tools"])
	byEachWay(t, func(t *testing.T, n *node, handler string) {
		for _, c := range []struct {
			name    string
			ofPod   map[string]string
			devices []string
			refused string
		}{
			{name: "device", devices: []string{"env"}},
			{name: "the same roots of this container", ofPod: m{"a.nix-closure/roots": store["env"]},
				devices: []string{"env"}, refused: "*"},
			{name: "the same roots", ofPod: roots("env"), devices: []string{"env"}},
			{name: "other roots", ofPod: roots("tools"), devices: []string{"env"}, refused: "nix-closure/roots"},
			{name: "other roots of this container", ofPod: m{"a.nix-closure/roots": store["tools"]},
				devices: []string{"env"},
				refused: "give one container one closure"},
			{name: "two devices", devices: []string{"env", "tools"}, refused: "closure"},
			{name: "roots of another container", ofPod: m{"web.nix-closure/roots": store["foreign"]},
				devices: []string{"env"}, refused: "*"},
		} {
			t.Run(c.name, func(t *testing.T) {
				sees, err := n.device(t, handler, c.ofPod, c.devices...)
				switch {
				case c.refused == "*" && err != nil:
					isRefused(t, sees, err, slices.Collect(maps.Keys(c.ofPod))...)
				case c.refused != "" && c.refused != "*":
					isRefused(t, sees, err, c.refused)
				case err != nil || !slices.Equal(sees, closureOf(t, store["env"])):
					t.Errorf("%v: it sees %q", err, sees)
				}
			})
		}
	})
}

// podClaims are what a pod's author says of a container a of a pod in the namespace team-a.
// What the engine says itself takes its place, and any other is an error.
func podClaims() []testhost.Claim {
	type m = map[string]string
	const forTeamA = "[[allow]]\nnamespaces = [\"team-a\"]\nroots = [\"/nix/store/*-test-env\"]\n"
	const forTeamB = "[[allow]]\nnamespaces = [\"team-b\"]\nroots = [\"/nix/store/*-test-env\"]\n"
	const web = "web.nix-closure/roots"
	path, own, refused := store["foreign"], m{"*": testhost.ItsOwn}, m{"*": testhost.Refused}
	byCRI, byCRIO := m{testhost.CRINamespace: "team-b"}, m{testhost.CRIONamespace: "team-b"}
	somebody := strings.Repeat("5eed", 16)
	const teamA = `namespace "team-a"`
	return []testhost.Claim{
		{Name: "nothing", Want: own},
		{Name: "nothing, allowed", Config: forTeamA, Want: own},
		{Name: "nothing, not allowed", Config: forTeamB, Want: refused, Reason: teamA},
		{Name: "sandbox, containerd", Says: m{testhost.CRIType: "sandbox"}, Want: own},
		{Name: "sandbox, CRI-O", Says: m{testhost.CRIOType: "sandbox"}, Want: refused},
		{Name: "sandbox of an ID, containerd", Says: m{testhost.CRIType: "sandbox", testhost.CRIID: somebody},
			Want: own},
		{Name: "sandbox of an ID, CRI-O", Says: m{testhost.CRIOType: "sandbox", testhost.CRIOID: somebody},
			Want: refused},
		{Name: "name, containerd", Says: m{testhost.CRIName: "web", web: path}, Want: own},
		{Name: "name, CRI-O", Says: m{testhost.CRIOName: "web", web: path}, Want: refused},
		{Name: "another's key", Says: m{web: path}, Want: own},
		{Name: "another team, containerd", Says: byCRI, Config: forTeamB, Want: refused, Reason: teamA},
		{Name: "another team, CRI-O", Says: byCRIO, Config: forTeamB, Want: refused, Reason: teamA},
		{Name: "another team than allowed, containerd", Says: byCRI, Config: forTeamA, Want: own},
		{Name: "another team than allowed, CRI-O", Says: byCRIO, Config: forTeamA, Want: own},
	}
}

// once runs a pod of the namespace team-a with one container, a, that mounts the whole store,
// and returns what that sees.
func (n *node) once(t *testing.T, handler, image string, ofPod, ofContainer map[string]string) ([]string, error) {
	t.Helper()
	config := podConfig(t, ofPod)
	config.Metadata.Namespace = "team-a"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	p := &pod{node: n, id: got.PodSandboxId, config: config, handler: handler}
	defer func() {
		p.remove(t)
		nothingLeft(t)
	}()
	id, err := p.createOf(ctx, image, "a", ofContainer, wholeStore)
	if err == nil {
		_, err = n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		return nil, err
	}
	return n.sees(t, id), nil
}

// A pod's author cannot say which container this is, or of which namespace: not where the
// engine passes every annotation on, and by no way.
func TestBelievedInPods(t *testing.T) {
	program := map[string]string{
		"nix-closure": filepath.Join(*bin, "nix-closure-runtime"), "runc": filepath.Join(*bin, "stack/runc"),
	}
	for _, w := range []struct {
		name, handler     string
		passesAll, plugin bool
	}{
		{name: "wrapper", handler: "nix-closure", passesAll: true},
		{name: "plugin", handler: "runc", passesAll: true, plugin: true},
		{name: "wrapper and plugin", handler: "nix-closure", passesAll: true, plugin: true},
		{name: "plugin and nothing passed on", plugin: true},
	} {
		t.Run(w.name, func(t *testing.T) {
			o := nodeOptions{passesAll: w.passesAll}
			if w.passesAll {
				o.handlers = program
			}
			n := newNode(t, o)
			if w.plugin {
				n.startPlugin(t)
			}
			for _, c := range podClaims() {
				for who, says := range map[string][2]map[string]string{
					"pod":       {asking(c.Says), nil},
					"container": {roots("env"), c.Says},
					"both":      {asking(c.Says), c.Says},
				} {
					if c.Says == nil && who != "pod" {
						continue
					}
					t.Run(c.Name+"/"+who, func(t *testing.T) {
						writeConfig(t, c.Config)
						sees, err := n.once(t, w.handler, image, says[0], says[1])
						claim := c
						if !w.passesAll && who == "pod" && c.Config == "" {
							claim.Want = map[string]string{"*": testhost.ItsOwn} // nobody hears of it
						}
						check(t, claim, "containerd", sees, err)
					})
				}
			}
		})
	}
}

// Docker and containerd take no annotation from an image: what podman before 4.5.1 does,
// they do not. Should that change, the documents must.
func TestImagesSayNothing(t *testing.T) {
	const name = "localhost/says:latest"
	says := map[string]string{
		"nix-closure/roots": store["foreign"], testhost.CRIType: "sandbox", testhost.CRIOType: "sandbox",
		testhost.CRIName: "web",
	}
	whole := filepath.Base(store["foreign"])
	look := func(t *testing.T, run func(asks map[string]string) ([]string, error)) {
		t.Helper()
		if sees, err := run(nil); err != nil || !slices.Contains(sees, whole) || len(sees) < 3 {
			t.Errorf("without an annotation of the user's: %v: it sees %q", err, sees)
		}
		if sees, err := run(roots("env")); err != nil || !slices.Equal(sees, closureOf(t, store["env"])) {
			t.Errorf("with one: %v: it sees %q", err, sees)
		}
	}
	t.Run("Docker", func(t *testing.T) {
		d := newDocker(t)
		answer, err := d.ImageLoad(t.Context(), annotatedImage(t, name, says))
		if err == nil {
			_, err = io.Copy(io.Discard, answer)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Close() }()
		look(t, func(asks map[string]string) ([]string, error) { return d.runOnce(t, name, asks) })
	})
	n := newNode(t, nodeOptions{passesAll: true, handlers: map[string]string{
		"runc": filepath.Join(*bin, "nix-closure-runtime"),
	}})
	n.startPlugin(t)
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if _, err := n.client.Import(ctx, annotatedImage(t, name, says)); err != nil {
		t.Fatal(err)
	}
	t.Run("containerd, client", func(t *testing.T) {
		look(t, func(asks map[string]string) ([]string, error) {
			return n.list(t, "k8s.io", name, fmt.Sprintf("says-%d", len(asks)), asks)
		})
	})
	t.Run("containerd, CRI", func(t *testing.T) {
		look(t, func(asks map[string]string) ([]string, error) { return n.once(t, "", name, asks, nil) })
	})
}
