// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// asks is what an image asks for by this program's own annotations, and what the
// container gets whose user asks for env, by annotation or by device.
type asks struct {
	name        string
	image, user annotations
	// byAnnotation and byDevice have an attribute of the store, and words that the
	// probe prints; or refused, and the key that the reason names.
	byAnnotation, byDevice []string
}

func imageAsks() []asks {
	const roots, info, mode = "nix-closure/roots", "nix-closure/closure-info", "nix-closure/mode"
	const listing, registration, writable = "nix-closure/listing", "nix-closure/registration", "nix-closure/writable"
	path, closureInfo := store["foreign"], store["closureInfo"]
	both := func(name string, image, user annotations, want ...string) asks {
		return asks{name: name, image: image, user: user, byAnnotation: want, byDevice: want}
	}
	return []asks{
		{name: "roots", image: annotations{roots: path}, byAnnotation: []string{itsOwn, "listed"},
			byDevice: []string{refused, roots}},
		both("the same roots", annotations{roots: store["env"]}, nil, itsOwn, "listed"),
		both("closure-info", annotations{info: closureInfo}, nil, refused, info),
		both("roots and closure-info", annotations{roots: path, info: closureInfo}, nil, refused, info, roots),
		both("mode", annotations{mode: "bind"}, nil, itsOwn, "listed"),
		both("no mode", annotations{mode: "none"}, nil, refused, mode),
		both("mode of the user's", annotations{mode: "none"}, annotations{mode: "bind"}, itsOwn, "listed"),
		both("listing", annotations{listing: "false"}, nil, itsOwn),
		both("listing of the user's", annotations{listing: "false"}, annotations{listing: "true"}, itsOwn, "listed"),
		both("registration", annotations{registration: "true"}, nil, itsOwn, "listed", "registered"),
		both("registration of the user's", annotations{registration: "true"}, annotations{registration: "false"},
			itsOwn, "listed"),
		both("writable", annotations{writable: "true"}, nil, itsOwn, "listed", "written"),
		both("writable of the user's", annotations{writable: "true"}, annotations{writable: "false"}, itsOwn, "listed"),
		both("a typing mistake", annotations{"nix-closure/root": path}, nil, refused, "nix-closure/root"),
		both("an empty name", annotations{".nix-closure/roots": path}, nil, refused, ".nix-closure/roots"),
		both("mode of one container", annotations{"web.nix-closure/mode": "bind"}, nil, refused,
			"web.nix-closure/mode"),
		{name: "roots of the user's", user: annotations{roots: path}, byDevice: []string{refused, roots}},
		{name: "the same roots of the user's", user: annotations{roots: store["env"]},
			byDevice: []string{itsOwn, "listed"}},
		both("closure-info of the user's", nil, annotations{info: closureInfo}, refused, info),
	}
}

// An image may ask for what makes its own container's view another one, but for no
// other closure than its user asks for. A device's closure is the only one.
func TestImageAsks(t *testing.T) {
	nixDaemon(t)
	writeDevices(t, map[string]annotations{"env": roots(store["env"])})
	for _, w := range ways(t) {
		t.Run(w.name, func(t *testing.T) {
			writeConfig(t, w.config)
			for _, a := range imageAsks() {
				want := a.byAnnotation
				if w.asks[0] == "--device" {
					want = a.byDevice
				}
				if want == nil || w.user != nil && slices.Contains(want, "written") {
					continue // a writable store needs root
				}
				t.Run(a.name, func(t *testing.T) {
					s := w.run(t, annotatedImage(t, a.image), slices.Concat(wholeStore, flags(a.user))...)
					if want[0] == refused {
						s.isRefused(t, want[1:]...)
						return
					}
					s.has(t, want[0])
					if _, words := s.lines(); !slices.Equal(words, want[1:]) {
						t.Errorf("%q, want %q", words, want[1:])
					}
				})
			}
		})
	}
}

// Where the user asks for nothing, an image's closure takes the place of what its user
// mounts. What it may ask for is the policy's say.
func TestImageAlone(t *testing.T) {
	nixDaemon(t)
	for _, w := range ways(t) {
		if w.asks[0] == "--device" {
			continue
		}
		w.asks = nil
		t.Run(w.name, func(t *testing.T) {
			for name, c := range map[string]struct {
				says   annotations
				config string
				want   string
			}{
				"roots":        {roots(store["foreign"]), "", foreign},
				"closure-info": {annotations{"nix-closure/closure-info": store["closureInfo"]}, "", itsOwn},
				"not allowed":  {roots(store["foreign"]), "[[allow]]\nroots = [\"/nix/store/*-test-env\"]\n", refused},
			} {
				writeConfig(t, w.config+c.config)
				image := annotatedImage(t, c.says)
				if s := w.run(t, image, wholeStore...); c.want == refused {
					s.isRefused(t, store["foreign"]+" is not allowed here")
				} else {
					s.has(t, c.want)
				}
				s := w.run(t, image, "-v", storeDir+":/x:ro")
				s.isRefused(t, "/nix/store on /x: shows /nix/store", "is not allowed here")
				t.Log(name)
			}
		})
	}
}

