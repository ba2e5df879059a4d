// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// node is a containerd of a test's own.
type node struct {
	options    nodeOptions
	dir        string // socket and state
	process    *exec.Cmd
	client     *containerd.Client
	connection *grpc.ClientConn
	runtime    cri.RuntimeServiceClient
}

type nodeOptions struct {
	// handlers are the RuntimeClasses: name and the program that is the runtime.
	handlers map[string]string
	// passesAll: handlers pass all annotations on, and not only this program's.
	passesAll bool
	// specs are files with the OCI specification that a handler begins with; none:
	// containerd's own.
	specs map[string]string
	// gvisor: there is a RuntimeClass of that name too, which is gVisor.
	gvisor bool
	// required: no container without the plugin.
	required bool
	// rival: there is a RuntimeClass nix, whose containers have their files from
	// nix-snapshotter.
	rival bool
}

// configuration is what config.toml has about the handlers.
func (o nodeOptions) configuration() string {
	var handlers strings.Builder
	passed := `["nix-closure/*", "*.nix-closure/*"]`
	if o.passesAll {
		passed = `["*", "*/*"]`
	}
	for name, program := range o.handlers {
		fmt.Fprintf(&handlers, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = %s
  container_annotations = %s
  base_runtime_spec = %q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s.options]
    BinaryName = %q
`, name, passed, passed, o.specs[name], name, program)
	}
	if o.gvisor {
		handlers.WriteString(`
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gvisor]
  runtime_type = "io.containerd.runsc.v1"
`)
	}
	if o.rival {
		handlers.WriteString(rivalConfiguration)
	}
	return handlers.String()
}

// image is in every node: busybox, and no store.
const image = "localhost/busybox:latest"

// nodes counts, for names.
var nodes int

// newNode starts containerd, and ends it with the test.
func newNode(t *testing.T, o nodeOptions) *node {
	t.Helper()
	nodes++
	n := &node{options: o, dir: fmt.Sprintf("/run/node-%d", nodes)}
	root := filepath.Join(testhost.Dir(), fmt.Sprintf("node-%d", nodes))
	for _, dir := range []string{n.dir, root, "/run/netns"} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if o.gvisor {
		configureGVisor(t, n.dir)
	}
	config := fmt.Sprintf(`version = 3
imports = []
root = %q
state = %q
[grpc]
  address = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/usr/lib/cni']
    conf_dir = %q
%s
[plugins.'io.containerd.nri.v1.nri']
  socket_path = %q
  plugin_path = %q
  plugin_config_path = %q
`, root, n.dir+"/state", n.socket(), image, n.dir+"/cni", o.configuration(), n.nriSocket(), n.dir+"/nri-plugins",
		n.dir+"/nri-conf")
	if o.required {
		config += `  [plugins.'io.containerd.nri.v1.nri'.default_validator]
    enable = true
    required_plugins = ["nix-closure"]
`
	}
	network := `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"pods",
		"ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]]}}]}`
	for name, text := range map[string]string{"config.toml": config, "cni/pods.conflist": network} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(n.dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.start(t)
	t.Cleanup(func() { n.stop(t) })
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if _, err := n.client.Import(ctx, busyboxImage(t)); err != nil {
		t.Fatalf("importing the image: %v", err)
	}
	// The CRI hears of it a moment later.
	images := cri.NewImageServiceClient(n.connection)
	for range 100 {
		got, err := images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
		if err == nil && got.Image != nil {
			return n
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the CRI does not know the image\n%s", n.log())
	return nil
}

func (n *node) socket() string    { return n.dir + "/containerd.sock" }
func (n *node) nriSocket() string { return n.dir + "/nri.sock" }

// start starts containerd and connects to it.
func (n *node) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(n.dir+"/log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.process = exec.Command(filepath.Join(*bin, "stack/containerd"), "--config", n.dir+"/config.toml")
	n.process.Stdout, n.process.Stderr = log, log
	// Its shims, and runc, are beside it, but for those that the node has in a way
	// of its own.
	n.process.Env = append(os.Environ(), "PATH="+n.dir+":"+filepath.Join(*bin, "stack")+":"+os.Getenv("PATH"))
	// Pods that do not use the host's network get one on a bridge, which is not to
	// be on the real host's.
	n.process.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if err := n.process.Start(); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if n.client, err = containerd.New(n.socket(), containerd.WithTimeout(100*time.Millisecond)); err == nil {
			if _, err = n.client.Version(t.Context()); err == nil {
				break
			}
			_ = n.client.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("containerd does not answer: %v\n%s", err, n.log())
	}
	n.connection, err = grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	n.runtime = cri.NewRuntimeServiceClient(n.connection)
	for range 100 {
		if _, err = n.runtime.Version(t.Context(), &cri.VersionRequest{}); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the CRI does not answer: %v\n%s", err, n.log())
}

// stop ends containerd, and what it started.
func (n *node) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if pods, err := n.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err == nil {
		for _, p := range pods.Items {
			_, _ = n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
			_, _ = n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		}
	}
	_ = n.client.Close()
	_ = n.process.Process.Signal(syscall.SIGTERM)
	_ = n.process.Wait()
	if t.Failed() {
		t.Logf("containerd: %s", n.log())
	}
}

// log is the end of containerd's.
func (n *node) log() string {
	text, _ := os.ReadFile(n.dir + "/log")
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// busyboxImage is image as an OCI layout in a tar archive.
func busyboxImage(t *testing.T) *bytes.Reader {
	t.Helper()
	return annotatedImage(t, image, nil)
}

// annotatedImage is busyboxImage by another name, whose manifest has annotations.
func annotatedImage(t *testing.T, name string, says map[string]string) *bytes.Reader {
	t.Helper()
	return bytes.NewReader(imageWith(t, name, says, nil, map[string][]byte{}))
}

// imageWith is annotatedImage with more files.
func imageWith(t *testing.T, name string, says map[string]string, more []tar.Header, files map[string][]byte) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files["bin/busybox"] = busybox
	layer := archive(t, append([]tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
	}, more...), files)
	digest := func(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }
	type object = map[string]any
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const oci = "application/vnd.oci.image."
	blob := func(kind string, content []byte) object {
		return object{"mediaType": oci + kind, "digest": digest(content), "size": len(content)}
	}
	config := text(object{
		"architecture": "amd64", "os": "linux",
		// The pod's sandbox waits; containers name a command of their own.
		"config": object{"Cmd": []string{"/bin/busybox", "sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	manifest := text(object{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "annotations": says,
		"config": blob("config.v1+json", config), "layers": []object{blob("layer.v1.tar", layer)},
	})
	named := blob("manifest.v1+json", manifest)
	named["annotations"] = object{"io.containerd.image.name": name}
	blobs := map[string][]byte{
		"oci-layout": text(object{"imageLayoutVersion": "1.0.0"}),
		"index.json": text(object{"schemaVersion": 2, "manifests": []object{named}}),
	}
	for _, content := range [][]byte{layer, config, manifest} {
		blobs["blobs/sha256/"+strings.TrimPrefix(digest(content), "sha256:")] = content
	}
	var headers []tar.Header
	for name, content := range blobs {
		headers = append(headers, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	}
	return archive(t, headers, blobs)
}

func archive(t *testing.T, headers []tar.Header, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[h.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
