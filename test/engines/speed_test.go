// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/speed"
	"github.com/nix-closure/nix-closure/test/testhost"
)

var speedFile = flag.String("speed", "", "measure pods as the benchmark does, and write the rows to this file")

// The rows' names. The benchmark looks for some of them.
const (
	wholeWay = "store bound whole"
	fullWay  = "an ordinary image that has the closure"
	rivalWay = "nix-snapshotter"
	// rivalMadeWay has its image made where a pod is the first of a closure.
	rivalMadeWay = rivalWay + ", its image made too"
	pluginWay    = "overlay, by the plugin"
	// emptyWay has what a wrapper and hooks cost that do nothing.
	emptyWay = wholeWay + ", an empty wrapper, two empty hooks"
	onePod   = "one pod, start"
)

// fullNodeTime is how long pods of one way are started.
const fullNodeTime = 40 * time.Second

// way is how pods see the store.
type way struct {
	name        string
	handler     string
	annotations map[string]string
	mounts      []*cri.Mount
	image       string // empty: image
	node        *node
	// forget removes what the node keeps of the closure, and load gives it what must be
	// there before a pod. Nil: nothing.
	forget, load func(context.Context) error
	// single: its pods are no subject of the full node. firstOnly: nor of others, but for
	// the first pod.
	single, firstOnly bool
	// profiled: on the full node, the programs' time on a processor counts too.
	profiled bool
	// targeted: on the full node it has a target.
	targeted bool
}

// podSpeed measures.
type podSpeed struct {
	t       *testing.T
	ways    []way
	rounds  int
	pods    int
	results speed.Results
}

// One pod and a full node, by each way that pods have to see a closure. Without a file for
// the rows, it does everything once, with a few pods.
func TestPodSpeed(t *testing.T) {
	annotations, want := manyPaths(t)
	s := &podSpeed{t: t, rounds: 1, pods: 2}
	if *speedFile != "" {
		s.rounds, s.pods = 15, fullNode
		t.Cleanup(func() {
			if err := s.results.Write(*speedFile); err != nil {
				t.Error(err)
			}
		})
	}
	s.makeWays(annotations)
	s.check(want)
	s.onePod()
	s.firstPod()
	s.fullNode()
	nothingLeft(t)
}

func (s *podSpeed) makeWays(annotations map[string]string) {
	t := s.t
	inMode := func(mode string) map[string]string {
		a := maps.Clone(annotations)
		a["nix-closure/mode"] = mode
		return a
	}
	startRival(t)
	n := newNode(t, nodeOptions{rival: true, handlers: map[string]string{
		"nix-closure": filepath.Join(*bin, "nix-closure-runtime"),
		"runc":        filepath.Join(*bin, "stack/runc"),
		"empty":       emptyWrapper(t),
	}, specs: map[string]string{"empty": emptyHooks(t)}})
	plugged := newNode(t, nodeOptions{})
	plugged.startPlugin(t)
	paths := many.Closure(usualSize)
	rivals, full := n.newRival(t, paths), fullArchive(t, paths)
	whole := []*cri.Mount{wholeStore}
	forgetViews := func(context.Context) error {
		return errors.Join(os.RemoveAll(runtimeDir+"/views"), os.RemoveAll(runtimeDir+"/closures"))
	}
	s.ways = []way{
		{name: wholeWay, handler: "runc", mounts: whole, node: n, profiled: true},
		{name: "overlay", handler: "nix-closure", annotations: inMode("overlay"), node: n, forget: forgetViews,
			profiled: true, targeted: true},
		{name: "bind", handler: "nix-closure", annotations: inMode("bind"), node: n, forget: forgetViews},
		{name: rivalWay, handler: "nix", image: rivalImage, node: n,
			forget: func(ctx context.Context) error { return n.forgetImage(ctx, rivalImage) },
			load:   func(ctx context.Context) error { return n.loadRival(ctx, rivals.archive) }},
		{name: rivalMadeWay, handler: "nix", image: rivalImage, node: n, firstOnly: true,
			forget: func(ctx context.Context) error { return n.forgetImage(ctx, rivalImage) },
			load: func(ctx context.Context) error {
				return errors.Join(rivals.make(), n.loadRival(ctx, rivals.archive))
			}},
		{name: fullWay, handler: "runc", image: fullImage, node: n,
			forget: func(ctx context.Context) error { return n.forgetImage(ctx, fullImage) },
			load:   func(ctx context.Context) error { return n.loadFull(ctx, full) }},
		{name: pluginWay, annotations: inMode("overlay"), node: plugged, profiled: true,
			targeted: true},
		{name: emptyWay, handler: "empty", mounts: whole, node: n, profiled: true},
		{name: "store bound whole, no annotation, by the wrapper", handler: "nix-closure", mounts: whole, node: n,
			single: true},
		{name: "store bound whole, no annotation, with the plugin", mounts: whole, node: plugged, single: true},
	}
	for _, w := range s.ways {
		if w.load == nil || w.firstOnly {
			continue
		}
		if err := w.load(t.Context()); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
	}
}

