// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// docker is a Docker daemon.
type docker struct {
	*client.Client
	process *os.Process
}

const dockerConfig = "/etc/docker/daemon.json"

// newDocker starts a daemon with the example's configuration.
func newDocker(t *testing.T) docker {
	t.Helper()
	example, err := os.ReadFile("../../examples/docker/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	return newDockerWith(t, bytes.ReplaceAll(example, []byte("/usr/local/bin"), []byte(*bin)))
}

// newDockerWith starts a daemon, which has the image, and ends it with the test.
func newDockerWith(t *testing.T, text []byte) docker {
	t.Helper()
	const socket, config = "/run/docker.sock", dockerConfig
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// Of the host's network it leaves everything alone.
	daemon := exec.Command(filepath.Join(*bin, "stack/dockerd"), "--config-file", config, "--host", "unix://"+socket,
		"--data-root", filepath.Join(testhost.Dir(), "docker"), "--exec-root", "/run/docker", "--pidfile",
		"/run/docker.pid",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false")
	daemon.Stdout, daemon.Stderr = log, log
	// It starts the containerd that is beside it, with its shim and runc.
	daemon.Env = append(os.Environ(), "PATH="+filepath.Join(*bin, "stack")+":"+os.Getenv("PATH"))
	daemon.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("dockerd: %s", text)
		}
	})
	c, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	for range 300 {
		if _, err = c.Ping(t.Context(), client.PingOptions{}); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("Docker does not answer: %v", err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	layer := archive(t, []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
	}, map[string][]byte{"bin/busybox": busybox})
	answer, err := c.ImageImport(t.Context(), client.ImageImportSource{Source: bytes.NewReader(layer), SourceName: "-"},
		"busybox", client.ImageImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Close() }()
	if _, err := io.Copy(io.Discard, answer); err != nil {
		t.Fatal(err)
	}
	return docker{c, daemon.Process}
}

// create makes a container that runs script, and removes it with the test.
func (d docker) create(t *testing.T, annotations map[string]string, script string, binds ...string) (id string) {
	t.Helper()
	got, err := d.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Config: &container.Config{Image: "busybox", Cmd: []string{"/bin/sh", "-c", script},
			Env: []string{"PATH=/bin"}},
		HostConfig: &container.HostConfig{Annotations: annotations, NetworkMode: "none", Binds: binds},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got.ID
}

// run starts a container, waits for its end and returns what it says.
func (d docker) run(t *testing.T, id string) (status int64, stdout, stderr string, _ error) {
	t.Helper()
	if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		return 0, "", "", err
	}
	wait := d.ContainerWait(t.Context(), id, client.ContainerWaitOptions{})
	select {
	case got := <-wait.Result:
		status = got.StatusCode
	case err := <-wait.Error:
		t.Fatal(err)
	}
	logs, err := d.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logs.Close() }()
	var out, errs strings.Builder
	if _, err := stdcopy.StdCopy(&out, &errs, logs); err != nil {
		t.Fatal(err)
	}
	return status, out.String(), errs.String(), nil
}

func (d docker) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := d.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

// With the example's configuration, a container of Docker's has exactly its closure,
// each time that it is started, or it does not start, and Docker says why.
func TestDocker(t *testing.T) {
	d := newDocker(t)
	want := closureOf(t, store["env"])
	for _, mode := range []string{"overlay", "bind"} {
		annotations := maps.Clone(roots("env"))
		annotations["nix-closure/mode"] = mode
		id := d.create(t, annotations, "busybox ls -A /nix/store; busybox touch /nix/store/new; exit 7",
			storeDir+":"+storeDir)
		for range 2 {
			status, stdout, stderr, err := d.run(t, id)
			if err != nil || status != 7 || !strings.Contains(stderr, "Read-only file system") {
				t.Fatalf("%s: %v, status %d, %s", mode, err, status, stderr)
			}
			// Of the second start, the logs are with the first's.
			if got := slices.Compact(names(stdout)); !slices.Equal(got, want) {
				t.Errorf("%s: %q\nwant %q", mode, got, want)
			}
			nothingLeft(t)
		}
		d.remove(t, id)
	}
	for name, c := range map[string]struct {
		annotations map[string]string
		binds       []string
		want        string
	}{
		"canary": {map[string]string{"nix-closure/roots": "/nix/store/canary"}, nil,
			`annotation nix-closure/roots: "/nix/store/canary": `},
		"missing": {map[string]string{"nix-closure/roots": "/nix/store/00000000000000000000000000000000-unknown"}, nil,
			"unknown is not valid: Nix has no such path registered"},
		"a leak": {roots("env"), []string{storeDir + ":/x"},
			"mount of /nix/store on /x: shows /nix/store of the host, and with it more than the closure; take the " +
				"mount out"},
	} {
		id := d.create(t, c.annotations, "echo it runs", c.binds...)
		if _, stdout, _, err := d.run(t, id); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s%v\nwant %s", name, stdout, err, c.want)
		}
		d.remove(t, id)
		nothingLeft(t)
	}
	id := d.create(t, nil, "busybox ls -A /nix/store", storeDir+":"+storeDir)
	if _, stdout, _, err := d.run(t, id); err != nil ||
		!slices.Contains(names(stdout), filepath.Base(store["foreign"])) {
		t.Errorf("without an annotation: %v %s", err, stdout)
	}
	d.remove(t, id)
}

// While a container of Docker's runs, what it needs is kept, and it is gone with it.
func TestDockerLife(t *testing.T) {
	d := newDocker(t)
	id := d.create(t, roots("env"), "exec busybox sleep 1000000")
	if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	runs := func() {
		t.Helper()
		if left := leftovers(t); len(left) == 0 {
			t.Error("no record and no GC root of a container that runs")
		}
		got, err := d.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir("/proc/" + strconv.Itoa(got.Container.State.Pid) + "/root/nix/store")
		if err != nil {
			t.Fatal(err)
		}
		var sees []string
		for _, e := range entries {
			sees = append(sees, e.Name())
		}
		if want := closureOf(t, store["env"]); !slices.Equal(sees, want) {
			t.Errorf("%q\nwant %q", sees, want)
		}
	}
	runs()
	at := 0
	if _, err := d.ContainerRestart(t.Context(), id, client.ContainerRestartOptions{Timeout: &at}); err != nil {
		t.Fatal(err)
	}
	runs()
	d.remove(t, id)
	nothingLeft(t)
}
