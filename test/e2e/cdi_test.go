// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

const (
	cdiFile  = "/etc/cdi/nix-closure.json"
	cdiRoots = "/nix/var/nix/gcroots/nix-closure-cdi"
)

// removeDevices has the test leave no device, and no GC root of one.
func removeDevices(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		removeAll(t, cdiFile)
		removeAll(t, cdiRoots)
	})
}

// device is a device as cdi list --json has it.
type device struct {
	Name, Device, State, Trouble, Mode, ClosureInfo, Hook string
	Roots, From                                           []string
	Registration, Listing, Writable                       bool
}

func listDevices(t *testing.T) []device {
	t.Helper()
	return operatorJSON[[]device](t, "cdi", "list", "--json")
}

// pinned are the store paths that are GC roots because of the file of devices.
func pinned(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob(cdiRoots + "/*/*")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, target)
	}
	slices.Sort(all)
	return all
}

// checkRoots fails if a device has other roots, or if other store paths are pinned than
// those of all devices.
func checkRoots(t *testing.T, want map[string][]string) {
	t.Helper()
	got, all := map[string][]string{}, []string{}
	for _, d := range listDevices(t) {
		if d.State != "ok" {
			t.Errorf("%+v", d)
		}
		got[d.Name] = d.Roots
		all = append(all, d.Roots...)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the devices are %q\nwant %q", got, want)
	}
	if have, want := pinned(t), slices.Compact(slices.Sorted(slices.Values(all))); !slices.Equal(have, want) {
		t.Errorf("pinned are %q\nwant %q", have, want)
	}
	hidden, err := filepath.Glob("/etc/cdi/.*")
	if err != nil || len(hidden) > 0 {
		t.Errorf("left behind: %q %v", hidden, err)
	}
}

