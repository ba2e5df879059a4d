// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	class "k8s.io/api/node/v1"
	"sigs.k8s.io/yaml"
)

const chart = examples + "/kubernetes/chart"

// distributions are the overlays, and the drop-in directories of their containerd.
var distributions = map[string]string{
	"k3s":  "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d",
	"rke2": "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d",
	"k0s":  "/etc/k0s/containerd.d",
}

// charts returns what Helm or kustomize makes of a directory.
func charts(t *testing.T, args ...string) string {
	t.Helper()
	text, err := exec.Command(filepath.Join(*bin, "stack/charts"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, text)
	}
	return string(text)
}

// byName are the objects of manifests.
func byName(t *testing.T, text string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, o := range objects(t, text) {
		name := reflect.ValueOf(o).Elem().FieldByName("Name").String()
		all[fmt.Sprintf("%T %s", o, name)] = o
	}
	return all
}

// valid fails if an API server would refuse one of the manifests, or warn.
func valid(t *testing.T, text string) {
	t.Helper()
	file := t.TempDir() + "/manifests.yaml"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(*bin, "stack/manifests"), file).CombinedOutput(); err != nil ||
		len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// The plain manifests are those of the chart, byte for byte, and kustomize takes all of
// them.
func TestExampleBase(t *testing.T) {
	const component = "components/device-plugin"
	dir := t.TempDir()
	for _, in := range []string{"base", component} {
		if err := os.MkdirAll(filepath.Join(dir, in), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	charts(t, "write", chart, dir)
	for in, want := range map[string][]string{"base": {"namespace.yaml"}, component: nil} {
		written, err := os.ReadDir(filepath.Join(dir, in))
		if err != nil || len(written) == 0 {
			t.Fatal(written, err)
		}
		for _, e := range written {
			name := filepath.Join(in, e.Name())
			if want = append(want, e.Name()); readFile(t, filepath.Join(dir, name)) != example(t, "kubernetes/"+name) {
				t.Errorf("%s is not what the chart has; run make manifests", name)
			}
		}
		var kustomization struct{ Resources []string }
		text := example(t, "kubernetes/"+in+"/kustomization.yaml")
		if err := yaml.Unmarshal([]byte(text), &kustomization); err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		slices.Sort(kustomization.Resources)
		if !slices.Equal(kustomization.Resources, want) {
			t.Errorf("%s has %q, want %q", in, kustomization.Resources, want)
		}
	}
}

// The chart with a distribution is the distribution's overlay, but for the namespace, which
// helm install does not make.
func TestExampleOverlays(t *testing.T) {
	overlays, err := os.ReadDir(examples + "/kubernetes/overlays")
	if err != nil || len(overlays) != len(distributions) {
		t.Fatal(overlays, err)
	}
	plain := byName(t, charts(t, "kustomize", examples+"/kubernetes/base"))
	seen := []map[string]any{plain}
	for name, directory := range distributions {
		text := charts(t, "kustomize", examples+"/kubernetes/overlays/"+name)
		valid(t, text)
		overlay := byName(t, text)
		rendered := byName(t, charts(t, "template", chart, "distribution="+name))
		namespace := "*v1.Namespace nix-closure"
		rendered[namespace] = plain[namespace]
		if !reflect.DeepEqual(overlay, rendered) {
			t.Errorf("%s: the overlay and the chart differ:\n%s", name, text)
		}
		for _, other := range seen {
			if reflect.DeepEqual(overlay, other) {
				t.Errorf("%s: the overlay is another's", name)
			}
		}
		seen = append(seen, overlay)

		// The same with the device plugin.
		component := map[bool]string{true: "device-plugin-k0s", false: "device-plugin"}[name == "k0s"]
		withPlugin := byName(t, charts(t, "kustomize", ownOverlay(t, name, component)))
		rendered = byName(t, charts(t, "template", chart, "distribution="+name, "devicePlugin.enabled=true"))
		rendered[namespace] = plain[namespace]
		if len(withPlugin) != len(overlay)+3 || !reflect.DeepEqual(withPlugin, rendered) {
			t.Errorf("%s: the component and the chart differ: %v", name, slices.Collect(maps.Keys(withPlugin)))
		}
		volumes := overlay["*v1.DaemonSet nix-closure"].(*apps.DaemonSet).Spec.Template.Spec.Volumes
		if !slices.ContainsFunc(volumes,
			func(v core.Volume) bool { return v.HostPath != nil && v.HostPath.Path == directory }) {
			t.Errorf("%s: no volume %s: %v", name, directory, volumes)
		}
	}
}

// ownOverlay makes an overlay of an overlay and a component, as somebody may have one.
func ownOverlay(t *testing.T, overlay, component string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(examples+"/kubernetes")); err != nil {
		t.Fatal(err)
	}
	own := dir + "/own"
	text := fmt.Sprintf("resources: [../overlays/%s]\ncomponents: [../components/%s]\n", overlay, component)
	err := errors.Join(os.Mkdir(own, 0o755), os.WriteFile(own+"/kustomization.yaml", []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// variants are values with which somebody may install the chart.
var variants = [][]string{
	nil,
	{"distribution=k3s"},
	{"distribution=rke2", "containerd.systemdCgroup=false"},
	{"distribution=k0s", "plugin.enabled=false"},
	{"containerd.dropInDir=/etc/containerd/conf.d"},
	{"plugin.enabled=false"},
	{"plugin.readAllDirectories=true", "plugin.seLinuxType=spc_t", "plugin.port=9441",
		"plugin.socket=/run/other/nri.sock"},
	{"image.digest=sha256:" + strings.Repeat("0", 64), "image.pullPolicy=Always", "imagePullSecrets[0].name=registry"},
	{"policy.allowNoRuntimeClass=true", "policy.runtimeClasses={nix-closure,runc,gvisor}"},
	{"nodeSelector.example\\.org/nix-store=null", "nodeSelector.example\\.org/has-nix=yes"},
	{"devicePlugin.enabled=true"},
	{"devicePlugin.enabled=true", "distribution=k0s", "plugin.enabled=false"},
	{"devicePlugin.enabled=true", "kubelet.rootDir=/srv/kubelet", "devicePlugin.user=1234"},
}

// Helm has nothing to say of the chart, and an API server takes each of its manifests,
// whatever the values.
func TestExampleChart(t *testing.T) {
	for _, values := range variants {
		charts(t, append([]string{"lint", chart}, values...)...)
		text := charts(t, append([]string{"template", chart}, values...)...)
		valid(t, text)
		want := 4
		if slices.Contains(values, "devicePlugin.enabled=true") {
			want += 3 // with a policy and its binding
		}
		if n := len(objects(t, text)); n != want {
			t.Errorf("%q: %d objects", values, n)
		}
	}
	for _, values := range [][]string{{"policy.enabled=false"}, {"runtimeClass.enabled=false"}} {
		all := byName(t, charts(t, append([]string{"template", chart}, values...)...))
		hasPolicy := all["*v1.ValidatingAdmissionPolicy nix-closure"] != nil ||
			all["*v1.ValidatingAdmissionPolicyBinding nix-closure"] != nil
		if hasClass := all["*v1.RuntimeClass nix-closure"] != nil; hasPolicy == hasClass {
			t.Errorf("%q: %v", values, all)
		}
	}
	// A node selector is for the RuntimeClass too.
	all := charts(t, "template", chart, `nodeSelector.example\.org/nix-store=null`,
		`nodeSelector.example\.org/has-nix=yes`)
	got := only[*class.RuntimeClass](t, all).Scheduling.NodeSelector
	want := only[*apps.DaemonSet](t, all).Spec.Template.Spec.NodeSelector
	if !maps.Equal(got, want) || !maps.Equal(got, map[string]string{"example.org/has-nix": "yes"}) {
		t.Errorf("pods go to %v, and the programs to %v", got, want)
	}

	// What the values' schema does not know is an error, whoever asks.
	for value, said := range map[string]string{
		"distribution=k9s":                         "at '/distribution': value must be one of",
		"distributon=k3s":                          "additional properties 'distributon' not allowed",
		"plugin.prot=1":                            "additional properties 'prot' not allowed",
		"plugin.port=0":                            "at '/plugin/port': minimum",
		"plugin.socket=nri.sock":                   "at '/plugin/socket': 'nri.sock' does not match pattern",
		"plugin.socket=/a/../b":                    "at '/plugin/socket': '/a/../b' does not match pattern",
		`plugin.socket=/a"\,"--hook"\,"/b`:         "at '/plugin/socket': ",
		"containerd.dropInDir=conf.d":              "at '/containerd/dropInDir': ",
		"containerd.dropInDir=/":                   "at '/containerd/dropInDir': ",
		"containerd.systemdCgroup=maybe":           "at '/containerd/systemdCgroup': ",
		"image.digest=sha256:0":                    "at '/image/digest': ",
		"image.tag=a b":                            "at '/image/tag': ",
		`nodeSelector.example\.org/nix-store=null`: "at '/nodeSelector': minProperties",
		"policy.runtimeClasses={}":                 "at '/policy/runtimeClasses/0': ",
		"policy.runtimeClasses={a']}":              "at '/policy/runtimeClasses/0': ",
		"policy.enabled=no":                        "at '/policy/enabled': got string, want boolean",
		"devicePlugin.user=0":                      "at '/devicePlugin/user': minimum",
		"kubelet.rootDir=var":                      "at '/kubelet/rootDir': ",
		"global.image=other":                       "additional properties 'global' not allowed",
	} {
		for _, command := range []string{"lint", "template"} {
			out, err := exec.Command(filepath.Join(*bin, "stack/charts"), command, chart, value).CombinedOutput()
			if err == nil || !strings.Contains(string(out), said) {
				t.Errorf("%s %s: %v %s\nwant %s", command, value, err, out, said)
			}
		}
	}
	// The control: Helm reads the templates.
	broken := t.TempDir()
	if err := os.CopyFS(broken, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	file := broken + "/templates/runtimeclass.yaml"
	text := strings.Replace(readFile(t, file), "handler: nix", "handler nix", 1)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(*bin, "stack/charts"), "lint", broken).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "templates/runtimeclass.yaml") {
		t.Errorf("Helm takes a broken template: %v %s", err, out)
	}
}

// The pods of the chart have the privileges that docs/engines.md names, and no others.
func TestExampleChartPrivileges(t *testing.T) {
	for _, values := range variants {
		text := charts(t, append([]string{"template", chart}, values...)...)
		for name, o := range byName(t, text) {
			set, ok := o.(*apps.DaemonSet)
			if !ok {
				continue
			}
			for _, problem := range privileges(set, values) {
				t.Errorf("%q: %s: %s", values, name, problem)
			}
		}
	}
	// The control.
	set := only[*apps.DaemonSet](t, example(t, "kubernetes/base/daemonset.yaml"))
	yes := true
	for _, change := range []func(*core.PodSpec){
		func(p *core.PodSpec) { p.HostIPC = true },
		func(p *core.PodSpec) { p.AutomountServiceAccountToken = &yes },
		func(p *core.PodSpec) { p.Volumes[0].HostPath.Path = "/" },
		func(p *core.PodSpec) { p.Containers[0].SecurityContext.Privileged = &yes },
		func(p *core.PodSpec) { p.Containers[0].SecurityContext.ReadOnlyRootFilesystem = nil },
		func(p *core.PodSpec) { p.InitContainers[0].SecurityContext.Capabilities.Drop = nil },
		func(p *core.PodSpec) { p.Containers[0].VolumeMounts[0].ReadOnly = false },
		func(p *core.PodSpec) {
			c := p.Containers[0].SecurityContext.Capabilities
			c.Add = append(c.Add, "DAC_READ_SEARCH")
		},
	} {
		changed := set.DeepCopy()
		change(&changed.Spec.Template.Spec)
		if len(privileges(changed, nil)) == 0 {
			t.Errorf("nothing is wrong with %+v", changed.Spec.Template.Spec)
		}
	}
}

// privileges returns what a DaemonSet may not have, with these values.
func privileges(set *apps.DaemonSet, values []string) (problems []string) {
	says := func(value string) bool { return slices.Contains(values, value) }
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	pod := set.Spec.Template.Spec
	hasPlugin := set.Name == "nix-closure" && !says("plugin.enabled=false")
	if pod.HostPID != hasPlugin || pod.HostNetwork != hasPlugin || pod.HostIPC {
		complain("namespaces of the host: %v %v %v", pod.HostPID, pod.HostNetwork, pod.HostIPC)
	}
	if t := pod.AutomountServiceAccountToken; t == nil || *t {
		complain("it has a token")
	}
	// Directories of the host, and whether a container that stays may write there.
	directories := map[string]bool{copiedTo: false, "/etc/containerd/conf.d": false}
	for _, dir := range distributions {
		directories[dir] = false
	}
	if set.Name == "nix-closure-device-plugin" {
		directories = map[string]bool{"/etc/cdi": false, "/etc/nix-closure": false, "/nix/var/nix/db": false}
		for _, dir := range []string{"/var/lib/kubelet", "/var/lib/k0s/kubelet", "/srv/kubelet"} {
			directories[dir+"/plugins_registry/nix-closure"] = true
		}
	}
	writable := map[string]bool{}
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			complain("volume %s", v.String())
			continue
		}
		may, known := directories[v.HostPath.Path]
		if writable[v.Name] = may; !known {
			complain("volume %s", v.String())
		}
	}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if !m.ReadOnly && !writable[m.Name] {
				complain("%s may write to %s", c.Name, m.Name)
			}
		}
		if root := c.SecurityContext.RunAsUser; !hasPlugin && (root == nil || *root == 0) {
			complain("%s is root", c.Name)
		}
	}
	may := map[string][]core.Capability{}
	if hasPlugin {
		may["plugin"] = []core.Capability{"SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"}
	}
	if says("plugin.readAllDirectories=true") {
		may["plugin"] = append(may["plugin"], "DAC_READ_SEARCH")
	}
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		no := func(b *bool) bool { return b != nil && !*b }
		s := c.SecurityContext
		switch {
		case s == nil || s.Capabilities == nil || s.SeccompProfile == nil || s.ReadOnlyRootFilesystem == nil:
			complain("%s: no security context", c.Name)
		case s.Privileged != nil && *s.Privileged, !no(s.AllowPrivilegeEscalation), !*s.ReadOnlyRootFilesystem,
			s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault,
			!slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}),
			!slices.Equal(s.Capabilities.Add, may[c.Name]):
			complain("%s: %s", c.Name, s.String())
		}
	}
	return problems
}

