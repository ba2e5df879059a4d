// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"
)

// awaitNone waits until no answer is pending.
func awaitNone(t *testing.T, p *plugin) {
	t.Helper()
	for range 10_000 {
		p.pending.mutex.Lock()
		n := len(p.pending.of)
		p.pending.mutex.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("answers are pending for ever")
}

func podOf(namespace string, n int) *api.PodSandbox {
	id := fmt.Sprintf("%s-%d", namespace, n)
	return &api.PodSandbox{Id: id, Name: fmt.Sprintf("pod-%d", n), Namespace: namespace}
}

func TestPending(t *testing.T) {
	message := func(count int, name, kind string) string {
		return fmt.Sprintf("%d container starts of %s wait for volumes whose file system does not respond, "+
			"which is the limit of a %s; repair the volumes, or delete the pods that the plugin's log names",
			count, name, kind)
	}
	var p pending
	var ends []func()
	begin := func(pod *api.PodSandbox, want string) {
		t.Helper()
		end, err := p.begin(pod)
		if end != nil {
			ends = append(ends, end)
		}
		if err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%s/%s: %v, want %q", pod.Namespace, pod.Name, err, want)
		}
	}
	// A pod can use its limit.
	for range podLimit {
		begin(podOf("team", 0), "")
	}
	begin(podOf("team", 0), message(2, "pod team/pod-0", "pod"))
	// All pods of a namespace together can use the namespace's limit.
	for i := podLimit; i < namespaceLimit; i++ {
		begin(podOf("team", i), "")
	}
	begin(podOf("team", 99), message(10, "namespace team", "namespace"))
	// This does not affect other namespaces.
	for i := namespaceLimit; i < hostLimit; i++ {
		begin(podOf(fmt.Sprintf("other-%d", i), 0), "")
	}
	begin(podOf("last", 0), message(100, "this host", "host"))
	// An ended answer makes room. If the pod and the namespace are full, it makes room
	// for these two only.
	ends[podLimit]()
	begin(podOf("team", 0), message(2, "pod team/pod-0", "pod"))
	begin(podOf("team", 99), "")
	ends[0]()
	begin(podOf("team", 0), "")
	for i, end := range ends {
		if i != 0 && i != podLimit {
			end()
		}
	}
	if len(p.of) > 0 {
		t.Errorf("left: %v", p.of)
	}
}

// A volume that never responds blocks its own pod and no other.
func TestVolumeThatNeverResponds(t *testing.T) {
	p, dir, root := newPlugin(t)
	volume, other := dir+"/volume", dir+"/other"
	if err := errors.Join(os.Mkdir(volume, 0o755), os.Mkdir(other, 0o755)); err != nil {
		t.Fatal(err)
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("mounting a FUSE needs /dev/fuse: %v", err)
	}
	open := true
	closeFuse := func() {
		if open {
			_ = unix.Close(fuse)
		}
		open = false
	}
	defer closeFuse()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)
	if err := unix.Mount("silent", volume, "fuse", 0, options); err != nil {
		t.Fatalf("mounting a FUSE needs root: %v", err)
	}
	defer func() { _ = unix.Unmount(volume, unix.MNT_DETACH) }()

	create := func(pod *api.PodSandbox, source string) error {
		pod.Annotations = map[string]string{"nix-closure/roots": root}
		c := &api.Container{Name: "app", Mounts: []*api.Mount{{Source: source, Destination: "/data", Type: "bind"}}}
		a, _, err := p.CreateContainer(t.Context(), pod, c)
		if (a == nil) != (err != nil) {
			t.Errorf("%v with %v", a, err)
		}
		return err
	}
	for range podLimit {
		err := create(podOf("mallory", 0), volume+"/x")
		if err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("a volume that does not respond: %v", err)
		}
	}
	began := time.Now()
	err = create(podOf("mallory", 0), volume+"/x")
	if err == nil || !strings.Contains(err.Error(), "2 container starts of pod mallory/pod-0 wait") {
		t.Errorf("the third: %v", err)
	}
	if took := time.Since(began); took > answerTime/2 {
		t.Errorf("the third was refused after %v", took)
	}
	if err := errors.Join(create(podOf("mallory", 1), other), create(podOf("team", 0), other)); err != nil {
		t.Errorf("others: %v", err)
	}
	closeFuse() // ends the waiting answers
	awaitNone(t, p)
	if err := create(podOf("mallory", 0), other); err != nil {
		t.Errorf("when nothing waits any more: %v", err)
	}
}