// A container has one closure: a second one, by another device or by an annotation,
// keeps it from starting. The same one twice is one.
func TestOneClosure(t *testing.T) {
	nixDaemon(t)
	env, tools := store["env"], store["tools"]
	const info, hidden = "nix-closure/closure-info", "hidden"
	plantDevices(t, map[string]annotations{
		"env": roots(env), "again": roots(env), "tools": roots(tools),
		"info": {info: store["closureInfo"]}, "bind": asking(annotations{"nix-closure/mode": "bind"}),
		"hides":   asking(annotations{"nix-closure/listing": "false"}),
		"nothing": {}, "mistake": {"nix-closure/root": env}, "web": {"web.nix-closure/roots": env},
	})
	device := func(names ...string) []string {
		var all []string
		for _, n := range names {
			all = append(all, "--device", "nix-closure/closure="+n)
		}
		return all
	}
	notTwo := []string{refused, "closure"}
	const hidesAndNot = "a device that hides names, and an annotation that is one"
	for _, c := range []struct {
		name  string
		flags []string
		want  []string
	}{
		{"one", device("env"), []string{itsOwn}},
		{"another", device("tools"), []string{"tools"}},
		{"closure-info", device("info"), []string{itsOwn}},
		{"with a mode", device("bind"), []string{itsOwn}},
		{"two", device("env", "tools"), notTwo},
		{"two, the other way round", device("tools", "env"), notTwo},
		{"two that are one", device("env", "again"), []string{itsOwn}},
		{"roots and closure-info", device("env", "info"), notTwo},
		{"a device and an annotation", append(device("env"), flags(roots(tools))...),
			[]string{refused, "nix-closure/roots"}},
		{"a device and an annotation that are one", append(device("env"), flags(roots(env))...), []string{itsOwn}},
		{"a device and closure-info", append(device("env"), flags(annotations{info: store["closureInfo"]})...),
			[]string{refused, info}},
		{"a device and another mode", append(device("bind"), flags(annotations{"nix-closure/mode": "overlay"})...),
			[]string{refused, "nix-closure/mode", "neither nix-closure/roots nor nix-closure/closure-info"}},
		{"a device that asks for nothing", device("nothing"), nil},
		{"a device that hides names", device("hides"), []string{itsOwn, hidden}},
		{"a device that hides names, and one that does not", device("env", "hides"), notTwo},
		{"a device that hides names, and one that does not, the other way round", device("hides", "env"), notTwo},
		{hidesAndNot, append(device("hides"), flags(roots(env))...), []string{itsOwn, hidden}},
		{"a device in a user namespace", append(device("env"), "--uidmap=0:100000:65536"), []string{itsOwn}},
		{"a device, and the store elsewhere", append(device("env"), "-v", storeDir+":/x:ro"),
			[]string{refused, "/nix/store on /x: shows"}},
		{"a device for one container of a pod", device("web"), []string{refused, "web.nix-closure/roots"}},
		{"a device with a typing mistake", device("mistake"), []string{refused, "nix-closure/root"}},
	} {
		for _, runtime := range runtimes {
			for _, hooks := range []string{emptyHooks(t), ""} {
				if hooks == "" && runtime != "runc" {
					continue
				}
				c := c
				if hooks == "" && c.name == hidesAndNot {
					c.want = notTwo // the hook file's call does not know of the device's listing
				}
				t.Run(fmt.Sprintf("%s/%s/hook files %v", c.name, runtime, hooks == ""), func(t *testing.T) {
					w := way{container: container{runtime: runtime, hooks: hooks}, asks: c.flags}
					if c.want == nil {
						if s := w.run(t, annotatedImage(t, nil)); s.err != nil || s.stdout != "started\n" {
							t.Errorf("%v %q %s", s.err, s.stdout, s.said)
						}
						return
					}
					s := w.run(t, annotatedImage(t, nil), wholeStore...)
					if c.want[0] == refused {
						s.isRefused(t, c.want[1:]...)
						return
					}
					s.has(t, c.want[0])
					if _, words := s.lines(); c.want[len(c.want)-1] == hidden && slices.Contains(words, "listed") {
						t.Error("the store directory can be listed")
					}
				})
			}
		}
	}
}

// pauseImage waits: podman's own image for pods is of a program that Debian does not bring.
const pauseImage = "localhost/pause:latest"