// The handler that the DaemonSet writes is the example's, with the programs where the
// DaemonSet has them.
func TestExampleHandler(t *testing.T) {
	handler := func(text string) (config map[string]any) {
		t.Helper()
		if err := toml.Unmarshal([]byte(text), &config); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return config
	}
	for _, values := range [][]string{
		{"distribution=k3s", "true"}, {"distribution=rke2", "true"}, {"distribution=k0s", "false"},
		{"distribution=k3s", "containerd.systemdCgroup=false", "false"},
		{"distribution=k0s", "containerd.systemdCgroup=true", "true"},
		{"containerd.dropInDir=/etc/containerd/conf.d", "true"},
	} {
		cgroup := values[len(values)-1]
		values = values[:len(values)-1]
		set := only[*apps.DaemonSet](t, charts(t, append([]string{"template", chart}, values...)...))
		env := map[string]string{}
		for _, v := range set.Spec.Template.Spec.InitContainers[1].Env {
			// As a kubelet does it: what comes earlier may be named.
			env[v.Name] = strings.ReplaceAll(v.Value, "$(SYSTEMD_CGROUP)", env["SYSTEMD_CGROUP"])
		}
		want := strings.ReplaceAll(example(t, "containerd/nix-closure-runtime.toml"), installedIn, copiedTo)
		want = regexp.MustCompile(`SystemdCgroup = .*`).ReplaceAllString(want, "SystemdCgroup = "+cgroup)
		if got := handler(env["HANDLER"]); !reflect.DeepEqual(got, handler(want)) {
			t.Errorf("%q: %v\nwant %s", values, got, want)
		}
	}
}