// Devices are added, replaced, refreshed and removed, with their GC roots.
func TestCDIGenerate(t *testing.T) {
	removeDevices(t)
	env, tools, bash, foreign := store["env"], store["tools"], store["bash"], store["foreign"]
	dir := t.TempDir()
	link := func(target string) {
		t.Helper()
		if err := os.RemoveAll(dir + "/result"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, dir+"/result"); err != nil {
			t.Fatal(err)
		}
	}
	link(env)
	generate := func(args ...string) {
		t.Helper()
		if stdout, stderr, status := operator(dir, append([]string{"cdi", "generate"}, args...)...); status != 0 ||
			stdout+stderr != "" {
			t.Fatalf("cdi generate %q: %d %s%s", args, status, stdout, stderr)
		}
	}
	if got := listDevices(t); len(got) != 0 {
		t.Fatalf("before: %+v", got)
	}
	generate("env="+env, "two="+tools+":"+bash, "three="+env, "three="+bash+"/bin/bash")
	checkRoots(t, map[string][]string{"env": {env}, "two": {tools, bash}, "three": {env, bash}})
	generate("web=result", "--mode", "bind", "--registration")
	checkRoots(t, map[string][]string{"env": {env}, "two": {tools, bash}, "three": {env, bash}, "web": {env}})
	devices := listDevices(t)
	if d := devices[3]; d.Name != "web" || d.Device != "nix-closure/closure=web" || d.Mode != "bind" ||
		!d.Registration || !d.Listing || d.Writable || !slices.Equal(d.From, []string{dir + "/result"}) ||
		d.Hook != filepath.Join(*bin, "nix-closure-hook") {
		t.Errorf("%+v", d)
	}
	generate("two="+foreign, "three="+bash) // replaces
	checkRoots(t, map[string][]string{"env": {env}, "two": {foreign}, "three": {bash}, "web": {env}})

	// A link that leads elsewhere is followed when --refresh says so, and not before.
	link(tools)
	if d := listDevices(t)[3]; d.State != "outdated" || !strings.Contains(d.Trouble, "--refresh") ||
		!slices.Equal(d.Roots, []string{env}) {
		t.Errorf("%+v", d)
	}
	generate("--refresh")
	checkRoots(t, map[string][]string{"env": {env}, "two": {foreign}, "three": {bash}, "web": {tools}})
	if d := listDevices(t)[3]; d.Mode != "bind" || !d.Registration {
		t.Errorf("after --refresh: %+v", d)
	}
	// One that leads nowhere stays as it is, and is no reason to leave out others.
	if err := os.Mkdir(dir+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	generate("other=./other/../result")
	if err := os.Rename(dir+"/result", dir+"/moved"); err != nil {
		t.Fatal(err)
	}
	generate("moved=moved")
	if err := errors.Join(os.Remove(dir+"/moved"), os.Symlink(env, dir+"/moved")); err != nil {
		t.Fatal(err)
	}
	_, stderr, status := operator("/", "cdi", "generate", "--refresh")
	if status != 1 || !strings.Contains(stderr, "device web stays as it is") {
		t.Errorf("%d %s", status, stderr)
	}
	follows := map[string]string{"web": tools, "other": tools, "moved": env}
	for _, d := range listDevices(t) {
		if want := follows[d.Name]; want != "" && d.Roots[0] != want {
			t.Errorf("%+v, want %s", d, want)
		}
	}
	text, stderr, status := operator("/", "cdi", "list", "--file", cdiFile)
	if status != 0 || !strings.HasPrefix(text, "NAME") || !strings.Contains(text, "two") ||
		!strings.Contains(text, foreign) || !strings.Contains(stderr, "device web: ") {
		t.Errorf("%d %s%s", status, text, stderr)
	}

	mustOperator(t, "cdi", "remove", "env", "web", "other", "moved")
	checkRoots(t, map[string][]string{"two": {foreign}, "three": {bash}})
	mustOperator(t, "cdi", "remove", "two", "three")
	checkRoots(t, map[string][]string{})
	for _, path := range []string{cdiFile, cdiRoots} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// What is wrong is refused, with its exit status, and changes nothing.
func TestCDIRefused(t *testing.T) {
	removeDevices(t)
	env, invalid := store["env"], storeDir+"/00000000000000000000000000000000-missing"
	mustOperator(t, "cdi", "generate", "env="+env)
	before := read(t, cdiFile)
	dir := t.TempDir()
	foreign := dir + "/foreign.json"
	write(t, foreign, []byte(`{"cdiVersion":"0.5.0","kind":"example.com/gpu","devices":[{"name":"a","containerEdits":`+
		`{"env":["A=b"]}}]}`))
	newer := dir + "/newer.json"
	write(t, newer, []byte(strings.Replace(string(before), `"kind"`, `"new": 1, "kind"`, 1)))
	link := dir + "/link.json"
	if err := os.Symlink(cdiFile, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"generate"}, 2, "name at least one NAME=ROOT"},
		{[]string{"generate", env}, 2, "not NAME=ROOT"},
		{[]string{"generate", "a b=" + env}, 2, "invalid character"},
		{[]string{"generate", "=" + env}, 2, "empty"},
		{[]string{"generate", "--refresh", "a=" + env}, 2, "takes no NAME=ROOT"},
		{[]string{"generate", "--refresh", "--mode", "bind"}, 2, "mode"},
		{[]string{"generate", "--mode", "fast", "a=" + env}, 2, "not one of"},
		{[]string{"generate", "--format", "toml", "a=" + env}, 2, "neither json nor yaml"},
		{[]string{"generate", "--output", dir + "/a.txt", "a=" + env}, 2, "end in .json or .yaml"},
		{[]string{"generate", "--output", dir + "/a.json", "--format", "yaml", "a=" + env}, 2, "--format yaml"},
		{[]string{"generate", "a="}, 1, "empty argument"},
		{[]string{"generate", "a=" + env + ":"}, 1, "empty argument"},
		{[]string{"generate", "a=/etc/passwd"}, 1, "not below the store directory"},
		{[]string{"generate", "good=" + env, "a=" + invalid}, 3, "not valid"},
		{[]string{"generate", "--output", foreign, "a=" + env}, 1, `kind "example.com/gpu"`},
		{[]string{"generate", "--output", newer, "a=" + env}, 1, "new"},
		{[]string{"generate", "--output", link, "a=" + env}, 1, "not a regular file"},
		{[]string{"generate", "--output", "/etc/cdi/more.json", "env=" + env}, 1, "has a device env too"},
		{[]string{"generate", "--refresh", "--output", dir + "/none.json"}, 1, "no such file"},
		{[]string{"remove"}, 2, "requires at least 1 arg"},
		{[]string{"remove", "other"}, 1, "has no device other"},
		{[]string{"remove", "--file", dir + "/none.json", "a"}, 1, "no such file"},
		{[]string{"list", "--file", foreign}, 1, `kind "example.com/gpu"`},
		{[]string{"list", "env"}, 2, "unknown command"},
	} {
		stdout, stderr, status := operator("/", append([]string{"cdi"}, c.args...)...)
		if status != c.status || stdout != "" || !strings.Contains(stderr, c.says) {
			t.Errorf("cdi %q: %d %s%s, want %d %s", c.args, status, stdout, stderr, c.status, c.says)
		}
		if strings.Count(stderr, "\n") != 1 {
			t.Errorf("cdi %q: %q is not one line", c.args, stderr)
		}
	}
	if string(read(t, cdiFile)) != string(before) {
		t.Error("the file has changed")
	}
	checkRoots(t, map[string][]string{"env": {env}})
	for _, name := range []string{"/etc/cdi/more.json", dir + "/none.json", dir + "/a.json"} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Calls at the same time lose nothing of each other, and at no moment is there a device
// whose root is not pinned.
func TestCDIAtTheSameTime(t *testing.T) {
	removeDevices(t)
	var roots []string
	for i := range 8 {
		roots = append(roots, addStorePath(t, fmt.Sprintf("cdi-%d", i)))
	}
	ended, looked := make(chan struct{}), make(chan int)
	devices := func() map[string]string {
		var file struct {
			Devices []struct {
				Name           string
				ContainerEdits struct{ Hooks []struct{ Args []string } }
			}
		}
		text, err := os.ReadFile(cdiFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = json.Unmarshal(text, &file)
		}
		if err != nil {
			t.Error(err)
		}
		all := map[string]string{}
		for _, d := range file.Devices {
			_, all[d.Name], _ = strings.Cut(d.ContainerEdits.Hooks[0].Args[2], "=")
		}
		return all
	}
	go func() {
		seen := 0
		for {
			before := devices()
			links, err := filepath.Glob(cdiRoots + "/*/*")
			if err != nil {
				t.Error(err)
			}
			// What was listed before and is listed after was listed meanwhile: no device has
			// the same root twice.
			after := devices()
			for name, root := range before {
				isOf := func(link string) bool { return filepath.Base(link) == filepath.Base(root) }
				if after[name] == root && !slices.ContainsFunc(links, isOf) {
					t.Errorf("%s of %s is listed and not pinned", root, name)
				}
				seen++
			}
			select {
			case <-ended:
				looked <- seen
				return
			default:
			}
		}
	}()
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			name := fmt.Sprintf("device-%d", i)
			for _, root := range []string{roots[2*i], roots[2*i+1]} {
				if _, stderr, status := operator("/", "cdi", "generate", name+"="+root); status != 0 {
					t.Errorf("%s=%s: %s", name, root, stderr)
				}
			}
		})
	}
	calls.Wait()
	close(ended)
	if seen := <-looked; seen < 4 {
		t.Errorf("only %d devices were looked at", seen)
	}
	checkRoots(t, map[string][]string{
		"device-0": {roots[1]}, "device-1": {roots[3]}, "device-2": {roots[5]}, "device-3": {roots[7]},
	})
}

