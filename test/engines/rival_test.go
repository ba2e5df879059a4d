// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	exported "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/testhost"
)

const (
	rivalSocket = "/run/nix-snapshotter.sock"
	// rivalImage has busybox and names a closure, which nix-snapshotter mounts.
	rivalImage = "localhost/rival:latest"
	// fullImage has busybox and all files of a closure.
	fullImage = "localhost/full:latest"
)

var rivalConfiguration = fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nix]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "nix"
[plugins.'io.containerd.cri.v1.images'.runtime_platforms.nix]
  platform = "linux/%[2]s"
  snapshotter = "nix"
[proxy_plugins.nix]
  type = "snapshot"
  address = %[1]q
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux/%[2]s"
  snapshotter = "nix"
`, rivalSocket, runtime.GOARCH)

// startRival starts nix-snapshotter, and ends it with the test. containerd must start
// after it.
func startRival(t *testing.T) {
	t.Helper()
	dir := filepath.Join(testhost.Dir(), "nix-snapshotter")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("address = %q\nroot = %q\n[image_service]\nenable = false\n", rivalSocket, dir+"/root")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// enable = false is what it reads as nothing said, so its image service runs. Nobody
	// asks it, but it wants its directories.
	cmd := exec.Command(filepath.Join(*bin, "stack/nix-snapshotter"), "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if text, err := os.ReadFile(dir + "/log"); t.Failed() && err == nil {
			t.Logf("nix-snapshotter: %s", text[max(0, len(text)-2000):])
		}
	})
	for range 100 {
		if _, err := os.Stat(rivalSocket); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("nix-snapshotter makes no socket")
}

// rivalMaker makes the image of a closure as nix-snapshotter's own tool does.
type rivalMaker struct {
	archive string
	args    []string // of the tool
}

// newRival makes an image of a closure, and of the node's busybox.
func (n *node) newRival(t *testing.T, paths []string) *rivalMaker {
	t.Helper()
	dir := filepath.Join(testhost.Dir(), "rival")
	info := filepath.Join(dir, "closure-info")
	if err := os.MkdirAll(info, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("closure-info/store-paths", strings.Join(paths, "\n")+"\n")
	added, err := exec.Command("nix-store", "--add", info).Output()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.Create(filepath.Join(dir, "base.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if err := n.client.Export(ctx, base, exported.WithImage(n.client.ImageService(), image)); err != nil {
		t.Fatal(err)
	}
	m := &rivalMaker{archive: filepath.Join(dir, "image.tar")}
	m.args = []string{
		"build", "--from-image", base.Name(),
		"--config", write("config.json", `{"Cmd":["/bin/busybox","sleep","1000000"]}`),
		"--closure", strings.TrimSpace(string(added)) + "/store-paths", "--copy-to-root", write("copy.json", "[]"),
		"--ref", rivalImage, m.archive,
	}
	if err := m.make(); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *rivalMaker) make() error {
	build := exec.Command(filepath.Join(*bin, "stack/nix2container"), m.args...)
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", build, err, text)
	}
	return nil
}

// loadRival gives the node nix-snapshotter's image, as its own tool does: the image is
// unpacked, and the closure has its GC root.
func (n *node) loadRival(ctx context.Context, archive string) error {
	load := exec.CommandContext(ctx, filepath.Join(*bin, "stack/nix2container"), "--address", n.socket(), "--namespace",
		"k8s.io", "load", archive)
	if text, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", load, err, text)
	}
	return n.waitForImage(ctx, rivalImage)
}

// loadFull gives the node an ordinary image.
func (n *node) loadFull(ctx context.Context, archive []byte) error {
	if _, err := n.client.Import(namespaces.WithNamespace(ctx, "k8s.io"), bytes.NewReader(archive)); err != nil {
		return err
	}
	return n.waitForImage(ctx, fullImage)
}

// waitForImage waits until the CRI knows an image: it hears of it a moment later.
func (n *node) waitForImage(ctx context.Context, name string) error {
	service := cri.NewImageServiceClient(n.connection)
	for range 2000 {
		got, err := service.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil && got.Image != nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("the CRI does not know %s", name)
}

// forgetImage removes an image, and all that was unpacked of it.
func (n *node) forgetImage(ctx context.Context, name string) error {
	service := cri.NewImageServiceClient(n.connection)
	err := n.client.ImageService().Delete(namespaces.WithNamespace(ctx, "k8s.io"), name, images.SynchronousDelete())
	if err != nil {
		return err
	}
	for range 2000 {
		got, err := service.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil && got.Image == nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("the CRI still knows %s", name)
}

// fullArchive is an ordinary image that has the files of these store paths.
func fullArchive(t *testing.T, paths []string) []byte {
	t.Helper()
	headers := []tar.Header{{Name: "nix/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "nix/store/", Typeflag: tar.TypeDir, Mode: 0o755}}
	files := map[string][]byte{}
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			target := ""
			if e.Type() == fs.ModeSymlink {
				if target, err = os.Readlink(path); err != nil {
					return err
				}
			}
			h, err := tar.FileInfoHeader(info, target)
			if err != nil {
				return err
			}
			h.Name = strings.TrimPrefix(path, "/")
			if e.Type().IsRegular() {
				files[h.Name], err = os.ReadFile(path)
			}
			headers = append(headers, *h)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return imageWith(t, fullImage, nil, headers, files)
}