// emptyWrapper makes a wrapper that only becomes the runtime.
func emptyWrapper(t *testing.T) string {
	t.Helper()
	wrapper := filepath.Join(testhost.Dir(), "become")
	err := errors.Join(programs.Build(testhost.Dir(), "become", "empty"),
		os.Symlink(filepath.Join(*bin, "stack/runc"), wrapper+".to"))
	if err != nil {
		t.Fatal(err)
	}
	return wrapper
}

// emptyHooks writes containerd's usual specification, with a program that does nothing as
// the hook of both stages.
func emptyHooks(t *testing.T) string {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "any"})
	if err != nil {
		t.Fatal(err)
	}
	hook := []specs.Hook{{Path: filepath.Join(testhost.Dir(), "empty"), Args: []string{"empty"},
		Env: []string{"GOMAXPROCS=1"}}}
	spec.Hooks = &specs.Hooks{CreateRuntime: hook, Poststop: hook}
	spec.Linux.CgroupsPath = "" // of the container that the engine makes of it
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(testhost.Dir(), "empty-hooks.json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// start starts a pod and says how long that and its removal took, in milliseconds.
func (s *podSpeed) start(w way, look func(id string)) (start, removal float64, _ error) {
	p, id, took, err := w.node.startPod(s.t.Context(), podConfig(s.t, maps.Clone(w.annotations)), w)
	if err == nil && look != nil {
		look(id)
	}
	if p != nil {
		began := time.Now()
		p.remove(s.t)
		removal = milliseconds(time.Since(began))
	}
	return milliseconds(took), removal, err
}

// check sees to it that each way shows what it should.
func (s *podSpeed) check(want string) {
	all, err := os.ReadDir(storeDir)
	if err != nil {
		s.t.Fatal(err)
	}
	var text strings.Builder
	for _, e := range all {
		text.WriteString(e.Name() + "\n")
	}
	everything := fmt.Sprintf("%x", sha256.Sum256([]byte(text.String())))
	for _, w := range s.ways {
		if w.firstOnly {
			continue
		}
		expected := want
		if len(w.mounts) > 0 {
			expected = everything
		}
		_, _, err := s.start(w, func(id string) {
			got := w.node.exec(s.t, id, "/bin/busybox", "sh", "-c",
				"export LC_ALL=C; busybox ls -A /nix/store | busybox sort | busybox sha256sum")
			if sum, _, _ := strings.Cut(got, " "); sum != expected {
				s.t.Errorf("%s: the pod sees another store", w.name)
			}
		})
		if err != nil {
			s.t.Errorf("%s: %v", w.name, err)
		}
	}
}

func (s *podSpeed) row(what, variant string) speed.Row {
	return speed.Row{Group: "pods", What: what, Variant: variant, Paths: usualSize, Runtime: "runc", Unit: "ms"}
}

func (s *podSpeed) add(row speed.Row, values, beside []float64) {
	if len(values) == 0 {
		row = row.Absent("failed: no pod started")
		s.results.Rows = append(s.results.Rows, row)
		return
	}
	s.results.Rows = append(s.results.Rows, row.Summary(values, beside))
}

// onePod starts and removes one pod of each way, in another order in each round.
func (s *podSpeed) onePod() {
	starts, removals := map[string][]float64{}, map[string][]float64{}
	for round := range s.rounds {
		s.progress("one pod, round %d", round+1)
		for _, i := range rand.Perm(len(s.ways)) {
			w := s.ways[i]
			if w.firstOnly {
				continue
			}
			start, removal, err := s.start(w, nil)
			if err != nil {
				s.t.Errorf("%s: %v", w.name, err)
				continue
			}
			starts[w.name], removals[w.name] = append(starts[w.name], start), append(removals[w.name], removal)
		}
	}
	s.addAll(onePod, starts)
	s.addAll("one pod, removal", removals)
}

// addAll adds a row for each way, each compared to the store bound whole. As many values
// as both have count.
func (s *podSpeed) addAll(what string, values map[string][]float64) {
	ground := values[wholeWay]
	for _, w := range s.ways {
		v, found := values[w.name]
		if !found {
			continue
		}
		row := s.row(what, w.name)
		if w.name == wholeWay {
			s.add(row, v, nil)
			continue
		}
		row.Of = wholeWay
		n := min(len(v), len(ground))
		s.add(row, v[:n], ground[:n])
	}
}

// firstPod starts pods whose node has the store paths, and nothing else of the closure. To
// load an image counts; to make it does not.
func (s *podSpeed) firstPod() {
	const what = "first pod of a closure"
	values := map[string][]float64{}
	for round := range s.rounds {
		s.progress("first pod, round %d", round+1)
		for _, i := range rand.Perm(len(s.ways)) {
			w := s.ways[i]
			if w.forget == nil {
				continue
			}
			took, err := s.first(w)
			if err != nil {
				s.t.Errorf("first pod, %s: %v", w.name, err)
				continue
			}
			values[w.name] = append(values[w.name], took)
		}
	}
	for _, w := range s.ways {
		if w.forget == nil {
			continue
		}
		row := s.row(what, w.name)
		if strings.HasPrefix(w.name, rivalWay) {
			s.add(row, values[w.name], nil)
			continue
		}
		for i, of := range []string{rivalWay, rivalMadeWay} {
			compared := row
			compared.Of = of
			if i > 0 {
				compared.Note = "the same runs"
			}
			n := min(len(values[w.name]), len(values[of]))
			s.add(compared, values[w.name][:n], values[of][:n])
		}
	}
}

func (s *podSpeed) first(w way) (float64, error) {
	if err := w.forget(s.t.Context()); err != nil {
		return 0, err
	}
	began := time.Now()
	if w.load != nil {
		if err := w.load(s.t.Context()); err != nil {
			return 0, err
		}
	}
	loaded := milliseconds(time.Since(began))
	start, _, err := s.start(w, nil)
	return loaded + start, err
}

// filling is one full node: what each pod took to start, by its number, 0 if it did not, and
// what was added to each.
type filling struct {
	starts      []float64
	removal     float64
	slab, cache float64
	started     int
	failed      error // of the first pod that failed
	beside      *filling
}

// fullNode starts as many pods as a node has, a few at a time, by each way in turn. The speed
// of a machine can change within minutes. So a way with a target stands beside the store bound
// whole, which comes first in one round and second in the next. Each pod is compared to the
// pod with its number there.
func (s *podSpeed) fullNode() {
	rounds := min(s.rounds, 2)
	all := map[string][]*filling{}
	for round := range rounds {
		var whole *filling
		for _, w := range s.ways {
			if w.single || w.firstOnly || w.name == wholeWay || !w.targeted && round > 0 {
				continue
			}
			if w.targeted && round == 0 {
				whole = s.fill(s.ways[0], round)
			}
			own := s.fill(w, round)
			if w.targeted && round > 0 {
				whole = s.fill(s.ways[0], round)
			}
			own.beside = whole
			all[w.name] = append(all[w.name], own)
			if w.targeted {
				all[wholeWay] = append(all[wholeWay], whole)
			}
		}
	}
	s.addFailed(all)
	s.addFillings(fullNodeStart, all, func(f *filling) []float64 { return f.starts })
	s.profilePods()
	s.addWorst(all)
	s.addFillings("110 pods, removal of each", all, func(f *filling) []float64 { return []float64{f.removal} })
	for _, kind := range []struct {
		what  string
		value func(*filling) float64
	}{
		{"110 pods, kernel memory (slab) of each", func(f *filling) float64 { return f.slab }},
		{"110 pods, page cache of each", func(f *filling) float64 { return f.cache }},
	} {
		for _, w := range s.ways {
			var values []float64
			for _, f := range all[w.name] {
				if f.started > 0 {
					values = append(values, kind.value(f))
				}
			}
			if len(values) > 0 {
				row := s.row(kind.what, w.name)
				row.Unit = "KiB"
				s.add(row, values, nil)
			}
		}
	}
}

// fill fills the node of a way once, and empties it.
func (s *podSpeed) fill(w way, round int) *filling {
	s.progress("%d pods, %s, round %d", s.pods, w.name, round+1)
	before := memory(s.t)
	l := w.node.fill(s.t, s.pods, time.Now().Add(fullNodeTime), w)
	after := memory(s.t)
	f := &filling{}
	for i, took := range l.starts {
		f.starts = append(f.starts, milliseconds(took))
		if took > 0 {
			f.started++
		}
		f.failed = cmp.Or(f.failed, l.errs[i])
	}
	n := float64(max(f.started, 1))
	f.slab, f.cache = (after["slab"]-before["slab"])/n, (after["cache"]-before["cache"])/n
	began := time.Now()
	l.empty(s.t)
	f.removal = milliseconds(time.Since(began)) / n
	return f
}

// addFailed names the ways by which not all pods started. A peer may fail here.
func (s *podSpeed) addFailed(all map[string][]*filling) {
	for _, w := range s.ways {
		started, asked := 0, 0
		var failed error
		for _, f := range all[w.name] {
			started, asked, failed = started+f.started, asked+s.pods, cmp.Or(failed, f.failed)
		}
		if failed == nil {
			continue
		}
		row := s.row(fullNodeStart, w.name+", all pods").Absent(fmt.Sprintf("%d of %d pods started: %s", started, asked,
			failed))
		s.results.Rows = append(s.results.Rows, row)
		if w.name != rivalWay {
			s.t.Errorf("%s: %s", w.name, failed)
		}
	}
}

// addFillings adds a row for each way. What did not start by either way does not count.
func (s *podSpeed) addFillings(what string, all map[string][]*filling, of func(*filling) []float64) {
	for _, w := range s.ways {
		var own, beside []float64
		for _, f := range all[w.name] {
			for i, v := range of(f) {
				switch {
				case v == 0:
				case f.beside == nil:
					own = append(own, v)
				case of(f.beside)[i] > 0:
					own, beside = append(own, v), append(beside, of(f.beside)[i])
				}
			}
		}
		if len(all[w.name]) == 0 {
			continue
		}
		row := s.row(what, w.name)
		if beside != nil {
			row.Of = wholeWay
		}
		s.add(row, own, beside)
	}
}

// startsOf returns what each pod took that started.
func startsOf(fillings []*filling) []float64 {
	var all []float64
	for _, f := range fillings {
		all = append(all, slices.DeleteFunc(slices.Clone(f.starts), func(v float64) bool { return v == 0 })...)
	}
	return all
}

// profilePods says which programs a start on a full node has, as perf sees them.
func (s *podSpeed) profilePods() {
	const frequency = 999
	if _, missing := exec.LookPath("perf"); missing != nil {
		row := speed.Row{Group: "profile", What: fullNodeStart, Variant: "perf"}
		s.results.Rows = append(s.results.Rows, row.Absent("missing: "+missing.Error()))
		return
	}
	for _, w := range s.ways {
		if !w.profiled {
			continue
		}
		s.progress("programs of %d pods, %s", s.pods, w.name)
		file := filepath.Join(testhost.Dir(), "perf.data")
		var l load
		err := speed.Sample(file, frequency, func() error {
			l = w.node.fill(s.t, s.pods, time.Time{}, w)
			return errors.Join(l.errs...)
		})
		l.empty(s.t)
		var times map[string]float64
		if err == nil {
			times, err = speed.Programs(file, frequency)
		}
		if err = errors.Join(err, os.Remove(file)); err != nil {
			s.t.Errorf("programs of %s: %v", w.name, err)
			continue
		}
		row := speed.Row{Group: "profile", What: speed.TimePerProgram + fullNodeStart + ", " + w.name, Runtime: "runc",
			Paths: usualSize}
		s.results.Rows = append(s.results.Rows, speed.ProgramRows(row, times, s.pods)...)
	}
}

// The benchmark looks for these.
const (
	fullNodeStart = "110 pods, each start"
	fullNodeWorst = "110 pods, the worst percentile"
)

// addWorst compares each percentile with nix-snapshotter's.
func (s *podSpeed) addWorst(all map[string][]*filling) {
	rival := startsOf(all[rivalWay])
	for _, mode := range []string{"overlay", "bind"} {
		row := s.row(fullNodeWorst, mode)
		row.Of, row.Unit = rivalWay, "ratio"
		own := startsOf(all[mode])
		if len(own) == 0 || len(rival) == 0 {
			s.add(row, nil, nil)
			continue
		}
		worst := 0.0
		for percentile := range 101 {
			p := float64(percentile)
			worst = max(worst, speed.Percentile(own, p)/speed.Percentile(rival, p))
		}
		s.add(row, []float64{worst}, []float64{1})
	}
}

// memory is what proc_meminfo(5) says that pods change, in KiB.
func memory(t *testing.T) map[string]float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]float64{}
	names := map[string]string{"SReclaimable:": "slab", "SUnreclaim:": "slab", "Cached:": "cache", "Buffers:": "cache"}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || names[fields[0]] == "" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sums[names[fields[0]]] += kib
	}
	return sums
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// progress says what is measured.
func (s *podSpeed) progress(format string, args ...any) {
	if *speedFile != "" {
		fmt.Fprintf(os.Stderr, "pods: "+format+"\n", args...)
	}
}