// While the garbage collector runs over and over, a device is added with its whole closure,
// which stays, or it is refused because that is not valid any more.
func TestCDICollectorLoop(t *testing.T) {
	removeDevices(t)
	var names []string
	for i := range 24 {
		names = append(names, fmt.Sprintf("device-%d", i))
	}
	added, refused := 0, 0
	link := t.TempDir() + "/kept"
	trees := buildTrees(t, names, "--out-link", link)
	stop := over(t, "nix-store", "--gc")
	for i, one := range trees {
		kept := fmt.Sprintf("%s-%d", link, i+1)
		if i == 0 {
			kept = link
		}
		if i%3 == 0 {
			removeAll(t, kept) // the collector may take it at any moment
		}
		_, stderr, status := operator("/", "cdi", "generate", one.name+"="+one.root)
		removeAll(t, kept)
		switch {
		case status == 0:
			added++
		case status == 3 && i%3 == 0:
			refused++
		default:
			t.Errorf("%s: %d %s", one.name, status, stderr)
		}
	}
	if times, failed := stop(); times < 2 || len(failed) > 0 {
		t.Errorf("the collector ran %d times: %q", times, failed)
	}
	must(t, "nix-store", "--gc")
	devices := listDevices(t)
	if len(devices) != added || added < len(trees)/2 {
		t.Errorf("%d devices, %d added, %d refused", len(devices), added, refused)
	}
	for _, d := range devices {
		if d.State != "ok" {
			t.Errorf("%+v", d)
		}
		for _, path := range trees[slices.Index(names, d.Name)].closure {
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("%s: %v", d.Name, err)
			}
		}
	}
}

