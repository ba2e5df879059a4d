// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	_ "embed"
)

// Programs of the closure, in an image that has none.
func TestProgramsRun(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		c := container{runtime: runtime, mode: mode, root: "env"}
		if got := c.python(t, `import json,ssl,sqlite3; `+
			`print(json.dumps([sqlite3.connect(":memory:").execute("select 6*7").fetchone(), `+
			`ssl.OPENSSL_VERSION_INFO[0]]))`); got != "[[42], 3]\n" {
			t.Errorf("python3 printed %q", got)
		}
		// A store path that is a file, and one that is a symbolic link.
		if got := c.mustRun(t, store["script"]); got == "" {
			t.Error("the script printed nothing")
		}
		if got := c.mustRun(t, store["link"]+"/bin/bash", "-c", "echo from bash"); got != "from bash\n" {
			t.Errorf("bash printed %q", got)
		}
		nothingLeft(t)
	})
}

// tree.py prints a line for each file below the store paths that it is given, with
// all that can be told apart.
//
//go:embed testdata/tree.py
var treeScript string

// variant is a way to start a container.
type variant struct {
	name   string
	flags  []string
	image  string
	userns bool // owners are those of the user namespace
}

// The variants in which the store must look the same.
var variants = []variant{
	{name: "plain"},
	{name: "userns", flags: []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}, userns: true},
	{name: "read-only", flags: []string{"--read-only"}},
	{name: "image with a store", image: ownImage},
	{name: "image with a store, read-only", image: ownImage, flags: []string{"--read-only"}},
	{name: "image with a store, userns", image: ownImage,
		flags: []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}, userns: true},
	{name: "image with /nix elsewhere", image: hostileImage},
	{name: "privileged", flags: []string{"--privileged"}},
}

// eachVariant runs a test for every variant, with the hook files that are installed and
// with precreate's in addition.
func eachVariant(t *testing.T, f func(t *testing.T, v variant, hooks string)) {
	for _, stage := range mountStages {
		hooks := hooksWith(t, stage.added...)
		for _, v := range variants {
			t.Run(stage.name+"/"+v.name, func(t *testing.T) { f(t, v, hooks) })
		}
	}
}

// The names in the store are the closure's, and every file of every path reads
// as on the host.
func TestExactlyTheClosure(t *testing.T) {
	want := closureOf(t, store["env"])
	var paths []string
	for _, n := range want {
		paths = append(paths, storeDir+"/"+n)
	}
	onHost := strings.Split(must(t, "/usr/bin/python3",
		append([]string{"-B", "-c", treeScript, "owners"}, paths...)...), "\n")
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		eachVariant(t, func(t *testing.T, v variant, hooks string) {
			c := container{runtime: runtime, mode: mode, root: "env", flags: v.flags, image: v.image, hooks: hooks}
			owners, want2 := "owners", onHost
			if v.userns {
				// Host root is nobody there.
				owners = "no-owners"
				want2 = strings.Split(must(t, "/usr/bin/python3",
					append([]string{"-B", "-c", treeScript, owners}, paths...)...), "\n")
			}
			got := strings.Split(c.python(t, "import os; print('\\n'.join(sorted(os.listdir('/nix/store'))))"), "\n")
			if got = got[:len(got)-1]; !slices.Equal(got, want) {
				t.Errorf("the store has %q\nwant %q", got, want)
			}
			tree := strings.Split(c.python(t, treeScript, append([]string{owners}, paths...)...), "\n")
			if !slices.Equal(tree, want2) {
				for i := range min(len(tree), len(want2)) {
					if tree[i] != want2[i] {
						t.Fatalf("line %d: in the container:\n%s\non the host:\n%s", i, tree[i], want2[i])
					}
				}
				t.Fatalf("%d files in the container, %d on the host", len(tree), len(want2))
			}
			nothingLeft(t)
		})
	})
}

//go:embed testdata/absent.py
var absentScript string

// What is not in the closure does not exist.
func TestNothingElse(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		eachVariant(t, func(t *testing.T, v variant, hooks string) {
			c := container{runtime: runtime, mode: mode, root: "env", flags: v.flags, image: v.image, hooks: hooks}
			var got map[string]string
			if err := json.Unmarshal([]byte(c.python(t, absentScript, store["foreign"], store["closureInfo"])),
				&got); err != nil {
				t.Fatal(err)
			}
			if len(got) < 10 {
				t.Fatalf("only %d results: %v", len(got), got)
			}
			for what, errno := range got {
				if errno != "ENOENT" {
					t.Errorf("%s: %s, want ENOENT", what, errno)
				}
			}
		})
	})
}

//go:embed testdata/write.py
var writeScript string

