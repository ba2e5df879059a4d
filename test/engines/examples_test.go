// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	class "k8s.io/api/node/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/nix-closure/nix-closure/test/testhost"
)

const (
	examples = "../../examples"
	// installedIn is where make install puts the programs, and copiedTo where the
	// DaemonSet does.
	installedIn, copiedTo = "/usr/local/bin", "/opt/nix-closure/bin"
	exampleImage          = "example.org/nix-closure:0.1.0"
)

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func example(t *testing.T, name string) string {
	t.Helper()
	return readFile(t, filepath.Join(examples, name))
}

// objects decodes the objects of a YAML file, each as what it says that it is; an
// unknown field is an error.
func objects(t *testing.T, text string) (all []any) {
	t.Helper()
	for _, text := range strings.Split(text, "\n---\n") {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		o := map[string]any{
			"v1 Namespace":                &core.Namespace{},
			"v1 Pod":                      &core.Pod{},
			"apps/v1 DaemonSet":           &apps.DaemonSet{},
			"node.k8s.io/v1 RuntimeClass": &class.RuntimeClass{},
			"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy": &admission.ValidatingAdmissionPolicy{},
			"admissionregistration.k8s.io/v1 " +
				"ValidatingAdmissionPolicyBinding": &admission.ValidatingAdmissionPolicyBinding{},
		}[kind.APIVersion+" "+kind.Kind]
		if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
			t.Fatalf("%s %s: %v", kind.APIVersion, kind.Kind, err)
		}
		all = append(all, o)
	}
	return all
}

// only returns the object of a type that a YAML file has.
func only[T any](t *testing.T, text string) T {
	t.Helper()
	for _, o := range objects(t, text) {
		if o, ok := o.(T); ok {
			return o
		}
	}
	t.Fatalf("no %T in\n%s", *new(T), text)
	return *new(T)
}

// manifestFiles are the examples' plain manifests.
func manifestFiles(t *testing.T) []string {
	t.Helper()
	pods, err := filepath.Glob(examples + "/kubernetes/*.yaml")
	base, err2 := filepath.Glob(examples + "/kubernetes/base/*.yaml")
	if err := errors.Join(err, err2); err != nil || len(pods) == 0 || len(base) == 0 {
		t.Fatal(pods, base, err)
	}
	return slices.DeleteFunc(append(pods, base...), func(f string) bool {
		return filepath.Base(f) == "kustomization.yaml"
	})
}

// Every manifest is what the API server takes.
func TestExampleManifests(t *testing.T) {
	count := map[string]int{}
	for _, f := range manifestFiles(t) {
		for _, o := range objects(t, readFile(t, f)) {
			count[fmt.Sprintf("%T", o)]++
		}
	}
	want := map[string]int{"*v1.Namespace": 1, "*v1.DaemonSet": 1, "*v1.RuntimeClass": 1, "*v1.Pod": 4,
		"*v1.ValidatingAdmissionPolicy": 1, "*v1.ValidatingAdmissionPolicyBinding": 1}
	for kind := range want {
		if count[kind] != want[kind] {
			t.Errorf("%d of %s, want %d", count[kind], kind, want[kind])
		}
	}
	handler := only[*class.RuntimeClass](t, example(t, "kubernetes/base/runtimeclass.yaml"))
	labels := only[*apps.DaemonSet](t, example(t, "kubernetes/base/daemonset.yaml")).Spec.Template.Spec.NodeSelector
	if got := handler.Scheduling.NodeSelector; fmt.Sprint(got) != fmt.Sprint(labels) || len(got) == 0 {
		t.Errorf("pods go to %v, and the programs to %v", got, labels)
	}

	// What the pods ask for is understood: by name, and by the patterns with which
	// containerd passes annotations on.
	var config struct {
		Plugins map[string]struct {
			Containerd struct {
				Runtimes map[string]struct {
					PodAnnotations       []string `toml:"pod_annotations"`
					ContainerAnnotations []string `toml:"container_annotations"`
				}
			}
		}
	}
	if err := toml.Unmarshal([]byte(example(t, "containerd/nix-closure-runtime.toml")), &config); err != nil {
		t.Fatal(err)
	}
	handlerOptions, ok := config.Plugins["io.containerd.cri.v1.runtime"].Containerd.Runtimes[handler.Handler]
	if !ok {
		t.Fatalf("containerd has no handler %q: %+v", handler.Handler, config)
	}
	for _, f := range []string{"pod", "pod-userns", "canary"} {
		pod := only[*core.Pod](t, example(t, "kubernetes/"+f+".yaml"))
		if *pod.Spec.RuntimeClassName != handler.Name {
			t.Errorf("%s: its RuntimeClass is %s", f, *pod.Spec.RuntimeClassName)
		}
		for key := range pod.Annotations {
			for _, patterns := range [][]string{handlerOptions.PodAnnotations, handlerOptions.ContainerAnnotations} {
				if !slices.ContainsFunc(patterns,
					func(p string) bool { ok, err := path.Match(p, key); return ok && err == nil }) {
					t.Errorf("%s: %q does not pass %s on", f, patterns, key)
				}
			}
		}
		for _, c := range pod.Spec.Containers {
			annotations := map[string]string{"io.kubernetes.cri.container-type": "container",
				"io.kubernetes.cri.container-name": c.Name}
			for key, value := range pod.Annotations {
				annotations[key] = value
			}
			state, err := json.Marshal(map[string]any{"annotations": annotations,
				"root": map[string]string{"path": "rootfs"}})
			if err != nil {
				t.Fatal(err)
			}
			hook := exec.Command(filepath.Join(*bin, "nix-closure-hook"), "--engine", "containerd", "precreate")
			hook.Stdin = bytes.NewReader(state)
			out, err := hook.CombinedOutput()
			if accepted := err == nil; accepted == (f == "canary") {
				t.Errorf("%s, container %s: %v %s", f, c.Name, err, out)
			}
		}
	}
	if *only[*core.Pod](t, example(t, "kubernetes/pod-userns.yaml")).Spec.HostUsers {
		t.Error("the pod for a user namespace has none")
	}
}