// The garbage collector keeps the closure of a device, and takes it afterwards.
func TestCDICollector(t *testing.T) {
	removeDevices(t)
	root := addStorePath(t, "collected")
	deleted := func() bool {
		_, _, err := call("nix-store", "--delete", root)
		return err == nil
	}
	mustOperator(t, "cdi", "generate", "collected="+root)
	mustOperator(t, "gc", "--unused-for", "0s") // which is of containers alone
	if deleted() {
		t.Fatal("it was deleted")
	}
	mustOperator(t, "cdi", "remove", "collected")
	if !deleted() {
		t.Fatal("it is kept")
	}
	// What is removed by hand goes with the next sweep.
	kept := addStorePath(t, "by-hand")
	mustOperator(t, "cdi", "generate", "by-hand="+kept)
	removeAll(t, cdiFile)
	const swept = "GC roots " + cdiFile + "\n"
	for _, dryRun := range []bool{true, false} {
		if out := mustOperator(t, "gc", fmt.Sprintf("--dry-run=%v", dryRun)); !strings.Contains(out, swept) {
			t.Errorf("gc says %q", out)
		}
	}
	must(t, "nix-store", "--delete", kept)
	if out := mustOperator(t, "gc"); strings.Contains(out, swept) {
		t.Errorf("gc says %q", out)
	}
	if _, stderr, status := operator("/", "cdi", "generate", "collected="+root); status != 3 {
		t.Errorf("%d %s", status, stderr)
	}
	checkRoots(t, map[string][]string{})
}

// cdiExample is examples/cdi/nix-closure.json for a store path and a profile that leads
// to it.
func cdiExample(t *testing.T, root string) string {
	return strings.ReplaceAll(string(read(t, "../../examples/cdi/nix-closure.json")), "/nix/store/…-hello-2.12", root)
}

