// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Every manifest is valid, by the API server's own validation.
func TestExampleManifestsAreValid(t *testing.T) {
	validate := func(files ...string) (string, error) {
		out, err := exec.Command(filepath.Join(*bin, "stack/manifests"), files...).CombinedOutput()
		return string(out), err
	}
	if out, err := validate(manifestFiles(t)...); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}

	// And what is wrong is found.
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	for _, c := range []struct{ file, old, new, want string }{
		{file: "pod", old: "runtimeClassName:", new: "runtimeClass:",
			want: `strict decoding error: unknown field "spec.runtimeClass"`},
		{file: "pod-userns", old: "restartPolicy: Never", new: "restartPolicy: Sometimes",
			want: `Pod: spec.restartPolicy: Unsupported value: "Sometimes"`},
		{file: "pod-userns", old: "hostUsers: false", new: "hostUsers: false\n  hostNetwork: true",
			want: "Pod: spec.hostNetwork: Forbidden: when `hostUsers` is false"},
		{file: "pod", old: "web.nix-closure/roots", new: "web/nix-closure/roots",
			want: `Pod: metadata.annotations: Invalid value: "web/nix-closure/roots"`},
		{file: "base/daemonset", old: "name: bin\n        hostPath", new: "name: programs\n        hostPath",
			want: `DaemonSet: spec.template.spec.containers[0].volumeMounts[0].name: Not found: "bin"`},
		{file: "base/daemonset", old: "maxUnavailable: 1", new: "maxUnavailable: 0",
			want: "DaemonSet: spec.updateStrategy.rollingUpdate"},
		{file: "base/runtimeclass", old: "handler: nix-closure", new: "handler: nix_closure",
			want: "RuntimeClass: handler: Invalid value"},
		{file: "base/policy", old: "size(variables.unknown)", new: "size(variables.unknow)",
			want: "ValidatingAdmissionPolicy: spec.validations[0].expression: Invalid value"},
		{file: "base/policy", old: `["Deny"]`, new: `["Refuse"]`,
			want: "ValidatingAdmissionPolicyBinding: spec.validationActions[0]: Unsupported value"},
	} {
		text := strings.ReplaceAll(example(t, "kubernetes/"+c.file+".yaml"), c.old, c.new)
		if err := os.WriteFile(wrong, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := validate(wrong); err == nil || !strings.HasPrefix(out, wrong+": "+c.want) {
			t.Errorf("%s: %v\n%s\nwant %s", c.new, err, out, c.want)
		}
	}
}

// askPolicy returns what the API server's plug-in says of each pod, in order.
func askPolicy(t *testing.T, pods []*core.Pod, args ...string) []string {
	t.Helper()
	return askPolicyOf(t, examples+"/kubernetes/base/policy.yaml", pods, args...)
}

func askPolicyOf(t *testing.T, policy string, pods []*core.Pod, args ...string) []string {
	t.Helper()
	var manifests strings.Builder
	for _, p := range pods {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&manifests, "---\n%s\n", text)
	}
	ask := exec.Command(filepath.Join(*bin, "stack/manifests"),
		append([]string{"-policy", policy}, args...)...)
	ask.Stdin = strings.NewReader(manifests.String())
	out, err := ask.CombinedOutput()
	said := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(said) != len(pods) {
		t.Fatalf("%v: of %d pods:\n%s", err, len(pods), out)
	}
	return said
}