// The policy lets pods pass that name no RuntimeClass, or others, if the values say so.
func TestExampleChartPolicy(t *testing.T) {
	pod := func(runtimeClass string) *core.Pod {
		p := &core.Pod{Spec: core.PodSpec{Containers: []core.Container{{Name: "web", Image: "image"}}}}
		p.APIVersion, p.Kind, p.Name = "v1", "Pod", "pod"
		p.Annotations = roots("env")
		if runtimeClass != "" {
			p.Spec.RuntimeClassName = &runtimeClass
		}
		return p
	}
	pods := []*core.Pod{pod(""), pod("nix-closure"), pod("gvisor"), pod("kata")}
	for _, c := range []struct {
		values []string
		want   string // of each pod: + is allowed
	}{
		{nil, "-+--"},
		{[]string{"policy.allowNoRuntimeClass=true"}, "++--"},
		{[]string{"policy.runtimeClasses={nix-closure,gvisor}"}, "-++-"},
		{[]string{"policy.allowNoRuntimeClass=true", "policy.runtimeClasses={gvisor}"}, "+-+-"},
	} {
		text := charts(t, append([]string{"template", chart}, c.values...)...)
		if p := only[*admission.ValidatingAdmissionPolicy](t, text); *p.Spec.FailurePolicy != admission.Fail {
			t.Errorf("%q: %v", c.values, *p.Spec.FailurePolicy)
		}
		var policy strings.Builder
		for document := range strings.SplitSeq(text, "---\n") {
			if strings.Contains(document, "kind: ValidatingAdmissionPolicy") {
				policy.WriteString("---\n" + document)
			}
		}
		file := t.TempDir() + "/policy.yaml"
		if err := os.WriteFile(file, []byte(policy.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, said := range askPolicyOf(t, file, pods) {
			got += map[bool]string{true: "+", false: "-"}[said == "allowed"]
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.values, got, c.want)
		}
	}
}