// Nothing in the store can be changed.
func TestReadOnly(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, v := range variants {
			t.Run(v.name, func(t *testing.T) {
				c := container{runtime: runtime, mode: mode, root: "env", flags: v.flags, image: v.image}
				var got map[string]string
				if err := json.Unmarshal([]byte(c.python(t, writeScript, store["data"], store["plus"])),
					&got); err != nil {
					t.Fatal(err)
				}
				if len(got) < 12 {
					t.Fatalf("only %d results: %v", len(got), got)
				}
				for what, errno := range got {
					if want := refusal(mode, v.userns, what); errno != want {
						t.Errorf("%s: %s, want %s", what, errno, want)
					}
				}
			})
		}
	})
}

// refusal is the error for a way to change the store. In a user namespace the
// kernel looks at the file's permissions, which are another's, before it looks
// at the mount; an overlay is read-only in itself, and that it looks at first.
func refusal(mode string, userns bool, what string) string {
	if userns && mode == "bind" && (what == "write" || what == "truncate") {
		return "EACCES"
	}
	return "EROFS"
}

// A path that is added to the host's store while the container runs is not seen.
func TestAddedLater(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		id := container{runtime: runtime, mode: mode, root: "env"}.start(t)
		file := t.TempDir() + "/added-to-" + runtime + "-" + mode
		if err := os.WriteFile(file, []byte(t.Name()), 0o644); err != nil {
			t.Fatal(err)
		}
		added := strings.TrimSpace(must(t, "nix-store", "--add", file))
		got := execute(t, id, store["env"]+"/bin/python3", "-B", "-c",
			"import os,sys; print(os.path.lexists(sys.argv[1]), sys.argv[1].split('/')[3] in os.listdir('/nix/store'))",
			added)
		if got != "False False\n" {
			t.Errorf("exists, is listed: %s", got)
		}
	})
}

// A closure-info is the closure that it lists, without itself.
func TestClosureInfo(t *testing.T) {
	want := closureOf(t, store["env"])
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		c := container{runtime: runtime, mode: mode,
			flags: []string{"--annotation", "nix-closure/closure-info=" + store["closureInfo"]}}
		got := strings.Fields(c.python(t, "import os; print('\\n'.join(sorted(os.listdir('/nix/store'))))"))
		if !slices.Equal(got, want) {
			t.Errorf("the store has %q\nwant %q", got, want)
		}
		nothingLeft(t)
	})
}

// Roots may be separated by white space and commas, and name what is below a
// store path.
func TestManyRoots(t *testing.T) {
	want := append(closureOf(t, store["tools"]), closureOf(t, store["foreign"])...)
	slices.Sort(want)
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		roots := store["foreign"] + "/secret,\n\t" + store["tools"] + "/bin/bash  " + store["foreign"]
		// Quoted: podman takes the value of the option for a line of CSV.
		c := container{runtime: runtime, mode: mode,
			flags: []string{"--annotation", `"nix-closure/roots=` + roots + `"`}}
		got := strings.Fields(c.mustRun(t, store["tools"]+"/bin/ls", "/nix/store"))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("the store has %q\nwant %q", got, want)
		}
	})
}

// Without listing, a store path can be used by its name, and the directory not
// read, by a process without power over host root's files.
func TestUnlisted(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		for _, v := range [][]string{{"--user", "1000"}, {"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}} {
			c := container{runtime: runtime, mode: mode, root: "env",
				flags: append([]string{"--annotation", "nix-closure/listing=false"}, v...)}
			got := c.python(t, "import os,errno\ntry: os.listdir('/nix/store'); print('listed')\nexcept OSError as "+
				"e: print(errno.errorcode[e.errno])")
			if got != "EACCES\n" {
				t.Errorf("%s: listing /nix/store: %s", v, got)
			}
		}
	})
}

// auto takes the overlay where root runs podman, and the log says why.
func TestAuto(t *testing.T) {
	for _, runtime := range runtimes {
		container{runtime: runtime, root: "env"}.mustRun(t, store["env"]+"/bin/true")
		var attached []logLine
		for _, l := range readLog(t) {
			if l.Msg == "attached" {
				attached = append(attached, l)
			}
		}
		last := attached[len(attached)-1]
		if last.Mode != "overlay" || !strings.HasPrefix(last.Why, "auto: ") {
			t.Errorf("%s: %+v", runtime, last)
		}
	}
}

// One mount shows the whole store in overlay mode.
func TestOneMount(t *testing.T) {
	for _, runtime := range runtimes {
		c := container{runtime: runtime, mode: "overlay", root: "env"}
		var mounts []string
		for line := range strings.Lines(c.mustRun(t, store["env"]+"/bin/cat", "/proc/self/mountinfo")) {
			if fields := strings.Fields(line); strings.HasPrefix(fields[4], "/nix") {
				mounts = append(mounts, fields[4]+" "+fields[5])
			}
		}
		if want := []string{"/nix/store ro,nosuid,nodev,relatime"}; !slices.Equal(mounts, want) {
			t.Errorf("%s: mounts %q, want %q", runtime, mounts, want)
		}
	}
}
