// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// To run one of a run's topologies again, give its seed and its number, and all of it is
// printed: its commands, what the container and the hook say, and the container's mounts.
//
//	go test -v -run TestTopologies ./e2e -args -bin DIR -topology-seed 1 -topology 137
var (
	topologies   = flag.Int("topologies", 300, "how many mount topologies TestTopologies makes")
	topologySeed = flag.Uint64("topology-seed", 1, "what TestTopologies makes them from")
	topologyOnly = flag.Int("topology", -1, "the number of the only topology to make")
)

// topologiesOfHost is how many containers a host of the test gets.
const topologiesOfHost = 15

// maxDescribed is how many that fail are described.
const maxDescribed = 10

// outcome is what became of a topology.
type outcome struct {
	number   int
	layout   string
	topology *topology
	text     string // that describes it
	started  bool
	looked   report  // of the container that started
	truth    report  // or of the one that was refused, without the hook
	reason   string  // of the refusal
	why      error   // the topology is none, or the test itself failed
	again    []error // the same of those that had its number before
}

// find is a place where a secret is.
type find struct{ Mount, Path, What string }

// report is what ./prober prints.
type report struct {
	Finds     []find
	Store     []string
	Mounts    int
	Unmounted int
	Truncated bool
}

// A container with a closure shows no secret of the host's store, whatever the host
// has mounted where, and whatever of that the container mounts. The topologies are
// random; what a container shows a program in it finds out, which looks at all that is
// mounted there, and where it may take mounts off, at what is underneath.
//
// A container that is refused shows nothing either. Whether it would have, the same
// container without the hook says: what is refused needlessly is counted and named.
func TestTopologies(t *testing.T) {
	began := time.Now()
	dir := topologyDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	prober := filepath.Join(dir, "prober")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", prober, "./prober")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the prober: %v\n%s", err, text)
	}
	token := make([]byte, 12)
	_, _ = rand.Read(token)
	seed, err := newSeedStore(filepath.Join(dir, "seed"), prober, hex.EncodeToString(token))
	if err != nil {
		t.Fatal(err)
	}
	config := specOf(t)
	t.Logf("layouts of /nix: %s", layoutNames())

	numbers := make(chan int)
	var tally tally
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for first := range numbers {
				if err := runHost(seed, prober, config, first, tally.add); err != nil {
					t.Errorf("the host of the topologies from %d on: %v", first, err)
				}
			}
		})
	}
	if *topologyOnly >= 0 {
		numbers <- *topologyOnly - *topologyOnly%topologiesOfHost
	} else {
		for first := 0; first < *topologies; first += topologiesOfHost {
			numbers <- first
		}
	}
	close(numbers)
	wait.Wait()
	tally.judge(t, time.Since(began))
}