// Every JSON file is what its reader takes, and CRI-O's hooks are podman's, but for
// the stage that CRI-O does not know.
func TestExampleJSON(t *testing.T) {
	var daemon struct {
		Runtimes map[string]struct {
			Path string `json:"path"`
		} `json:"runtimes"`
		DefaultRuntime string `json:"default-runtime"`
	}
	d := json.NewDecoder(strings.NewReader(example(t, "docker/daemon.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&daemon); err != nil ||
		daemon.Runtimes[daemon.DefaultRuntime].Path != installedIn+"/nix-closure-runtime" {
		t.Errorf("daemon.json: %v %+v", err, daemon)
	}

	stages := map[string][]string{}
	for _, dir := range []string{"podman", "podman/precreate", "cri-o/hooks.d"} {
		entries, err := os.ReadDir(filepath.Join(examples, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			text := example(t, dir+"/"+e.Name())
			if dir == "cri-o/hooks.d" &&
				strings.Replace(text, `"cri-o"`, `"podman"`, 1) != example(t, "podman/"+e.Name()) {
				t.Errorf("%s is another for CRI-O than for podman", e.Name())
			}
			var hook struct {
				Version string
				Hook    struct {
					Path      string
					Args, Env []string
				}
				When   struct{ Annotations map[string]string }
				Stages []string
			}
			d := json.NewDecoder(strings.NewReader(text))
			d.DisallowUnknownFields()
			if err := d.Decode(&hook); err != nil || hook.Version != "1.0.0" {
				t.Errorf("%s: %v %+v", e.Name(), err, hook)
			}
			stages[dir] = append(stages[dir], hook.Stages...)
			for key, value := range hook.When.Annotations {
				for _, pattern := range []string{key, value} {
					if _, err := regexp.Compile(pattern); err != nil || !strings.HasPrefix(pattern, "^") ||
						!strings.HasSuffix(pattern, "$") {
						t.Errorf("%s: %q is not anchored: %v", e.Name(), pattern, err)
					}
				}
			}
		}
	}
	const want = "map[cri-o/hooks.d:[createRuntime poststop] podman:[createRuntime poststop] " +
		"podman/precreate:[precreate]]"
	if got := fmt.Sprint(stages); got != want {
		t.Errorf("the hooks are for %s", got)
	}

	var crio struct {
		Crio struct {
			Runtime struct {
				HooksDir []string `toml:"hooks_dir"`
				Runtimes map[string]struct {
					Type string `toml:"runtime_type"`
					Path string `toml:"runtime_path"`
				} `toml:"runtimes"`
			} `toml:"runtime"`
		} `toml:"crio"`
	}
	if err := toml.NewDecoder(strings.NewReader(example(t,
		"cri-o/10-nix-closure.conf"))).DisallowUnknownFields().Decode(&crio); err != nil ||
		crio.Crio.Runtime.Runtimes["nix-closure"].Path != installedIn+"/nix-closure-runtime" ||
		len(crio.Crio.Runtime.HooksDir) != 1 {
		t.Errorf("CRI-O's configuration: %v %+v", err, crio)
	}
}

// containerd takes the files beside a configuration of an earlier version, and what
// is there already stays.
func TestExampleContainerd(t *testing.T) {
	fragments, err := filepath.Abs(examples + "/containerd")
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []int{2, 3, 4} {
		runtime, nri := "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"
		if version == 2 {
			runtime = "io.containerd.grpc.v1.cri"
		}
		config := t.TempDir() + "/config.toml"
		text := fmt.Sprintf(`version = %d
imports = ["%s/*.toml"]
[plugins.'%s'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins.'%s'.containerd.runtimes.runc.options]
    BinaryName = "/usr/sbin/runc"
[plugins.'%s']
  socket_path = "/run/elsewhere.sock"
`, version, fragments, runtime, runtime, nri)
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		dump := exec.Command(filepath.Join(*bin, "stack/containerd"), "--config", config, "config", "dump")
		dump.Stderr = &said
		out, err := dump.Output()
		if err != nil || strings.Contains(said.String(), "level=error") ||
			strings.Contains(strings.ToLower(said.String()), "unknown") {
			t.Fatalf("version %d: %v %s", version, err, said.String())
		}
		var got struct{ Plugins map[string]map[string]any }
		if err := toml.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			plugin, path string
			want         any
		}{
			{"io.containerd.cri.v1.runtime", "containerd default_runtime_name", "nix-closure"},
			{"io.containerd.cri.v1.runtime", "containerd runtimes runc options BinaryName", "/usr/sbin/runc"},
			{"io.containerd.cri.v1.runtime", "containerd runtimes nix-closure runtime_type", "io.containerd.runc.v2"},
			{"io.containerd.cri.v1.runtime", "containerd runtimes nix-closure options BinaryName",
				installedIn + "/nix-closure-runtime"},
			{"io.containerd.cri.v1.runtime", "containerd runtimes nix-closure options SystemdCgroup", true},
			{"io.containerd.cri.v1.runtime", "containerd runtimes nix-closure pod_annotations",
				[]any{"nix-closure/*", "*.nix-closure/*"}},
			{"io.containerd.cri.v1.runtime", "containerd runtimes nix-closure container_annotations",
				[]any{"nix-closure/*", "*.nix-closure/*"}},
			{nri, "socket_path", "/run/elsewhere.sock"},
			{nri, "default_validator enable", true},
			{nri, "default_validator required_plugins", []any{"nix-closure"}},
			{nri, "default_validator tolerate_missing_plugins_annotation", "tolerate-missing-plugins.noderesource.dev"},
		} {
			var value any = got.Plugins[c.plugin]
			for _, key := range strings.Fields(c.path) {
				table, _ := value.(map[string]any)
				value = table[key]
			}
			if fmt.Sprint(value) != fmt.Sprint(c.want) {
				t.Errorf("version %d: %s is %v, want %v", version, c.path, value, c.want)
			}
		}
	}
}

// Programs that the examples name are those that make install installs, and of a
// container image, all of them.
func TestExamplePaths(t *testing.T) {
	dir := t.TempDir()
	// What it installs has been built.
	install := exec.Command("make", "-C", "../..", "--old-file=build", "install", "DESTDIR="+dir)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	entries, err := os.ReadDir(dir + installedIn)
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	for _, e := range entries {
		programs = append(programs, e.Name())
	}
	named := 0
	err = filepath.WalkDir(examples, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		for _, m := range regexp.MustCompile(`(/[a-z/-]*/bin)/(nix-closure[a-z-]*)`).FindAllStringSubmatch(string(text),
			-1) {
			named++
			if (m[1] != installedIn && m[1] != copiedTo) || !slices.Contains(programs, m[2]) {
				t.Errorf("%s names %s, and make install installs %q in %s", file, m[0], programs, installedIn)
			}
		}
		return err
	})
	if err != nil || named == 0 {
		t.Fatalf("%d are named: %v", named, err)
	}
	// The image has all that make cross builds, and so have the nodes.
	for name, line := range map[string]string{
		"Containerfile":       "\nCOPY nix-closure* /nix-closure/\n",
		"base/daemonset.yaml": " for program in nix-closure*; do\n",
	} {
		if !strings.Contains(example(t, "kubernetes/"+name), line) {
			t.Errorf("%s has no %q", name, line)
		}
	}
}

// The units are such that systemd takes, and leave programs in the host's mount
// namespace.
func TestExampleUnit(t *testing.T) {
	checkUnit(t, "nix-closure-nri.service", "nix-closure-nri ")
	checkUnit(t, "nix-closure-verify.service", "nix-closure verify ", "nix-closure-verify.timer")
}

// checkUnit checks a service that starts a program, and units that go with it.
func checkUnit(t *testing.T, name, program string, others ...string) {
	t.Helper()
	text := example(t, "systemd/"+name)
	settings := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == '[' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Errorf("%q is no setting", line)
		}
		settings[key] = value
	}
	// systemd.exec(5): what implies a mount namespace of the service's own.
	implies := regexp.MustCompile(`^(Private(Mounts|Tmp|Devices|IPC|PIDs|Users)|` +
		`Protect(System|Home|Proc|Kernel.*|Control.*|Hostname|Clock)|` +
		`ProcSubset|Mount.*|Root.*|DynamicUser|` +
		`((ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths)|Bind.*|TemporaryFileSystem|Extension.*|` +
		`(LoadC|SetC|ImportC)redential.*|(Runtime|State|Cache|Logs|Configuration)Directory.*)$`)
	for key := range settings {
		if implies.MatchString(key) {
			t.Errorf("%s: %s= gives the program mounts of its own", name, key)
		}
	}
	if !strings.HasPrefix(settings["ExecStart"], installedIn+"/"+program) {
		t.Errorf("it starts %s", settings["ExecStart"])
	}
	verifyUnits(t, append([]string{name}, others...)...)
}

