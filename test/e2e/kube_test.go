// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"strings"
	"testing"
)

// kubeLimit is the longest value of an annotation, in bytes, that podman 4.3.1 plays.
const kubeLimit = 63

// podYAML is a pod of one container for podman kube play.
func podYAML(says annotations, command ...string) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata:\n  name: played\n  annotations:\n")
	for key, value := range says {
		b.WriteString("    " + key + ": " + value + "\n")
	}
	b.WriteString("spec:\n  restartPolicy: Never\n  hostNetwork: true\n  containers:\n  - name: web\n    image: " +
		bareImage +
		"\n    imagePullPolicy: Never\n    command: [" + strings.Join(command, ", ") + "]\n")
	return b.String()
}

func playFile(t *testing.T, runtime, text string) (stderr string, err error) {
	t.Helper()
	file := t.TempDir() + "/pod.yaml"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePod(t, "played") })
	_, stderr, err = call("podman", "--runtime", runtime, "--hooks-dir", *bin+"/hooks.d", "kube", "play", file)
	return stderr, err
}

// What docs/engines.md says of podman kube play: podman takes no value of more than 63
// bytes, which one store path with a short name has, and two never. A closure-info is such
// a path, of a closure of any size.
func TestKubePlay(t *testing.T) {
	makePods(t)
	sleep := []string{store["env"] + "/bin/sleep", "\"600\""}
	two := store["env"] + ":" + store["foreign"]
	long := storeDir + "/" + strings.Repeat("0", 32) + "-" + strings.Repeat("n", kubeLimit+1-len(storeDir+"/-")-32)
	// nixpkgs names each closure-info so.
	if n := len(storeDir + "/" + strings.Repeat("0", 32) + "-closure-info"); n > kubeLimit {
		t.Fatalf("a closure-info's path has %d bytes", n)
	}
	if len(long) != kubeLimit+1 {
		t.Fatalf("%d bytes", len(long))
	}
	const tooLong = "value length exceeds"
	for _, c := range []struct {
		name, key, value string
		podman           string // says this
		hook             string // or the hook does
	}{
		{name: "closure-info", key: "nix-closure/closure-info", value: store["closureInfo"]},
		{name: "a root with a short name", key: "nix-closure/roots", value: store["env"]},
		{name: "a root with a name too long by one", key: "nix-closure/roots", value: long, podman: tooLong},
		{name: "two roots", key: "nix-closure/roots", value: two, podman: tooLong},
		{name: "for one container", key: "web.nix-closure/roots", value: store["env"],
			hook: "web.nix-closure/roots: is for one container of a pod, and the engine does not say which"},
		{name: "as podman generate kube writes it", key: "nix-closure/roots/web", value: store["env"],
			hook: "annotation nix-closure/roots/web: unknown; the keys are"},
	} {
		for _, runtime := range runtimes {
			if c.hook != "" && runtime != "runc" {
				continue // podman takes ten seconds to remove it, and the hook is the same
			}
			t.Run(runtime+"/"+c.name, func(t *testing.T) {
				stderr, err := playFile(t, runtime, podYAML(annotations{c.key: c.value}, sleep...))
				switch said := lastError(t); {
				case c.podman != "":
					if err == nil || !strings.Contains(stderr, c.podman) {
						t.Errorf("%v, podman says %s, want %q", err, stderr, c.podman)
					}
				case c.hook != "":
					if err == nil || !strings.Contains(said, c.hook) {
						t.Errorf("%v, the log says %s, want %q", err, said, c.hook)
					}
				case err != nil:
					t.Errorf("%v %s %s", err, stderr, said)
				default:
					got := strings.Fields(execute(t, "played-web", store["env"]+"/bin/ls", "-A", storeDir))
					if want := closureOf(t, store["env"]); strings.Join(got, " ") != strings.Join(want, " ") {
						t.Errorf("the store has %q, want %q", got, want)
					}
				}
				removePod(t, "played")
				nothingLeft(t)
			})
		}
	}
}

// What podman generate kube writes of a container with an annotation does not start as it
// stands: the keys have the container's name behind them. It also cuts values.
func TestGenerateKube(t *testing.T) {
	makePods(t)
	const name = "web"
	for _, c := range []struct{ value, written string }{
		{store["env"], store["env"]},
		{store["env"] + ":" + store["foreign"], (store["env"] + ":" + store["foreign"])[:kubeLimit]},
	} {
		t.Cleanup(func() { remove(t, name) })
		args := append([]string{"create", "--name", name}, flags(roots(c.value))...)
		must(t, "podman", append(args, bareImage, store["env"]+"/bin/sleep", "600")...)
		text := must(t, "podman", "generate", "kube", name)
		remove(t, name)
		if line := "\n    nix-closure/roots/" + name + ": " + c.written + "\n"; !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
		if c.written != c.value {
			continue
		}
		stderr, err := playFile(t, "runc", text)
		removePod(t, "web-pod")
		if err == nil || !strings.Contains(lastError(t), "annotation nix-closure/roots/web: unknown") {
			t.Errorf("%v %s %s", err, stderr, lastError(t))
		}
	}
	nothingLeft(t)
}
