// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/stores/synthetic"
)

const (
	fullNode  = 110  // pods: a kubelet's default
	usualSize = 1000 // store paths
	// atOnce is how many pods are being made at a time, a few for each core.
	atOnce = 4
)

// load is what starting many pods took.
type load struct {
	starts []time.Duration // of each pod: sandbox, container, process; 0: it did not start
	ids    []string        // of containers
	pods   []*pod
	errs   []error // of the pods that did not start, in their order
}

// fill starts so many pods of one container, as fast as the engine does. After the
// deadline it starts no more.
func (n *node) fill(t *testing.T, count int, deadline time.Time, w way) load {
	t.Helper()
	l := load{starts: make([]time.Duration, count), ids: make([]string, count), pods: make([]*pod, count),
		errs: make([]error, count)}
	configs := make([]*cri.PodSandboxConfig, count)
	for i := range configs {
		configs[i] = podConfig(t, maps.Clone(w.annotations))
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				l.pods[i], l.ids[i], l.starts[i], l.errs[i] = n.startPod(t.Context(), configs[i], w)
			}
		})
	}
	for i := range count {
		if !deadline.IsZero() && time.Now().After(deadline) {
			l.errs[i] = fmt.Errorf("%d were not asked for in time", count-i)
			break
		}
		next <- i
	}
	close(next)
	workers.Wait()
	return l
}

// startPod starts a pod of one container, and says how long that took. The pod is there
// whenever something of it is.
func (n *node) startPod(ctx context.Context, config *cri.PodSandboxConfig, w way) (p *pod, id string, _ time.Duration,
	_ error) {
	began := time.Now()
	got, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: w.handler})
	if err != nil {
		return nil, "", 0, err
	}
	p = &pod{node: n, id: got.PodSandboxId, config: config, handler: w.handler}
	if id, err = p.createOf(ctx, cmp.Or(w.image, image), "a", nil, w.mounts...); err != nil {
		return p, "", 0, err
	}
	if _, err = n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		return p, id, 0, err
	}
	return p, id, time.Since(began), nil
}

// empty removes the pods.
func (l load) empty(t *testing.T) {
	t.Helper()
	var workers sync.WaitGroup
	for part := range slices.Chunk(l.pods, (len(l.pods)+atOnce-1)/atOnce) {
		workers.Go(func() {
			for _, p := range part {
				if p != nil {
					p.remove(t)
				}
			}
		})
	}
	workers.Wait()
}

// many is made by the first test that needs it.
var many *synthetic.Store

// manyPaths asks for a closure of the usual size, and says what ls makes of it.
func manyPaths(t *testing.T) (annotations map[string]string, seen string) {
	t.Helper()
	if many == nil {
		var err error
		if many, err = synthetic.Make(usualSize, []int{usualSize}); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Join(closureOf(t, many.Root(usualSize)), "\n") + "\n"
	return map[string]string{"nix-closure/roots": many.Root(usualSize)}, fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
}

// check looks into every container.
func (l load) check(t *testing.T, n *node, want string) {
	t.Helper()
	for i, id := range l.ids {
		if id == "" {
			continue
		}
		got := n.exec(t, id, "/bin/busybox", "sh", "-c", "busybox ls -A /nix/store | busybox sort | busybox sha256sum")
		if sum, _, _ := strings.Cut(got, " "); sum != want {
			t.Errorf("pod %d sees another store", i)
		}
	}
}

// As many pods as a node has, of one closure, all run and each sees exactly it.
func TestFullNode(t *testing.T) {
	annotations, want := manyPaths(t)
	n := wrapper(t)
	l := n.fill(t, fullNode, time.Time{}, way{handler: "nix-closure", annotations: annotations})
	for i, err := range l.errs {
		if err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	}
	l.check(t, n, want)
	l.empty(t)
	nothingLeft(t)
}