// The example is what cdi generate writes, and its units' command follows a profile with
// the capabilities that they leave.
func TestCDIExamples(t *testing.T) {
	install(t)
	removeDevices(t)
	const profile = "/nix/var/nix/profiles/hello"
	root := buildProgram(t, "hello-2.12")
	if err := errors.Join(os.MkdirAll(filepath.Dir(profile), 0o755), os.Symlink(root, profile)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, profile) })
	program := "/usr/local/bin/nix-closure"
	must(t, program, "cdi", "generate", "hello="+profile, "two="+root+":"+store["bash"])
	want := strings.ReplaceAll(cdiExample(t, root), "/nix/store/…-bash-5.2", store["bash"])
	if got := string(read(t, cdiFile)); got != want {
		t.Errorf("it wrote\n%s\nwant\n%s", got, want)
	}
	newer := buildProgram(t, "hello-2.13")
	if err := errors.Join(os.Remove(profile), os.Symlink(newer, profile)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unit := string(read(t, "../../examples/systemd/nix-closure-cdi.service"))
	write(t, dir+"/nix-closure-cdi.service", []byte(unit))
	write(t, dir+"/nix-closure-cdi.path", read(t, "../../examples/systemd/nix-closure-cdi.path"))
	if out := must(t, "systemd-analyze", "verify", "--man=no", dir+"/nix-closure-cdi.path",
		dir+"/nix-closure-cdi.service"); out != "" {
		t.Error(out)
	}
	if path := string(read(t, dir+"/nix-closure-cdi.path")); !strings.Contains(path,
		"PathChanged="+filepath.Dir(profile)+"\n") {
		t.Error(path)
	}
	setting := func(key string) string {
		_, rest, found := strings.Cut(unit, "\n"+key+"=")
		if !found {
			t.Fatalf("the unit has no %s", key)
		}
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	capabilities := "-all"
	for _, name := range strings.Fields(setting("CapabilityBoundingSet")) {
		capabilities += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	must(t, "setpriv", append([]string{"--bounding-set", capabilities, "--inh-caps", capabilities},
		strings.Fields(setting("ExecStart"))...)...)
	if d := listDevices(t); d[0].Roots[0] != newer || d[1].Roots[0] != root {
		t.Errorf("%+v", d)
	}
}

// deviceWays are how podman gives a container a device, by nothing but the file: an ordinary
// user has no configuration at all.
func deviceWays(t *testing.T) []way {
	t.Helper()
	var ways []way
	alice := user(t, "alice")
	none := emptyHooks(t)
	for _, runtime := range runtimes {
		c := container{runtime: runtime, hooks: none}
		asks := []string{"--device", "nix-closure/closure=env"}
		ways = append(ways, way{name: runtime, container: c, asks: asks},
			way{name: "rootless, " + runtime, container: container{runtime: runtime}, asks: asks, user: alice})
	}
	return ways
}

// hookProgram is the program that the devices of writeDevices call.
func hookProgram() string { return testhost.Dir() + "/local/bin/nix-closure-hook" }

// hide moves a file away, and returns what brings it back.
func hide(t *testing.T, path string) (back func()) {
	t.Helper()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := os.Rename(path+".away", path); err != nil {
			t.Error(err)
		}
	})
}

// A container with a device has exactly its closure. Without the device, the hook's program
// or a valid root, it does not start: not the first time, and not again.
func TestDevice(t *testing.T) {
	nixDaemon(t)
	writeDevices(t, map[string]annotations{"env": roots(store["env"])})
	defer hide(t, user(t, "alice").conf())()
	for _, w := range deviceWays(t) {
		t.Run(w.name, func(t *testing.T) {
			image := annotatedImage(t, nil)
			w.run(t, image, wholeStore...).has(t, "env")
			refuses := func(what, says string, w way) {
				t.Helper()
				s := w.run(t, image, wholeStore...)
				if s.err == nil || s.stdout != "" || !strings.Contains(s.stderr+s.said, says) {
					t.Errorf("%s: %v %q %s %s", what, s.err, s.stdout, s.stderr, s.said)
				}
			}
			// The control: a container without a device sees the whole store.
			without := w
			without.asks = nil
			if names, _ := without.run(t, image, wholeStore...).lines(); !slices.Contains(names,
				filepath.Base(store["foreign"])) {
				t.Errorf("without a device: %q", names)
			}
			missing := w
			missing.asks = []string{"--device", "nix-closure/closure=none"}
			refuses("a missing device", "unresolvable CDI devices nix-closure/closure=none", missing)

			c := w.container
			c.image, c.flags = image, slices.Concat(w.asks, wholeStore)
			call, args := call, c.args("/bin/busybox", "ls", "-A", storeDir)
			if w.user != nil {
				call, args = w.user.call, w.user.args(c, "/bin/busybox", "ls", "-A", storeDir)
			}
			args[slices.Index(args, "run")] = "create"
			id, stderr, err := call("podman", args...)
			if err != nil {
				t.Fatal(stderr)
			}
			id = strings.TrimSpace(id)
			start := func() (string, string, error) {
				if w.user != nil {
					return call("podman", "start", "--attach", id)
				}
				return call("podman", "--hooks-dir", w.container.hooks, "start", "--attach", id)
			}
			started := func(when string) {
				t.Helper()
				stdout, stderr, err := start()
				got := strings.Fields(stdout)
				if slices.Sort(got); err != nil || !slices.Equal(got, closureOf(t, store["env"])) {
					t.Errorf("%s: %v %q %s", when, err, got, stderr)
				}
			}
			startRefused := func(when string) {
				t.Helper()
				if stdout, stderr, err := start(); err == nil || stdout != "" {
					t.Errorf("%s, it started again: %q %s", when, stdout, stderr)
				}
			}
			started("created")
			started("started again")
			back := hide(t, hookProgram())
			defer back()
			refuses("a missing program", "nix-closure-hook", w)
			startRefused("without the program")
			back()
			back = hide(t, cdiFile)
			defer back()
			startRefused("without the file")
			refuses("a missing file", "unresolvable CDI devices", w)
			back()
			started("with all again")
			if _, stderr, err := call("podman", "rm", id); err != nil {
				t.Error(stderr)
			}
		})
	}
}

