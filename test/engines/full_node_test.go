// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/synthetic"
)

var figures = flag.Bool("figures", false, "compare a full node's ways to show the store, and print a table")

const (
	fullNode  = 110  // pods: a kubelet's default
	usualSize = 1000 // store paths
	// atOnce is how many pods are being made at a time, a few for each core.
	atOnce = 4
	// startToWhole is what a start may take, with the store bound whole as 1.
	startToWhole = 1.1
)

// load is what starting many pods took.
type load struct {
	starts []time.Duration // of each pod: sandbox, container, process
	slab   int64           // kernel memory for all, in bytes
	ids    []string        // of containers
	pods   []*pod
}

func (l load) median() time.Duration {
	sorted := slices.Sorted(slices.Values(l.starts))
	return sorted[len(sorted)/2]
}

// fill starts so many pods of one container, as fast as the engine does.
func (n *node) fill(t *testing.T, count int, handler string, annotations map[string]string, mounts ...*cri.Mount) load {
	t.Helper()
	before := slab(t)
	l := load{starts: make([]time.Duration, count), ids: make([]string, count), pods: make([]*pod, count)}
	configs := make([]*cri.PodSandboxConfig, count)
	for i := range configs {
		configs[i] = podConfig(t, maps.Clone(annotations))
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				began := time.Now()
				got, err := n.runtime.RunPodSandbox(t.Context(),
					&cri.RunPodSandboxRequest{Config: configs[i], RuntimeHandler: handler})
				if err != nil {
					t.Errorf("pod %d: %v", i, err)
					continue
				}
				l.pods[i] = &pod{n, got.PodSandboxId, configs[i], handler}
				id, err := l.pods[i].create(t.Context(), "a", mounts...)
				if err == nil {
					_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
				}
				if err != nil {
					t.Errorf("pod %d: %v", i, err)
				}
				l.starts[i], l.ids[i] = time.Since(began), id
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	workers.Wait()
	l.slab = slab(t) - before
	return l
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

// slab is the memory that the kernel has for its own, in bytes
// (proc_meminfo(5)).
func slab(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Slab:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("/proc/meminfo has no Slab")
	return 0
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
	l := n.fill(t, fullNode, "nix-closure", annotations)
	l.check(t, n, want)
	l.empty(t)
	nothingLeft(t)
	if *figures {
		compare(t, n, annotations)
	}
}

// compare prints, for docs/speed.md, what a start takes and what the kernel keeps.
func compare(t *testing.T, n *node, annotations map[string]string) {
	inMode := func(mode string) map[string]string {
		a := maps.Clone(annotations)
		a["nix-closure/mode"] = mode
		return a
	}
	type way struct {
		name        string
		handler     string
		annotations map[string]string
		mounts      []*cri.Mount
	}
	ways := []way{
		{"store bound whole", "runc", nil, []*cri.Mount{wholeStore}},
		{"overlay", "nix-closure", inMode("overlay"), nil},
		{"bind", "nix-closure", inMode("bind"), nil},
	}
	medians := map[string][]time.Duration{}
	slabs := map[string][]int64{}
	for range 3 { // what drifts, hits all alike
		for _, w := range ways {
			l := n.fill(t, fullNode, w.handler, w.annotations, w.mounts...)
			medians[w.name] = append(medians[w.name], l.starts...)
			slabs[w.name] = append(slabs[w.name], l.slab/fullNode)
			l.empty(t)
		}
	}
	whole := load{starts: medians[ways[0].name]}.median()
	fmt.Printf("%d pods of a closure of %d paths, %d at a time: median ms, times the store bound whole, KiB of slab "+
		"a pod\n", fullNode, usualSize, atOnce)
	for _, w := range ways {
		median := load{starts: medians[w.name]}.median()
		ratio := float64(median) / float64(whole)
		verdict := "        "
		if w.name == "overlay" {
			if verdict = "within  "; ratio > startToWhole {
				verdict = "MISSED  "
			}
		}
		fmt.Printf("%s %-18s %8.1f %6.2f %8d\n", verdict, w.name, median.Seconds()*1000, ratio,
			slices.Sorted(slices.Values(slabs[w.name]))[1]>>10)
	}
}