// verifyUnits has systemd verify units.
func verifyUnits(t *testing.T, units ...string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatalf("%v: install systemd, or have test/install.sh do it", err)
	}
	// Of a program that there is.
	dir := t.TempDir()
	args := []string{"verify"}
	for _, unit := range units {
		text := strings.ReplaceAll(example(t, "systemd/"+unit), installedIn, *bin)
		args = append(args, dir+"/"+unit)
		if err := os.WriteFile(dir+"/"+unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v %s", err, out)
	}
}

// The plugin does its work with the capabilities that the unit leaves to it.
func TestExampleUnitCapabilities(t *testing.T) {
	kept := regexp.MustCompile(`(?m)^CapabilityBoundingSet=CAP_([A-Z_]+)$`).FindStringSubmatch(example(t,
		"systemd/nix-closure-nri.service"))
	if kept == nil {
		t.Fatal("the unit does not say which capability is left")
	}
	n := newNode(t, nodeOptions{})
	p := &plugin{http: freeAddress(t), log: t.TempDir() + "/log"}
	p.process = exec.Command("setpriv", "--bounding-set", "-all,+"+strings.ToLower(kept[1]), "--inh-caps", "-all",
		"--no-new-privs",
		filepath.Join(*bin, "nix-closure-nri"), "--socket", n.nriSocket(), "--http", p.http)
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.process.Stderr = log
	if err := p.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t, syscall.SIGTERM) })
	p.connected(t)
	// A directory that is closed to all but an ordinary user.
	home := filepath.Join(testhost.Dir(), "home")
	if err := os.MkdirAll(home+"/volume", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	pod := n.run(t, "", podConfig(t, roots("env")))
	id := pod.start(t, "a", &cri.Mount{ContainerPath: "/volume", HostPath: home + "/volume"})
	if got, want := n.sees(t, id), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q\n%s", got, want, readFile(t, p.log))
	}
}