// What a container that runs leaves, where its hook's program is gone, goes with the next
// sweep.
func TestDeviceRemovedWithoutProgram(t *testing.T) {
	writeDevices(t, map[string]annotations{"env": roots(store["env"])})
	for _, runtime := range runtimes {
		c := container{runtime: runtime, hooks: emptyHooks(t), flags: []string{
			"--detach", "--device", "nix-closure/closure=env"}}
		stdout, stderr, err := call("podman", c.args(store["env"]+"/bin/sleep", "600")...)
		if err != nil {
			t.Fatal(stderr)
		}
		id := strings.TrimSpace(stdout)
		back := hide(t, hookProgram())
		stdout, stderr, err = call("podman", "rm", "--force", "--time", "0", id)
		if err != nil {
			t.Errorf("%s: podman rm: %v %s %s", runtime, err, stdout, stderr)
		}
		back()
		remove(t, id)
		mustOperator(t, "gc", "--unused-for", "0s")
		nothingLeft(t)
	}
}

// A device whose root is gone is refused, as by an annotation, and cdi list says so.
func TestDeviceNotValid(t *testing.T) {
	root := addStorePath(t, "goes")
	writeDevices(t, map[string]annotations{"goes": roots(root)})
	removeAll(t, cdiRoots)
	if d := listDevices(t)[0]; d.State != "broken" || !strings.Contains(d.Trouble, "is no GC root") {
		t.Errorf("%+v", d)
	}
	must(t, "nix-store", "--delete", root)
	if d := listDevices(t)[0]; d.State != "broken" || !strings.Contains(d.Trouble, "is not valid") {
		t.Errorf("%+v", d)
	}
	for _, runtime := range runtimes {
		c := container{runtime: runtime, hooks: emptyHooks(t), image: annotatedImage(t, nil),
			flags: []string{"--device", "nix-closure/closure=goes"}}
		stdout, stderr, err := c.run("/bin/busybox", "echo", "it runs")
		if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, root+" is not valid") {
			t.Errorf("%v %q %s %s", err, stdout, stderr, said)
		}
	}
	nothingLeft(t)
	back := hide(t, hookProgram())
	if d := listDevices(t)[0]; d.State != "broken" || !strings.Contains(d.Trouble, "the hook's program") {
		t.Errorf("%+v", d)
	}
	back()
}