// specOf is the config.json that topologies are made from.
func specOf(t *testing.T) []byte {
	b := newBundle(t, nil, "")
	delete(b.config, "annotations")
	delete(b.config, "hooks")
	linux := b.linux()
	for _, key := range []string{"maskedPaths", "readonlyPaths"} {
		delete(linux, key)
	}
	// A network of its own costs time and says nothing here.
	linux["namespaces"] = slices.DeleteFunc(linux["namespaces"].([]any), func(n any) bool {
		return slices.Contains([]any{"network", "cgroup"}, n.(object)["type"])
	})
	b.config["mounts"] = slices.DeleteFunc(b.config["mounts"].([]any), func(m any) bool {
		return strings.HasPrefix(m.(object)["destination"].(string), "/sys")
	})
	text, err := json.Marshal(b.config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// runHost runs the topologies from a number on, on a host of theirs.
func runHost(seed *seedStore, prober string, config []byte, first int, add func(outcome)) error {
	number := first / topologiesOfHost
	l := layouts[(number+int(*topologySeed))%len(layouts)]
	h, err := newHost(fmt.Sprintf("%s/host%d", topologyDir(), number), l, seed, prober)
	if err != nil {
		return err
	}
	err = inOwnThread(func() error {
		return h.inHost(func() error {
			for n := first; n < first+topologiesOfHost; n++ {
				if *topologyOnly < 0 && n < *topologies || *topologyOnly == n {
					add(h.try(config, n))
				}
			}
			left, err := h.left()
			if len(left) > 0 {
				err = errors.Join(err, fmt.Errorf("left behind: %q", left))
			}
			return err
		})
	})
	return errors.Join(err, h.close())
}

// try runs the topology of a number. What the kernel or a runtime does not do is made
// another one of.
func (h *simulated) try(config []byte, number int) outcome {
	var o outcome
	var again []error
	for attempt := range 8 {
		dir := fmt.Sprintf("/w/%d", number)
		if attempt > 0 {
			dir += string(rune('a' + attempt))
		}
		t := generate(h, *topologySeed, uint64(number)<<8|uint64(attempt), dir)
		t.precreate = t.podman && number%2 > 0
		o = h.run(t, config, number)
		if o.why == nil {
			break
		}
		again = append(again, o.why)
	}
	o.again = again
	return o
}

// run makes a topology, and its container.
func (h *simulated) run(t *topology, config []byte, number int) (o outcome) {
	o = outcome{number: number, layout: h.layout.name, topology: t, text: t.describe(h)}
	fail := func(err error) outcome {
		o.why = err
		return o
	}
	if err := h.write(t, config); err != nil {
		return fail(err)
	}
	cmd := exec.Command("/bin/sh", "-c", t.script(h))
	cmd.Dir = t.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	// All that it mounts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.WaitDelay = 20 * time.Second
	said, err := cmd.CombinedOutput()
	if *topologyOnly >= 0 {
		fmt.Printf("%s\n%s%v\n", o.text, said, err)
		for _, f := range []string{"hooked.out", "hooked.err", "truth.out", "truth.err"} {
			text, _ := os.ReadFile(filepath.Join(t.dir, f))
			fmt.Printf("%s: %s\n", f, text)
		}
	}
	o.reason = h.reason()
	if err != nil {
		return fail(fmt.Errorf("making it: %w\n%s", err, said))
	}
	if o.started, err = readReport(t.dir+"/hooked", &o.looked); err != nil {
		return fail(err)
	}
	if ok, err := readReport(t.dir+"/truth", &o.truth); err != nil || !ok {
		text, _ := os.ReadFile(t.dir + "/truth.err")
		return fail(errors.Join(fmt.Errorf("it does not start without the hook either: %s", text), err))
	}
	if !o.started && o.reason == "" {
		text, _ := os.ReadFile(t.dir + "/hooked.err")
		o.reason = "no reason in the log: " + string(text)
	}
	if o.started {
		o.looked.Finds = append(o.looked.Finds, h.more(t, o.looked.Store)...)
	}
	o.why = errors.Join(o.why, os.RemoveAll(t.dir))
	return o
}

// more is what a store directory has that is not the container's closure.
func (h *simulated) more(t *topology, names []string) []find {
	var finds []find
	closure := []string{"program", "data"}
	for _, n := range names {
		_, name, _ := strings.Cut(n, "-")
		// What a mount asks for by name may be there as well.
		if name != "named" && !slices.Contains(closure, name) {
			finds = append(finds, find{storeDir, storeDir + "/" + n, "not in the closure"})
		}
	}
	for _, name := range closure {
		if t.listing && !slices.Contains(names, filepath.Base(h.seed.paths[name])) {
			finds = append(finds, find{storeDir, h.seed.paths[name], "not there"})
		}
	}
	return finds
}

// readReport reads what a container left: whether it ran to its end, and what it printed.
func readReport(name string, r *report) (ok bool, _ error) {
	status, err := os.ReadFile(name + ".status")
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(status)) != "0" {
		return false, nil
	}
	text, err := os.ReadFile(name + ".out")
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(text, r); err != nil {
		return false, fmt.Errorf("the prober printed %q: %w", text, err)
	}
	if r.Truncated {
		return false, errors.New("the prober did not see all of it: its bounds are too small")
	}
	return true, nil
}

// reason is the last error in what was added to the log.
func (h *simulated) reason() string {
	f, err := os.Open(logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(h.seen, io.SeekStart); err != nil {
		return ""
	}
	text, _ := io.ReadAll(f)
	h.seen += int64(len(text))
	reason := ""
	for line := range strings.Lines(string(text)) {
		var l logLine
		if json.Unmarshal([]byte(line), &l) == nil && strings.EqualFold(l.Level, "error") && reason == "" {
			reason = l.Msg
		}
	}
	return reason
}

// write makes the files of a topology: its bundle, and config.json with the hook and
// without.
func (h *simulated) write(t *topology, spec []byte) error {
	rootfs := t.dir + "/b/rootfs"
	for _, dir := range []string{"/bin", "/proc", "/dev", "/tmp", "/etc"} {
		if err := os.MkdirAll(rootfs+dir, 0o755); err != nil {
			return err
		}
	}
	for _, p := range []string{rootfs, "/images/plain"} {
		if err := os.Link("/prober", p+"/bin/prober"); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for name, hooked := range map[string]bool{"hooked": true, "truth": false} {
		config, err := h.config(t, spec, hooked)
		if err != nil {
			return err
		}
		if err := os.WriteFile(t.dir+"/b/"+name+".json", config, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// config is the config.json of a topology, made from a runtime's own.
func (h *simulated) config(t *topology, spec []byte, hooked bool) ([]byte, error) {
	var c object
	if err := json.Unmarshal(spec, &c); err != nil {
		return nil, err
	}
	process, linux := c["process"].(object), c["linux"].(object)
	process["args"] = t.command(h, hooked)
	if t.admin || !hooked {
		capabilities := process["capabilities"].(object)
		for _, set := range []string{"bounding", "effective", "permitted"} {
			capabilities[set] = append(capabilities[set].([]any), "CAP_SYS_ADMIN")
		}
	}
	c["root"] = object{"path": cmp.Or(t.root, "rootfs"), "readonly": t.readonly}
	for _, m := range t.mounts {
		c["mounts"] = append(c["mounts"].([]any), m)
	}
	if t.device {
		linux["resources"] = object{"devices": []object{{"allow": true, "access": "rwm"}}}
	}
	if t.userns {
		ids := []object{{"containerID": 0, "hostID": 0, "size": 65536}}
		linux["namespaces"] = append(linux["namespaces"].([]any), object{"type": "user"})
		linux["uidMappings"], linux["gidMappings"] = ids, ids
	}
	if hooked {
		c["annotations"] = t.annotations(h)
		hooks, b := object{}, bundle{}
		for _, stage := range []string{"createRuntime", "poststop"} {
			hooks[stage] = []object{b.hook("nix-closure-hook", stage)}
		}
		c["hooks"] = hooks
	}
	return json.Marshal(c)
}

// command is the container's: the prober, out of the closure if it has one.
func (t *topology) command(h *simulated, hooked bool) []string {
	program := "/bin/prober"
	if hooked {
		program = h.seed.paths["program"] + program
	}
	backwards := []byte(h.seed.token)
	slices.Reverse(backwards)
	args := []string{program, "look", string(backwards)}
	if t.meet != "" {
		args = append(args, "late="+t.meet)
	}
	if t.admin || !hooked {
		args = append(args, "unmount")
	}
	return args
}

func (t *topology) annotations(h *simulated) map[string]string {
	all := map[string]string{"nix-closure/roots": h.seed.paths["program"]}
	if t.mode != "" {
		all["nix-closure/mode"] = t.mode
	}
	if !t.listing {
		all["nix-closure/listing"] = "false"
	}
	return all
}

// script makes the topology and runs the container; if it does not start, once more
// without the hook.
func (t *topology) script(h *simulated) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("set -e")
	line("trap '%s' EXIT", strings.Join(slices.Compact(append([]string{"set +e"}, t.undo...)), "\n"))
	for _, s := range t.image {
		line("(cd b/rootfs; %s)", s)
	}
	for _, s := range t.steps {
		line("%s", s)
	}
	if t.precreate {
		line("mkdir precreate.d; sed s/createRuntime/precreate/g %s/hooks.d/nix-closure-createRuntime.json "+
			">precreate.d/nix-closure-precreate.json", *bin)
	}
	line("cd b")
	for _, name := range []string{"hooked", "truth"} {
		if name == "truth" {
			line("%s", cmp.Or(t.again, ":"))
		}
		if len(t.late) > 0 {
			line("(until [ -e $(dirname %s)/ready ]; do sleep 0.01; done", strings.Fields(t.late[len(t.late)-1])[1])
			line("%s) & late=$!", strings.Join(t.late, "; "))
		}
		line("cp %s.json config.json; status=0", name)
		line("timeout -k 5 30 %s >../%s.out 2>../%[2]s.err || status=$?", t.run(h, name), name)
		line("echo $status >../%s.status", name)
		if len(t.late) > 0 {
			line("kill $late 2>/dev/null || :; wait $late || :")
		}
	}
	return b.String()
}

// run is the command that runs the container.
func (t *topology) run(h *simulated, name string) string {
	id := fmt.Sprintf("topology-%s-%s", filepath.Base(t.dir), name)
	if !t.podman {
		return fmt.Sprintf("%s run --bundle %s/b %s", t.runtime, t.dir, id)
	}
	args := []string{
		"podman", "--root", "/var/lib/podman", "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp",
		"--runtime", t.runtime,
	}
	if name == "hooked" {
		args = append(args, "--hooks-dir", filepath.Join(*bin, "hooks.d"))
		if t.precreate {
			args = append(args, "--hooks-dir", t.dir+"/precreate.d")
		}
	}
	args = append(args, "run", "--rm", "--name", id)
	if name == "hooked" {
		annotations := t.annotations(h)
		for _, key := range slices.Sorted(maps.Keys(annotations)) {
			args = append(args, "--annotation", key+"="+annotations[key])
		}
	}
	if t.admin || name == "truth" {
		args = append(args, "--cap-add", "SYS_ADMIN")
	}
	if t.readonly {
		args = append(args, "--read-only")
	}
	args = append(args, t.volumes...)
	root := t.root
	if root == "" {
		root = t.dir + "/b/rootfs"
	}
	args = append(append(args, "--rootfs", root), t.command(h, name == "hooked")...)
	var words []string
	for _, a := range args {
		words = append(words, quote(a))
	}
	return strings.Join(words, " ")
}

// describe is a topology as somebody would make it by hand.
func (t *topology) describe(h *simulated) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "\t"+format+"\n", args...) }
	line("# %s", strings.Join(t.kinds, "; "))
	line("# /nix: %s. The host, in a mount namespace of its own and an empty directory $1;", h.layout.name)
	line("# SEED=%s, a /nix to copy; PROBER is test/e2e/prober", h.seed.dir)
	for text := range strings.Lines(h.layout.script()) {
		line("%s", strings.TrimSuffix(text, "\n"))
	}
	line("# the topology, in a mount namespace of its own, in %s", t.dir)
	for text := range strings.Lines(t.script(h)) {
		line("%s", strings.TrimSuffix(text, "\n"))
	}
	if !t.podman {
		mounts, _ := json.Marshal(t.mounts)
		line("# mounts in config.json: %s", mounts)
	}
	line("# CAP_SYS_ADMIN %v, user namespace %v, root %q, read-only %v", t.admin, t.userns, t.root, t.readonly)
	line("# annotations %v", t.annotations(h))
	return b.String()
}

// tally is what became of all topologies.
type tally struct {
	mutex sync.Mutex
	all   []outcome
}

func (t *tally) add(o outcome) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.all = append(t.all, o)
}

// shown is what the container shows without the hook, but for what the view takes the
// place of.
func (o outcome) shown() []string {
	var paths []string
	for _, f := range o.truth.Finds {
		if f.Mount == "/nix" || f.Mount == storeDir {
			if strings.HasPrefix(f.Path, storeDir+"/") || strings.HasPrefix(f.Path, "/nix/var/nix/") {
				continue
			}
		}
		paths = append(paths, f.Path)
	}
	return paths
}

// judge fails the test for each container that shows a secret, and counts the others.
func (t *tally) judge(test *testing.T, took time.Duration) {
	slices.SortFunc(t.all, func(a, b outcome) int { return a.number - b.number })
	var started, show, replaced, needless, again int
	var leaks []string
	reasons := map[string][]string{}
	for _, o := range t.all {
		name := fmt.Sprintf("-topology-seed %d -topology %d", *topologySeed, o.number)
		again += len(o.again)
		kinds := strings.Join(o.topology.kinds, "; ")
		what := fmt.Sprintf("%d (%s, %s): %s", o.number, o.layout, o.topology.runtime, kinds)
		if o.why != nil {
			test.Errorf("%s: cannot be made: %v\n%s", name, o.why, o.text)
			continue
		}
		if len(o.truth.Finds) > 0 {
			show++
		}
		switch {
		case o.started && len(o.looked.Finds) > 0:
			started++
			if leaks = append(leaks, what); len(leaks) > maxDescribed {
				o.text = ""
			}
			test.Errorf("%s: the container shows\n\t%+v\n%s", name, o.looked.Finds, o.text)
		case o.started:
			started++
			if len(o.truth.Finds) > 0 {
				replaced++
			}
		case len(o.shown()) == 0:
			needless++
			reason := anonymous(o.reason)
			reasons[reason] = append(reasons[reason], what)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d topologies from seed %d in %v, %d made anew because no runtime starts them\n",
		len(t.all), *topologySeed, took.Round(time.Second), again)
	fmt.Fprintf(&b, "%d show a secret without the hook\n", show)
	fmt.Fprintf(&b, "%d started, %d of them show a secret\n", started, len(leaks))
	for _, l := range leaks {
		fmt.Fprintf(&b, "        %s\n", l)
	}
	fmt.Fprintf(&b, "  %d show none because the view is in its place, or because they lack CAP_SYS_ADMIN\n", replaced)
	refused := len(t.all) - started
	fmt.Fprintf(&b, "%d refused, %d of them needlessly: %.1f %% of all\n",
		refused, needless, 100*float64(needless)/float64(max(1, len(t.all))))
	for _, r := range sorted(reasons) {
		fmt.Fprintf(&b, "  %3d × %s\n", len(reasons[r]), r)
		for _, k := range reasons[r] {
			fmt.Fprintf(&b, "        %s\n", k)
		}
	}
	fmt.Print(b.String())
}

var (
	hostRoot     = regexp.MustCompile(`/[^ ]*/host\d+/root/`)
	ownName      = regexp.MustCompile(`mount of .*? on `)
	ownContainer = regexp.MustCompile(`container [^ ]+: `)
	ownPlace     = regexp.MustCompile(`(` + strings.Join(destinations, "|") + `)\d+`)
)

// anonymous is a reason without what differs from container to container.
func anonymous(reason string) string {
	reason = ownContainer.ReplaceAllString(hostRoot.ReplaceAllString(reason, "$$R/"), "")
	return ownPlace.ReplaceAllString(ownName.ReplaceAllString(reason, "mount of … on "), "…")
}
