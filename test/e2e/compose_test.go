// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// withoutNetwork is a podman that gets no network: this machine has none, and podman-compose
// asks for one whatever the file says.
const withoutNetwork = `#!/bin/sh
[ "$1" != network ] || exit 0
for argument; do
	shift
	case $argument in
	--net | --network-alias) skip=yes ;;
	*) [ "$skip" ] || set -- "$@" "$argument"; skip= ;;
	esac
done
exec podman "$@"
`

// compose calls podman-compose with the example in a directory.
func compose(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	write(t, dir+"/podman", []byte(withoutNetwork))
	cmd := exec.Command("podman-compose", append([]string{"--podman-path", dir + "/podman"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What podman-compose makes of the example runs the example's commands, each with its
// closure; where the device is missing or the hook refuses, nothing starts.
func TestExampleCompose(t *testing.T) {
	hello, bash := lister(t, "hello-2.12"), lister(t, "bash-5.2")
	text, err := os.ReadFile("../../examples/compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	taken := strings.NewReplacer("/nix/store/…-hello-2.12", hello, "/nix/store/…-bash-5.2", bash,
		// This machine has no registry, and shows its store.
		"image: docker.io/library/alpine:3", "image: "+bareImage+"\n    volumes: [\""+storeDir+":"+storeDir+":ro\"]")
	example := taken.Replace(string(text))
	if left := placeholders(example); len(left) > 0 {
		t.Fatalf("the example has %q", left)
	}
	const byAnnotation, byDevice = "example_by-annotation_1", "example_by-device_1"
	// up starts the services, and returns what each printed.
	up := func(example string) (printed map[string]string, said string, err error) {
		t.Helper()
		dir := t.TempDir() + "/example"
		write(t, dir+"/compose.yaml", []byte(example))
		said, err = compose(t, dir, "up", "--detach")
		printed = map[string]string{}
		for _, name := range []string{byAnnotation, byDevice} {
			if _, _, err := call("podman", "container", "exists", name); err == nil {
				_, _, _ = call("podman", "wait", name)
				printed[name], _, _ = call("podman", "logs", name)
			}
		}
		if out, err := compose(t, dir, "down", "--timeout", "0"); err != nil {
			t.Errorf("down: %v %s", err, out)
		}
		nothingLeft(t)
		return printed, said, err
	}
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			setEngine(t, fmt.Sprintf("runtime = %q\nhooks_dir = [%q]", runtime, *bin+"/hooks.d"))
			writeDevices(t, map[string]annotations{"hello": roots(hello)})
			got, said, err := up(example)
			if err != nil || got[byAnnotation] != greetsAnd(hello, bash) || got[byDevice] != greetsAnd(hello) {
				t.Errorf("%v %q\n%s", err, got, said)
			}
			// Neither starts with a closure that there is not.
			got, said, err = up(strings.NewReplacer("closure=hello", "closure=none",
				hello+":"+bash, "/nix/store/canary").Replace(example))
			if got[byAnnotation]+got[byDevice] != "" || !strings.Contains(said, "nix-closure/closure=none") ||
				!strings.Contains(lastError(t), `annotation nix-closure/roots: "/nix/store/canary": `) {
				t.Errorf("%q, the log says %s\n%s", got, lastError(t), said)
			}
			if err != nil {
				t.Errorf("podman-compose says now that a service did not start; mend the documents: %v", err)
			}
		})
	}
	// The control: without their lines, they see the whole store.
	got, said, err := up(strings.NewReplacer("annotations:\n      nix-closure/", "labels:\n      nix-closure/",
		"devices:\n    - nix-closure/closure=hello", "labels:\n    - hello=there").Replace(example))
	for name, printed := range got {
		if err != nil || !strings.Contains(printed, "\n"+filepath.Base(store["foreign"])+"\n") {
			t.Errorf("%s: %v %q\n%s", name, err, printed, said)
		}
	}
	if len(got) != 2 {
		t.Errorf("%q\n%s", got, said)
	}
}