// A container has one closure: a device together with annotations, or with another device,
// may say the same, and no other.
func TestDeviceAndMore(t *testing.T) {
	writeDevices(t, map[string]annotations{
		"env": roots(store["env"]), "same": roots(store["env"]), "tools": roots(store["tools"]),
		"both": roots(store["env"] + ":" + store["tools"]),
	})
	mustOperator(t, "cdi", "generate", "--mode", "bind", "bind="+store["env"])
	none, mode := emptyHooks(t), []string{"--annotation", "nix-closure/mode=bind"}
	env := closureOf(t, store["env"])
	all := slices.Concat(env, closureOf(t, store["tools"]))
	slices.Sort(all)
	both := slices.Compact(all)
	asks := func(names ...string) (flags []string) {
		for _, name := range names {
			flags = append(flags, "--device", "nix-closure/closure="+name)
		}
		return flags
	}
	for _, c := range []struct {
		name    string
		flags   []string
		want    []string // nil: refused
		refused string
		hooks   string // directory of hook files; empty: those of this program
	}{
		{name: "one", flags: asks("env"), want: env},
		{name: "of two roots", flags: asks("both"), want: both},
		{name: "and the same annotation", flags: append(asks("env"), flags(roots(store["env"]))...), want: env},
		{name: "and another annotation", flags: append(asks("env"), flags(roots(store["tools"]))...),
			refused: "nix-closure/roots"},
		{name: "and another closure-info", flags: append(asks("env"), "--annotation",
			"nix-closure/closure-info="+store["closureInfo"]), refused: "closure-info"},
		{name: "and a mode", flags: append(asks("env"), mode...), refused: "name at least one store path"},
		{name: "and a mode, without hook files", flags: append(asks("env"), mode...), want: env, hooks: none},
		{name: "with a mode and another, without hook files", flags: append(asks("bind"), "--annotation",
			"nix-closure/mode=overlay"), refused: "nix-closure/mode", hooks: none},
		{name: "and an unknown key", flags: append(asks("env"), "--annotation", "nix-closure/rots=x"),
			refused: "unknown"},
		{name: "and an unknown key, without hook files",
			flags:   append(asks("env"), "--annotation", "nix-closure/rots=x"),
			refused: "unknown", hooks: none},
		{name: "twice", flags: asks("env", "env"), want: env},
		{name: "two of one closure", flags: asks("env", "same"), want: env},
		{name: "two of one closure, in two modes", flags: asks("env", "bind"), hooks: none},
		{name: "two closures", flags: asks("env", "tools"), refused: "closure"},
		{name: "two closures, in the other order", flags: asks("tools", "env"), refused: "closure"},
	} {
		for _, runtime := range runtimes {
			t.Run(c.name+"/"+runtime, func(t *testing.T) {
				// With hook files, both the engine's hook and the device's are called.
				container := container{runtime: runtime, image: annotatedImage(t, nil), hooks: c.hooks,
					flags: slices.Concat(c.flags, wholeStore)}
				stdout, stderr, err := container.run("/bin/busybox", "ls", "-A", storeDir)
				got := strings.Fields(stdout)
				slices.Sort(got)
				if c.want != nil && (err != nil || !slices.Equal(got, c.want)) {
					t.Errorf("%v %q, want %q\n%s", err, got, c.want, stderr)
				}
				if said := lastError(t); c.want == nil && (err == nil || stdout != "" ||
					!strings.Contains(said, c.refused)) {
					t.Errorf("%v %q %s\n%s", err, got, stderr, said)
				}
				sweepRefused(t, c.want == nil)
				nothingLeft(t)
			})
		}
	}
}

// sweepRefused sweeps what crun leaves where one hook attached the view and another refused
// the container: it calls no poststop hook then.
func sweepRefused(t *testing.T, refused bool) {
	t.Helper()
	if refused {
		mustOperator(t, "gc", "--unused-for", "0s")
	}
}

