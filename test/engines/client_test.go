// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// task makes a container of the busybox image, with a program for its runtime, and
// a task of it that is not started. Both go with the test.
func (n *node) task(t *testing.T, runtime, id string, annotations map[string]string, streams cio.Creator,
	command ...string) (context.Context, containerd.Task, error) {
	t.Helper()
	annotated := []oci.SpecOpts{oci.WithProcessArgs(command...), oci.WithAnnotations(annotations)}
	return n.taskOf(t, "k8s.io", image, runtime, id, annotated, streams)
}

// taskOf is task for any image and any of containerd's namespaces.
func (n *node) taskOf(
	t *testing.T, namespace, image, runtime, id string, more []oci.SpecOpts, streams cio.Creator,
) (context.Context, containerd.Task, error) {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	img, err := n.client.GetImage(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Unpack(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c, err := n.client.NewContainer(ctx, id,
		containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(img), olderSpec}, more...)...),
		containerd.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: runtime}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			t.Errorf("deleting the container: %v", err)
		}
	})
	task, err := c.NewTask(ctx, streams)
	if err != nil {
		return ctx, nil, err
	}
	t.Cleanup(func() { _, _ = task.Delete(ctx, containerd.WithProcessKill) })
	return ctx, task, nil
}

// olderSpec says of a specification that it is of version 1.0.2, which crun 1.8
// knows; containerd's own is newer.
func olderSpec(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Version = "1.0.2"
	return nil
}

// transcript is what a task printed and how it ended, at each step of its life.
func transcript(t *testing.T, n *node, runtime, id string, annotations map[string]string, see string) string {
	t.Helper()
	var all strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&all, format+"\n", args...) }

	// Standard input, output, error and exit status.
	var out, errs bytes.Buffer
	ctx, task, err := n.task(t, runtime, id+"-short", annotations,
		cio.NewCreator(cio.WithStreams(strings.NewReader("said to it\n"), &out, &errs)),
		"/bin/busybox", "sh", "-c", see+"; read line; echo \"$line\"; echo to stderr >&2; exit 42")
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log())
	}
	ended, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log())
	}
	status := <-ended
	task.IO().Wait()
	say("ended with %d, said %q and %q", status.ExitCode(), out.String(), errs.String())
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}

	// A life: create, start, exec, pause, resume, kill, delete.
	ctx, task, err = n.task(t, runtime, id+"-long", annotations, cio.NullIO, "/bin/busybox", "sleep", "1000000")
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log())
	}
	state := func(after string) {
		s, err := task.Status(ctx)
		say("after %s: %s %v", after, s.Status, err)
	}
	state("create")
	ended, err = task.Wait(ctx)
	say("wait: %v", err)
	say("start: %v", task.Start(ctx))
	state("start")
	spec, err := task.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	process := *spec.Process
	process.Args = []string{"/bin/busybox", "sh", "-c", see + "; exit 3"}
	out.Reset()
	executed, err := task.Exec(ctx, id+"-exec", &process, cio.NewCreator(cio.WithStreams(nil, &out, io.Discard)))
	if err != nil {
		t.Fatal(err)
	}
	execEnded, err := executed.Wait(ctx)
	if err == nil {
		err = executed.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	status = <-execEnded
	executed.IO().Wait()
	say("exec ended with %d, said %q", status.ExitCode(), out.String())
	if _, err := executed.Delete(ctx); err != nil {
		t.Error(err)
	}
	say("pause: %v", task.Pause(ctx))
	state("pause")
	say("resume: %v", task.Resume(ctx))
	state("resume")
	say("kill: %v", task.Kill(ctx, syscall.SIGKILL))
	select {
	case status = <-ended:
		say("ended with %d", status.ExitCode())
	case <-time.After(10 * time.Second):
		say("does not end")
	}
	_, err = task.Delete(ctx)
	say("delete: %v", err)
	return all.String()
}

// A container's life under the wrapper is as under the runtime that it becomes,
// but that it sees its closure.
func TestClient(t *testing.T) {
	n := newNode(t, nodeOptions{})
	const see = "/bin/busybox ls -A /nix/store 2>/dev/null"
	plain := transcript(t, n, filepath.Join(*bin, "stack/runc"), "plain", nil, see)
	wrapped := filepath.Join(*bin, "nix-closure-runtime")
	if got := transcript(t, n, wrapped, "without", nil, see); got != plain {
		t.Errorf("without an annotation:\n%s\nas the runtime itself:\n%s", got, plain)
	}
	shown := strings.Join(closureOf(t, store["env"]), "\n") + "\n"
	want := strings.ReplaceAll(plain, `said "`, `said "`+strings.ReplaceAll(shown, "\n", `\n`))
	for _, mode := range []string{"overlay", "bind"} {
		annotations := roots("env")
		annotations["nix-closure/mode"] = mode
		if got := transcript(t, n, wrapped, mode, annotations, see); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", mode, got, want)
		}
	}
	nothingLeft(t)
}

// crun, too, can be what the wrapper becomes.
func TestClientWithCrun(t *testing.T) {
	writeConfig(t, "runtime = \"crun\"\n")
	n := newNode(t, nodeOptions{})
	var out bytes.Buffer
	ctx, task, err := n.task(t, filepath.Join(*bin, "nix-closure-runtime"), "crun", roots("env"),
		cio.NewCreator(cio.WithStreams(nil, &out, io.Discard)), "/bin/busybox", "ls", "-A", storeDir)
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log())
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
	if got, want := names(out.String()), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}