// with starts containerd anew with files of the examples beside its configuration,
// for programs in a directory and for cgroups without systemd.
func (n *node) with(t *testing.T, programs string, files ...string) {
	t.Helper()
	n.stop(t)
	dir := t.TempDir()
	for _, f := range files {
		text := strings.NewReplacer(installedIn, programs, "SystemdCgroup = true",
			"SystemdCgroup = false").Replace(example(t, "containerd/"+f))
		if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(n.dir + "/config.toml")
	if err == nil {
		config = regexp.MustCompile(`(?m)^imports = .*$`).ReplaceAll(config,
			fmt.Appendf(nil, "imports = [%q]", dir+"/*.toml"))
		err = os.WriteFile(n.dir+"/config.toml", config, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.start(t)
}

// load gives the node an image out of an archive.
func (n *node) load(t *testing.T, archive, name string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := n.client.Import(namespaces.WithNamespace(t.Context(), "k8s.io"), f); err != nil {
		t.Fatal(err)
	}
	images := cri.NewImageServiceClient(n.connection)
	for range 100 {
		got, err := images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil && got.Image != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the CRI does not know %s\n%s", name, n.log())
}

// inNetwork calls f in the node's network namespace.
func (n *node) inNetwork(f func() error) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	its, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.process.Process.Pid))
	if err != nil {
		return err
	}
	defer its.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(its.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		return err // and the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// statusOf asks a kubelet on the node, which may just be starting, for a pod's
// status.
func (n *node) statusOf(t *testing.T, address, pod string) core.PodStatus {
	t.Helper()
	return podStatus(address, pod, func(context.Context, string, string) (c net.Conn, _ error) {
		return c, n.inNetwork(func() (err error) { c, err = net.Dial("tcp", address); return err })
	})
}

// podStatus asks a kubelet, which may just be starting, for a pod's status. dial connects
// to it; nil: as usual.
func podStatus(address, pod string, dial func(context.Context, string, string) (net.Conn, error)) (s core.PodStatus) {
	client := http.Client{Transport: &http.Transport{
		DialContext: dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	answer, err := client.Get("https://" + address + "/pods")
	if err != nil {
		return s
	}
	defer func() { _ = answer.Body.Close() }()
	var list core.PodList
	if err := json.NewDecoder(answer.Body).Decode(&list); err != nil {
		return s
	}
	for _, p := range list.Items {
		if p.Name == pod {
			s = p.Status
		}
	}
	return s
}

// until waits until a kubelet says of a pod what is wanted.
func (n *node) until(t *testing.T, address, pod string, is func(core.PodStatus) bool) {
	t.Helper()
	var last core.PodStatus
	for range 600 {
		if last = n.statusOf(t, address, pod); is(last) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := json.Marshal(last)
	t.Fatalf("pod %s is not as it is to be: %s\n%s", pod, text, n.log())
}

func ready(s core.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c core.PodCondition) bool {
		return c.Type == core.PodReady && c.Status == core.ConditionTrue
	})
}

// asStatic is a manifest for a kubelet without an API server, with images that
// the node has, on the node's network.
func asStatic(t *testing.T, pod core.Pod, image string) []byte {
	t.Helper()
	p := pod.DeepCopy()
	p.APIVersion, p.Kind = "v1", "Pod"
	p.Spec.NodeSelector, p.Spec.RuntimeClassName, p.Spec.HostNetwork = nil, nil, true
	grace := int64(0)
	p.Spec.TerminationGracePeriodSeconds = &grace
	for _, all := range [][]core.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range all {
			all[i].Image, all[i].ImagePullPolicy = image, core.PullNever
		}
	}
	text, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// buildExampleImage builds the image of the examples, and returns an archive of it.
func buildExampleImage(t *testing.T) string {
	t.Helper()
	programs := t.TempDir()
	for _, program := range []string{*bin + "/nix-closure", *bin + "/nix-closure-device-plugin",
		*bin + "/nix-closure-hook", *bin + "/nix-closure-nri", *bin + "/nix-closure-runtime", "/bin/busybox"} {
		text, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(filepath.Join(programs, filepath.Base(program)), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	archive := t.TempDir() + "/image.tar"
	for _, command := range [][]string{
		{"build", "-q", "-t", exampleImage, "-f", examples + "/kubernetes/Containerfile", programs},
		{"save", "-q", "-o", archive, exampleImage},
	} {
		if out, err := exec.Command("podman", command...).CombinedOutput(); err != nil {
			t.Fatalf("podman %q: %v %s", command, err, out)
		}
	}
	return archive
}

// The DaemonSet installs the programs and runs the plugin on a node that requires
// it, with the capabilities that it has there; the pods of the examples see their
// closures, and the canary does not start.
func TestExampleDaemonSet(t *testing.T) {
	// The DaemonSet installs on the host.
	if err := syscall.Mount("tmpfs", "/opt", "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount("/opt", syscall.MNT_DETACH) })
	archive := buildExampleImage(t)

	n := newNode(t, nodeOptions{})
	n.with(t, copiedTo, "nix-closure-nri.toml")
	n.load(t, archive, exampleImage)
	// The DaemonSet takes the engine's usual socket.
	if err := os.MkdirAll("/run/nri", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(n.nriSocket(), "/run/nri/nri.sock"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll("/run/nri") })
	// The kubelet looks for its node's address, and nobody in that network answers.
	hosts := readFile(t, "/etc/hosts")
	if err := os.WriteFile("/etc/hosts", []byte(hosts+"192.0.2.1 node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var kubelet *kubelet
	err := n.inNetwork(func() error {
		for _, command := range []string{"link set lo up", "link add node0 type bridge",
			"addr add 192.0.2.1/24 dev node0", "link set node0 up", "route add default dev node0"} {
			if out, err := exec.Command("/bin/busybox",
				append([]string{"ip"}, strings.Fields(command)...)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w %s", command, err, out)
			}
		}
		kubelet = n.startKubelet(t)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	manifests, address := kubelet.manifests, kubelet.address

	// With the handler: /etc is this machine's own, and k0s has cgroupfs as this kubelet does.
	set := only[*apps.DaemonSet](t, charts(t, "kustomize", examples+"/kubernetes/overlays/k0s"))
	template := core.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	template.Name, template.Namespace = set.Name, set.Namespace
	if err := os.WriteFile(manifests+"/set.yaml", asStatic(t, template, exampleImage), 0o644); err != nil {
		t.Fatal(err)
	}
	n.until(t, address, "nix-closure-node", ready)

	manifest := strings.NewReplacer(
		"/nix/store/sl141d1g77wvhr050ah87lcyz2czdxa3-nginx-1.26.2", store["tools"],
		"/nix/store/7q1b1bsmxi91zci6g8714rcljl620y7f-python3-3.12.7", store["env"],
		"/nix/store/gxr2g4ly8dvj1v4l9ykw8l3vlvk9b2hd-worker-env", store["bash"],
	).Replace(example(t, "kubernetes/pod.yaml"))
	two := only[*core.Pod](t, manifest)
	two.Namespace = "default"
	for i := range two.Spec.Containers {
		two.Spec.Containers[i].Command = []string{"/bin/busybox", "sleep", "1000000"}
	}
	canary := only[*core.Pod](t, example(t, "kubernetes/canary.yaml"))
	canary.Namespace = "default"
	for name, text := range map[string][]byte{"two": asStatic(t, *two, image),
		"canary": asStatic(t, *canary, exampleImage)} {
		if err := os.WriteFile(manifests+"/"+name+".yaml", text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.until(t, address, two.Name+"-node", ready)
	for name, attributes := range map[string][]string{"web": {"tools"}, "worker": {"env", "bash"}} {
		var want []string
		for _, a := range attributes {
			want = append(want, closureOf(t, store[a])...)
		}
		slices.Sort(want)
		got, err := n.runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.name": two.Name + "-node",
				"io.kubernetes.container.name": name},
		}})
		if err != nil || len(got.Containers) != 1 {
			t.Fatalf("%s: %v %v", name, got, err)
		}
		if got, want := n.sees(t, got.Containers[0].Id), slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", name, got, want)
		}
	}
	n.until(t, address, canary.Name+"-node", func(s core.PodStatus) bool {
		return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].State.Waiting != nil &&
			strings.Contains(s.ContainerStatuses[0].State.Waiting.Message,
				`annotation nix-closure/roots: "/nix/store/canary": `)
	})
	for _, f := range []string{"two", "canary", "set"} {
		if err := os.Remove(manifests + "/" + f + ".yaml"); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t)
	n.testHandler(t)
}

// testHandler tests the handler that the DaemonSet wrote where k0s' containerd reads it.
// The plugin is gone, so that the pod has its closure by the wrapper.
func (n *node) testHandler(t *testing.T) {
	t.Helper()
	const directory = "/etc/k0s/containerd.d"
	if got := readFile(t, directory+"/nix-closure.toml"); !strings.HasSuffix(got, "SystemdCgroup = false\n") {
		t.Errorf("the handler is\n%s", got)
	}
	if entries, err := os.ReadDir(directory); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
	ask := &cri.RunPodSandboxRequest{Config: podConfig(t, roots("env")), RuntimeHandler: "nix-closure"}
	if _, err := n.runtime.RunPodSandbox(t.Context(), ask); err == nil ||
		!strings.Contains(err.Error(), `no runtime for "nix-closure" is configured`) {
		t.Errorf("before containerd reads it: %v", err)
	}
	n.stop(t)
	config := regexp.MustCompile(`(?m)^imports = .*$`).ReplaceAllString(readFile(t, n.dir+"/config.toml"),
		fmt.Sprintf("imports = [%q]", directory+"/*.toml"))
	if err := os.WriteFile(n.dir+"/config.toml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	p := n.run(t, "nix-closure", podConfig(t, roots("env")))
	if got, want := n.sees(t, p.start(t, "a", wholeStore)), closureOf(t, store["env"]); !slices.Equal(got, want) {
		t.Errorf("by the handler: %q\nwant %q", got, want)
	}
	p.remove(t)
	nothingLeft(t)
}

// With the wrapper for every pod, one without a RuntimeClass has its closure too, or
// does not start.
func TestExampleDefaultRuntime(t *testing.T) {
	n := newNode(t, nodeOptions{})
	n.with(t, *bin, "nix-closure-runtime.toml", "nix-closure-default.toml")
	for _, handler := range []string{"", "nix-closure"} {
		p := n.run(t, handler, podConfig(t, roots("env")))
		if got, want := n.sees(t, p.start(t, "a", wholeStore)), closureOf(t, store["env"]); !slices.Equal(got, want) {
			t.Errorf("handler %q: %q\nwant %q", handler, got, want)
		}
		p.remove(t)
		canary := n.run(t, handler, podConfig(t, only[*core.Pod](t, example(t, "kubernetes/canary.yaml")).Annotations))
		id, err := canary.create(t.Context(), "canary")
		if err == nil {
			_, err = n.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
		}
		if err == nil || !strings.Contains(err.Error(), `annotation nix-closure/roots: "/nix/store/canary": `) {
			t.Errorf("handler %q: the canary: %v", handler, err)
		}
	}
}

// The wrapper and the plugin, as the documents recommend: each does where the other
// is not, or has not been told of the pod's annotations, and with both there is one
// view.
func TestWrapperAndPlugin(t *testing.T) {
	want := closureOf(t, store["env"])
	n := newNode(t, nodeOptions{})
	n.with(t, *bin, "nix-closure-runtime.toml", "nix-closure-default.toml")
	plugin := n.startPlugin(t)
	see := func(why string) {
		p := n.run(t, "", podConfig(t, roots("env")))
		id := p.start(t, "a", wholeStore)
		if got := n.sees(t, id); !slices.Equal(got, want) {
			t.Errorf("%s: %q\nwant %q", why, got, want)
		}
		if mounts := n.exec(t, id, "/bin/busybox", "grep", "-c", " "+storeDir+" ",
			"/proc/self/mountinfo"); strings.TrimSpace(mounts) != "1" {
			t.Errorf("%s: %s mounts on the store", why, mounts)
		}
		p.remove(t)
		nothingLeft(t)
	}
	see("both")
	plugin.end(t, syscall.SIGKILL)
	see("without the plugin")

	config := readFile(t, n.dir+"/config.toml")
	fragments := regexp.MustCompile(`(?m)^imports = \["(.*)/\*\.toml"\]$`).FindStringSubmatch(config)[1]
	forgotten := regexp.MustCompile(`(?m)^ *(pod|container)_annotations = .*$`).ReplaceAllString(readFile(t,
		fragments+"/nix-closure-runtime.toml"), "")
	if err := os.WriteFile(fragments+"/nix-closure-runtime.toml", []byte(forgotten), 0o644); err != nil {
		t.Fatal(err)
	}
	n.stop(t)
	n.start(t)
	n.startPlugin(t)
	see("without pod_annotations")
}