// The policy lets a pod pass that has its closure, and no other one that asks for
// it, or may have meant to.
func TestExamplePolicy(t *testing.T) {
	const (
		class     = "a pod with a nix-closure annotation needs runtimeClassName: nix-closure"
		unknown   = "not an annotation of nix-closure: "
		tolerates = "must not tolerate that NRI plugins are missing"
		noneOfIts = "names a container that the pod does not have"
	)
	pod := func(runtimeClass string, annotations map[string]string) *core.Pod {
		p := &core.Pod{Spec: core.PodSpec{
			InitContainers: []core.Container{{Name: "setup", Image: "image"}},
			Containers:     []core.Container{{Name: "web", Image: "image"}, {Name: "db", Image: "image"}},
		}}
		p.APIVersion, p.Kind, p.Name, p.Annotations = "v1", "Pod", "pod", annotations
		if runtimeClass != "" {
			p.Spec.RuntimeClassName = &runtimeClass
		}
		return p
	}
	keys := func(keys ...string) map[string]string {
		annotations := map[string]string{}
		for _, k := range keys {
			annotations[k] = "true"
		}
		return annotations
	}
	type question struct {
		pod  *core.Pod
		want string // empty: allowed
	}
	var questions []question
	for _, q := range []struct {
		annotations map[string]string
		// What is said of the pod without a RuntimeClass, and with nix-closure's.
		without, with string
	}{
		{nil, "", ""},
		{keys("example.org/closure", "nix.example.org/roots"), "", ""},
		{keys("tolerate-missing-plugins.noderesource.dev"), "", ""},
		{keys("nix-closure/roots"), class, ""},
		{keys("web.nix-closure/roots"), class, ""},
		{keys("setup.nix-closure/roots"), class, ""},
		{keys("web.nix-closure/roots", "db.nix-closure/closure-info", "setup.nix-closure/mode", "nix-closure/listing"),
			class, ""},

		{keys("wbe.nix-closure/roots"), class, noneOfIts},
		{keys("nix-closure/roots", "wbe.nix-closure/mode"), class, noneOfIts},
		{keys("eb.nix-closure/roots"), class, noneOfIts},
		{keys("web.db.nix-closure/roots"), class, noneOfIts},
		{keys("pod.nix-closure/roots"), class, noneOfIts},

		{keys("nix-closure/roots", "tolerate-missing-plugins.noderesource.dev"), class, tolerates},
		{keys("nix-closure/roots", "tolerate-missing-plugins.noderesource.dev/pod"), class, tolerates},
		{keys("web.nix-closure/roots", "tolerate-missing-plugins.noderesource.dev/container.web"), class, tolerates},

		{keys("nix-closure/root"), unknown + "nix-closure/root;", unknown + "nix-closure/root;"},
		{keys("nix-closure/roots", "web.nix-closure/mod"), unknown + "web.nix-closure/mod;",
			unknown + "web.nix-closure/mod;"},
		{keys("nix-closure/Roots"), unknown, unknown},
		{keys("Nix-Closure/roots"), unknown, unknown},
		{keys("nix-closures/roots"), unknown, unknown},
		{keys("nix-closure/roots", "nix-closures/mode"), unknown, unknown},
		{keys("nixclosure/roots"), unknown, unknown},
		{keys("nix.closure/roots"), unknown, unknown},
		{keys("web.nix-closures/roots"), unknown, unknown},
		{keys("web-nix-closure/roots"), unknown, unknown},
		{keys("nix-closure.roots"), unknown, unknown},
		{keys("web/nix-closure.roots"), unknown, unknown},
		{keys("web/nix_closure"), unknown, unknown},
		{keys("nix-closure"), unknown, unknown},
	} {
		questions = append(questions, question{pod("", q.annotations), q.without},
			question{pod("nix-closure", q.annotations), q.with})
	}
	questions = append(questions,
		question{pod("kata", nil), ""},
		question{pod("kata", keys("nix-closure/roots")), class},
		question{pod("nix-closure-2", keys("web.nix-closure/roots")), class})

	// As many annotations as a pod may have are within the limits of what an API
	// server computes.
	many := map[string]string{}
	for i := range 4000 {
		many[fmt.Sprintf("%063d", i)] = ""
	}
	questions = append(questions, question{pod("", many), ""}, question{pod("nix-closure", many), ""})
	many = maps.Clone(many)
	many["nix-closure/roots"] = ""
	questions = append(questions, question{pod("", many), class}, question{pod("nix-closure", many), ""})

	// Each key that the hook knows, and no other.
	precreate := exec.Command(filepath.Join(*bin, "nix-closure-hook"), "precreate")
	precreate.Stdin = strings.NewReader(`{"annotations": {"nix-closure/unknown": ""}, "root": {"path": "rootfs"}}`)
	out, err := precreate.CombinedOutput()
	_, known, ok := strings.Cut(strings.TrimSpace(string(out)), "the keys are ")
	if err == nil || !ok {
		t.Fatalf("the hook: %v %s", err, out)
	}
	known = strings.ReplaceAll(known, ", ", "|")
	if !strings.Contains(example(t, "kubernetes/base/policy.yaml"), `nix-closure/(`+known+`)$`) {
		t.Errorf("the policy does not know %s", known)
	}
	for key := range strings.SplitSeq(known, "|") {
		questions = append(questions, question{pod("nix-closure", keys("nix-closure/"+key, "web.nix-closure/"+key)),
			""})
	}

	// The examples themselves.
	for _, f := range []string{"pod", "pod-userns", "canary"} {
		questions = append(questions, question{only[*core.Pod](t, example(t, "kubernetes/"+f+".yaml")), ""})
	}

	check := func(questions []question, args ...string) {
		t.Helper()
		var pods []*core.Pod
		for _, q := range questions {
			pods = append(pods, q.pod)
		}
		for i, said := range askPolicy(t, pods, args...) {
			q := questions[i]
			if q.want == "" && said != "allowed" ||
				q.want != "" && (!strings.HasPrefix(said, "denied: ") || !strings.Contains(said, q.want)) {
				text, _ := json.Marshal(q.pod)
				t.Errorf("%.500s\n%s\nwant %q", text, said, q.want)
			}
		}
	}
	check(questions)

	// A pod that is there already. Its end is not held up, and a container that was
	// added to it is one of its own.
	ends := pod("", keys("nix-closure/roots"))
	ends.CreationTimestamp.Time = time.Now()
	ends.DeletionTimestamp = &ends.CreationTimestamp
	debugged := pod("nix-closure", keys("debug.nix-closure/roots"))
	debugged.Spec.EphemeralContainers = []core.EphemeralContainer{{
		EphemeralContainerCommon: core.EphemeralContainerCommon{Name: "debug", Image: "image"},
	}}
	check([]question{{ends, ""}, {debugged, ""}, {pod("", keys("nix-closure/roots")), class}}, "-update")
}

