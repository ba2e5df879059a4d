// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// writeGPU writes a CDI specification with a device node, for the length of a test.
func writeGPU(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(object{"cdiVersion": "0.5.0", "kind": "example.com/gpu", "devices": []object{
		{"name": "0", "containerEdits": object{"deviceNodes": []object{{"path": "/dev/null",
			"hostPath": "/dev/null"}}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	const file = "/etc/cdi/example.json"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, file) })
}

// withDevices are the ways to ask for a device.
var withDevices = []struct {
	name  string
	flags []string
}{
	{"device", []string{"--device", "/dev/null"}},
	{"CDI", []string{"--device", "example.com/gpu=0"}},
}

// recordBundle is the bundle that the record of a container names.
func recordBundle(t *testing.T, dir, id string) string {
	t.Helper()
	text, err := os.ReadFile(dir + "/containers/" + id + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Bundle string }
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	return record.Bundle
}

// With devices in a user namespace, crun says to hooks that the bundle is /. The
// container has its closure all the same, also when it is started again, and what is
// kept for it goes with it.
func TestLostBundle(t *testing.T) {
	writeGPU(t)
	want := closureOf(t, store["env"])
	// What a container could have written is not its config.json.
	const lying = "localhost/lying:latest"
	if err := importImage(lying, []tar.Header{{Name: "config.json", Typeflag: tar.TypeReg, Mode: 0o666}}); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range runtimes {
		for _, d := range withDevices {
			for name, flags := range map[string][]string{
				"uidmap": userns, "host": nil,
			} {
				t.Run(runtime+"/"+d.name+"/"+name, func(t *testing.T) {
					c := container{runtime: runtime, root: "env", image: lying, flags: slices.Concat(flags, d.flags)}
					id := c.start(t)
					list := func() []string {
						names := strings.Fields(execute(t, id, store["env"]+"/bin/ls", "-A", storeDir))
						slices.Sort(names)
						return names
					}
					if got := list(); !slices.Equal(got, want) {
						t.Errorf("the store has %q\nwant %q", got, want)
					}
					if bundle := recordBundle(t, runtimeDir, id); !strings.HasSuffix(bundle, id+"/userdata") {
						t.Errorf("the record has the bundle %q", bundle)
					}
					must(t, "podman", "stop", "--time", "0", id)
					nothingLeft(t)
					must(t, "podman", "--hooks-dir", filepath.Join(*bin, "hooks.d"), "start", id)
					if got := list(); !slices.Equal(got, want) {
						t.Errorf("started again, the store has %q\nwant %q", got, want)
					}
					remove(t, id)
					nothingLeft(t)
				})
			}
		}
	}
}

// The same for an ordinary user's containers, which are in a user namespace always.
func TestLostBundleRootless(t *testing.T) {
	writeGPU(t)
	nixDaemon(t)
	alice := user(t, "alice")
	want := closureOf(t, store["env"])
	for _, runtime := range runtimes {
		for _, userns := range owned {
			for _, d := range withDevices {
				t.Run(runtime+"/"+userns.name+"/"+d.name, func(t *testing.T) {
					c := container{runtime: runtime, root: "env", flags: slices.Concat(userns.flags, d.flags)}
					id := alice.start(t, c)
					if got := alice.names(t, id, "env"); !slices.Equal(got, want) {
						t.Errorf("the store has %q\nwant %q", got, want)
					}
					alice.remove(t, id)
					alice.nothingLeft(t)
				})
			}
		}
	}
}

// Where the bundle cannot be found out, the message says why.
func TestLostBundleAlone(t *testing.T) {
	b := newBundle(t, roots(store["env"]), "true", "createRuntime", "poststop")
	linux := b.linux()
	ids := []object{{"containerID": 0, "hostID": 100000, "size": 65536}}
	linux["uidMappings"], linux["gidMappings"] = ids, ids
	linux["namespaces"] = append(linux["namespaces"].([]any), object{"type": "user"})
	linux["devices"] = []object{{"path": "/dev/other", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}}
	b.config["root"].(object)["path"] = b.dir + "/rootfs"
	must(t, "chown", "--recursive", "100000:100000", b.dir+"/rootfs")
	must(t, "chmod", "755", b.dir, filepath.Dir(b.dir))
	command := b.command(t, "crun", "named")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("with --bundle: %v %s\n%s", err, out, lastLog(t))
	}
	nothingLeft(t)
	command = b.command(t, "crun", "alone")
	command.Args = []string{"crun", "run", "alone"}
	command.Dir = b.dir
	if out, err := command.CombinedOutput(); err == nil {
		t.Fatalf("without --bundle, it ran: %s", out)
	}
	const want = "nix-closure: container alone: looking for the container's bundle: the runtime says that the " +
		"bundle is /, " +
		"as crun does for a container with a user namespace and devices, and the hook cannot find it another way: " +
		`--bundle on its command line is "", not an absolute path; ` +
		"call the runtime with --bundle and an absolute path, or use another version of it"
	if got := lastError(t); got != want {
		t.Errorf("the log says\n%s\nwant\n%s", got, want)
	}
	nothingLeft(t)
}