// The configuration's rules are for what a container asks for. The closure of a device was
// chosen by who wrote the file; what the container mounts besides was not.
func TestDevicePolicy(t *testing.T) {
	writeDevices(t, map[string]annotations{
		"env": roots(store["env"]), "info": {"nix-closure/closure-info": store["closureInfo"]},
	})
	writeConfig(t, "[[allow]]\nroots = [\"/nix/store/*-nothing\"]\n")
	env, foreign := store["env"], store["foreign"]
	for _, c := range []struct {
		name    string
		flags   []string
		refused string
	}{
		{"device", []string{"--device", "nix-closure/closure=env"}, ""},
		{"device with a closure-info", []string{"--device", "nix-closure/closure=info"}, ""},
		{"device and the same annotation", append(flags(roots(env)), "--device", "nix-closure/closure=env"), env},
		{"annotation", flags(roots(env)), env},
		{"device and mount", []string{"--device", "nix-closure/closure=env", "-v", foreign + ":" + foreign}, foreign},
		{"device with a closure-info and mount", []string{"--device", "nix-closure/closure=info",
			"-v", foreign + ":" + foreign}, foreign},
		{"device and mount elsewhere", []string{"--device", "nix-closure/closure=env", "-v", foreign + ":/data"},
			foreign},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, runtime := range runtimes {
				container := container{runtime: runtime, image: annotatedImage(t, nil), flags: c.flags}
				stdout, stderr, err := container.run("/bin/busybox", "ls", "-A", storeDir)
				if c.refused == "" {
					if err != nil || len(strings.Fields(stdout)) != len(closureOf(t, env)) {
						t.Errorf("%s: %v %q %s", runtime, err, stdout, stderr)
					}
				} else if said := lastError(t); err == nil || stdout != "" ||
					!strings.Contains(said, c.refused+" is not allowed here") {
					t.Errorf("%s: %v %q %s %s", runtime, err, stdout, stderr, said)
				}
				sweepRefused(t, c.refused != "")
				nothingLeft(t)
			}
		})
	}
}

// An ordinary user has devices of their own, for the engines that read them there. Nix's
// daemon makes the GC roots.
func TestCDIRootless(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	program := testhost.Dir() + "/local/bin/nix-closure"
	root := addStorePath(t, "of-alice")
	file := alice.home + "/cdi/closures.yaml"
	alice.must(t, program, "cdi", "generate", "--output", file, "mine="+root)
	if text := string(read(t, file)); !strings.Contains(text, "name: mine") || !strings.Contains(text, root) {
		t.Errorf("%s", text)
	}
	listed := alice.must(t, program, "cdi", "list", "--file", file, "--json")
	if !strings.Contains(listed, `"state":"ok"`) {
		t.Errorf("%s", listed)
	}
	if _, _, err := call("nix-store", "--delete", root); err == nil {
		t.Error("it was deleted")
	}
	if _, stderr, err := alice.call(program, "cdi", "generate", "mine="+root); err == nil ||
		!strings.Contains(stderr, "permission denied") {
		t.Errorf("in root's directory: %v %s", err, stderr)
	}
	alice.must(t, program, "cdi", "remove", "--file", file, "mine")
	must(t, "nix-store", "--delete", root)
	_, stderr, err := alice.call(program, "cdi", "generate", "--output", file, "mine="+root)
	if status(err) != 3 || !strings.Contains(stderr, "is not valid") {
		t.Errorf("%v %s", err, stderr)
	}
	left, err := filepath.Glob(alice.home + "/.local/state/nix-closure/*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q %v", left, err)
	}
}

// podman kube play of 4.3.1 knows no devices: it ignores what would ask for one.
func TestKubePlayKnowsNoDevices(t *testing.T) {
	makePods(t)
	writeDevices(t, map[string]annotations{"env": roots(store["env"])})
	text := strings.Replace(podYAML(annotations{"cdi.k8s.io/nix-closure": "nix-closure/closure=env"},
		"/bin/busybox", "sleep", `"600"`), bareImage, annotatedImage(t, nil), 1) +
		`    resources: {limits: {nix-closure/closure: 1, nix-closure/closure=env: 1}}
    volumeMounts: [{name: store, mountPath: /nix/store, readOnly: true}]
  volumes: [{name: store, hostPath: {path: /nix/store}}]
`
	if stderr, err := playFile(t, "runc", text); err != nil {
		t.Fatal(stderr)
	}
	names := execute(t, "played-web", "/bin/busybox", "ls", storeDir)
	if !strings.Contains(names, filepath.Base(store["foreign"])) {
		t.Errorf("this podman knows devices: %q; say so in docs/engines.md", names)
	}
}