// The policy for named closures refuses pods that pass the scheduler by, and no others.
func TestExamplePolicyNamed(t *testing.T) {
	type resources = map[core.ResourceName]string
	pod := func(node string, init, container resources) *core.Pod {
		p := &core.Pod{Spec: core.PodSpec{
			NodeName:       node,
			InitContainers: []core.Container{{Name: "setup", Image: "image"}},
			Containers:     []core.Container{{Name: "web", Image: "image"}, {Name: "db", Image: "image"}},
		}}
		p.APIVersion, p.Kind, p.Name = "v1", "Pod", "pod"
		list := func(all resources) core.ResourceRequirements {
			limits := core.ResourceList{}
			for name, quantity := range all {
				limits[name] = resource.MustParse(quantity)
			}
			return core.ResourceRequirements{Limits: limits, Requests: limits}
		}
		p.Spec.InitContainers[0].Resources, p.Spec.Containers[1].Resources = list(init), list(container)
		return p
	}
	named, others := resources{"nix-closure/hello": "1", "cpu": "1"}, resources{"example.org/gpu": "1", "memory": "1Gi"}
	example := only[*core.Pod](t, example(t, "kubernetes/pod-named.yaml"))
	elsewhere := example.DeepCopy()
	elsewhere.Spec.NodeName = "node"
	var pods []*core.Pod
	var want []bool
	for _, q := range []struct {
		pod     *core.Pod
		allowed bool
	}{
		{pod("", nil, nil), true},
		{pod("node", nil, nil), true},
		{pod("node", others, others), true},
		{pod("", named, named), true},
		{pod("node", nil, named), false},
		{pod("node", named, nil), false},
		{example, true},
		{elsewhere, false},
	} {
		pods, want = append(pods, q.pod), append(want, q.allowed)
	}
	for i, said := range askPolicyOf(t, examples+"/kubernetes/components/device-plugin/policy-named.yaml", pods) {
		if allowed := said == "allowed"; allowed != want[i] ||
			!allowed && !strings.Contains(said, "a pod with a nix-closure/ resource must not name its node") {
			t.Errorf("pod %d: %s", i, said)
		}
	}
}