// makePods has podman make pods with pauseImage, for the length of a test.
func makePods(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	from := "FROM " + annotatedImage(t, nil) + "\nENTRYPOINT [\"/bin/busybox\", \"sleep\", \"1000000\"]\n" +
		"STOPSIGNAL SIGKILL\n" // or podman waits ten seconds for it to stop
	const conf = "/etc/containers/containers.conf"
	before, err := os.ReadFile(conf)
	if err := errors.Join(err, os.WriteFile(dir+"/Containerfile", []byte(from), 0o644)); err != nil {
		t.Fatal(err)
	}
	must(t, "podman", "build", "--quiet", "--isolation=chroot", "--tag", pauseImage, dir)
	t.Cleanup(func() {
		if err := os.WriteFile(conf, before, 0o644); err != nil {
			t.Error(err)
		}
	})
	engine := fmt.Appendf(nil, "[engine]\ninfra_image = %q\n", pauseImage)
	if err := os.WriteFile(conf, bytes.Replace(before, []byte("[engine]\n"), engine, 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

// removePod removes a pod, if there is one.
func removePod(t *testing.T, name string) {
	t.Helper()
	if _, _, err := call("podman", "pod", "exists", name); err == nil {
		// To stop it takes seconds.
		must(t, "podman", "pod", "kill", name)
		must(t, "podman", "pod", "rm", "--force", "--time", "0", name)
	}
}

// podman itself says which containers are of a pod, in CRI-O's dialect. They have the
// closure that their user asks for. An image's claims are podman's to override, or a reason
// to refuse.
func TestBelievedInPods(t *testing.T) {
	makePods(t)
	must(t, "podman", "pod", "create", "--name", "believed")
	t.Cleanup(func() { removePod(t, "believed") })
	for _, w := range ways(t) {
		if w.user != nil || w.asks[0] == "--device" {
			continue
		}
		w.asks = append(slices.Clone(w.asks), "--pod", "believed")
		t.Run(w.name, func(t *testing.T) {
			writeConfig(t, w.config)
			w.run(t, annotatedImage(t, nil), wholeStore...).has(t, itsOwn)
			for _, c := range claims() {
				t.Run(c.Name, func(t *testing.T) {
					writeConfig(t, w.config+c.Config)
					s := w.run(t, annotatedImage(t, c.Says), wholeStore...)
					if s.err == nil {
						s.has(t, itsOwn)
						return
					}
					check(t, c, w.engine, s)
				})
			}
		})
	}
}

// play plays a pod of two containers that mount the whole store, and returns their names.
func play(t *testing.T, runtime, hooks, image string, says annotations) (names []string, stderr string, _ error) {
	t.Helper()
	var text strings.Builder
	for key, value := range says {
		fmt.Fprintf(&text, "    %s: %q\n", key, value)
	}
	yaml := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: played\n  namespace: team-b\n  annotations:\n" +
		text.String() +
		"spec:\n  restartPolicy: Never\n  hostNetwork: true\n  containers:\n"
	for _, name := range []string{"web", "db"} {
		names = append(names, "played-"+name)
		yaml += "  - name: " + name + "\n    image: " + image + "\n    imagePullPolicy: Never\n" +
			"    command: [/bin/busybox, sleep, \"1000000\"]\n" +
			"    volumeMounts: [{name: store, mountPath: /nix/store, readOnly: true}]\n"
	}
	yaml += "  volumes: [{name: store, hostPath: {path: /nix/store}}]\n"
	file := t.TempDir() + "/pod.yaml"
	if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePod(t, "played") })
	_, stderr, err := call("podman", "--runtime", runtime, "--hooks-dir", hooks, "play", "kube", file)
	return names, stderr, err
}

// The containers of a pod that podman plays have the closure that the pod asks for.
// podman 4.3.1 gives them no annotations of their images, and says itself that they are
// no sandbox; a value has 63 characters at most.
func TestBelievedPlayed(t *testing.T) {
	makePods(t)
	some := []string{"sandbox, both", "name, CRI-O", "namespace, CRI-O"}
	all := slices.DeleteFunc(claims(), func(c claim) bool { return !slices.Contains(some, c.Name) })
	nothing := claim{Want: map[string]string{"*": itsOwn}}
	hooks := emptyHooks(t)
	for _, w := range []struct{ name, engine, runtime, hooks, config string }{
		{name: "hook files, runc", engine: "podman", runtime: "runc", hooks: *bin + "/hooks.d"},
		{name: "hook files, crun", engine: "podman", runtime: "crun", hooks: *bin + "/hooks.d"},
		{name: "wrapper, runc", runtime: wrapper(), hooks: hooks, config: "runtime = \"runc\"\n"},
	} {
		test := func(name string, image annotations, c claim) {
			t.Run(w.name+"/"+name, func(t *testing.T) {
				writeConfig(t, w.config+c.Config)
				before := len(readLog(t))
				names, stderr, err := play(t, w.runtime, w.hooks, annotatedImage(t, image), asking(c.Says))
				for _, name := range names {
					s := seen{stderr: stderr, err: err}
					if s.err == nil {
						s.stdout, _, s.err = call("podman", "exec", name, "/bin/busybox", "sh", "-c", probe(t))
					}
					s.said = newestError(readLog(t)[before:])
					check(t, c, w.engine, s)
				}
				removePod(t, "played")
				nothingLeft(t)
			})
		}
		test("nothing", nil, nothing)
		for _, c := range all {
			if w.runtime == "runc" {
				test(c.Name+"/image", c.Says, nothing)
				test(c.Name+"/pod", nil, c)
			}
		}
	}
}
