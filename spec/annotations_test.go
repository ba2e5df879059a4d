// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
)

var nixStore = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

func named(name string) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + name)
}

// storePath is the store path of this name.
func storePath(name string) string { return nixStore.Path(named(name)) }

// annotations makes a map of keys and values in turn.
func annotations(pairs ...string) map[string]string {
	all := map[string]string{}
	for pair := range slices.Chunk(pairs, 2) {
		all[pair[0]] = pair[1]
	}
	return all
}

const containerID = "0123456789abcdef"

// engineOf is an engine that sets these annotations.
func engineOf(in map[string]string) Engine {
	for key := range in {
		if strings.HasPrefix(key, "io.kubernetes.cri.") {
			return Containerd
		}
	}
	for key := range in {
		if strings.HasPrefix(key, "io.kubernetes.") {
			return CRIO
		}
	}
	return UnknownEngine
}

func TestParseAnnotations(t *testing.T) {
	a, b := storePath("a"), storePath("b")
	roots := func(names ...string) []closure.BaseName {
		var all []closure.BaseName
		for _, n := range names {
			all = append(all, named(n))
		}
		return all
	}
	const (
		criType  = "io.kubernetes.cri.container-type"
		criName  = "io.kubernetes.cri.container-name"
		criID    = "io.kubernetes.cri.sandbox-id"
		criType2 = "io.kubernetes.cri-o.ContainerType"
		criName2 = "io.kubernetes.container.name"
		criID2   = "io.kubernetes.cri-o.SandboxID"
	)
	for _, c := range []struct {
		name string
		in   map[string]string
		want *Request
	}{
		{"none", nil, nil},
		{"of others", annotations("io.podman.annotations.init", "FALSE", "nix-closure", "x", "nix-closures/roots", a,
			"Nix-closure/roots", a,
			"my-nix-closure/roots", a, "mynix-closure/roots", a, "org/nix-closure/roots", a, "nix-closure.roots", a),
			nil},

		{"roots", annotations("nix-closure/roots", a), &Request{Roots: roots("a"), Listing: true}},
		{"two", annotations("nix-closure/roots", a+" "+b), &Request{Roots: roots("a", "b"), Listing: true}},
		{"in the order given", annotations("nix-closure/roots", b+","+a),
			&Request{Roots: roots("b", "a"), Listing: true}},
		{"every separator", annotations("nix-closure/roots",
			"\n\t"+a+" \t\r\n\v\f,"+b+","+storePath("c")+"\t"+storePath("d")+",,\n"),
			&Request{Roots: roots("a", "b", "c", "d"), Listing: true}},
		{"one twice", annotations("nix-closure/roots", a+" "+b+" "+a+"/bin/x "+a+"/"),
			&Request{Roots: roots("a", "b"), Listing: true}},
		{"below a store path", annotations("nix-closure/roots", a+"/bin/hello"),
			&Request{Roots: roots("a"), Listing: true}},
		{"closure-info", annotations("nix-closure/closure-info", a), &Request{ClosureInfo: named("a"), Listing: true}},
		{"overlay", annotations("nix-closure/roots", a, "nix-closure/mode", "overlay"),
			&Request{Roots: roots("a"), Mode: ModeOverlay, Listing: true}},
		{"bind", annotations("nix-closure/roots", a, "nix-closure/mode", "bind"),
			&Request{Roots: roots("a"), Mode: ModeBind, Listing: true}},
		{"auto", annotations("nix-closure/roots", a, "nix-closure/mode", "auto"),
			&Request{Roots: roots("a"), Mode: ModeAuto, Listing: true}},
		{"listing", annotations("nix-closure/roots", a, "nix-closure/listing", "true"),
			&Request{Roots: roots("a"), Listing: true}},
		{"no listing", annotations("nix-closure/roots", a, "nix-closure/listing", "false"),
			&Request{Roots: roots("a")}},
		{"no registration", annotations("nix-closure/roots", a, "nix-closure/registration", "false"),
			&Request{Roots: roots("a"), Listing: true}},
		{"not writable", annotations("nix-closure/roots", a, "nix-closure/writable", "false"),
			&Request{Roots: roots("a"), Listing: true}},
		{"registration", annotations("nix-closure/roots", a, "nix-closure/registration", "true"),
			&Request{Roots: roots("a"), Listing: true, Registration: true}},
		{"writable", annotations("nix-closure/roots", a, "nix-closure/writable", "true"),
			&Request{Roots: roots("a"), Listing: true, Writable: true}},
		{"writable overlay", annotations("nix-closure/roots", a, "nix-closure/writable", "true", "nix-closure/mode",
			"overlay"), &Request{Roots: roots("a"), Listing: true, Writable: true, Mode: ModeOverlay}},
		{"containerd's namespace", annotations("nix-closure/roots", a, "io.kubernetes.cri.sandbox-namespace", "team-a"),
			&Request{Roots: roots("a"), Listing: true, Namespace: "team-a"}},
		{"CRI-O's namespace", annotations("nix-closure/roots", a, "io.kubernetes.pod.namespace", "team-a"),
			&Request{Roots: roots("a"), Listing: true, Namespace: "team-a"}},
		{"both namespaces", annotations("nix-closure/roots", a, "io.kubernetes.cri.sandbox-namespace", "team-a",
			"io.kubernetes.pod.namespace", "team-b"),
			&Request{Roots: roots("a"), Listing: true, Namespace: "team-a",
				IgnoredNamespace: "io.kubernetes.pod.namespace"}},

		{"sandbox of containerd", annotations("nix-closure/roots", a, criType, "sandbox", criID, containerID),
			&Request{Sandbox: true}},
		{"sandbox of CRI-O", annotations("nix-closure/roots", a, criType2, "sandbox", criID2, containerID),
			&Request{Sandbox: true}},
		{"sandbox with a mistake", annotations("nix-closure/rots", a, "web.nix-closure/roots", "x", criType, "sandbox",
			criID, containerID), &Request{Sandbox: true}},
		{"container of containerd", annotations("nix-closure/roots", a, criType, "container"),
			&Request{Roots: roots("a"), Listing: true}},
		{"container of CRI-O", annotations("nix-closure/roots", a, criType2, "container"),
			&Request{Roots: roots("a"), Listing: true}},
		{"sandbox in other letters", annotations("nix-closure/roots", a, criType, "Sandbox"),
			&Request{Roots: roots("a"), Listing: true}},

		{"for this container", annotations("web.nix-closure/roots", a, criName, "web"),
			&Request{Roots: roots("a"), Listing: true}},
		{"for this container of CRI-O", annotations("web.nix-closure/roots", a, criName2, "web"),
			&Request{Roots: roots("a"), Listing: true}},
		{"for another container", annotations("db.nix-closure/roots", a, "db.nix-closure/listing", "no", criName,
			"web"), nil},
		{"for a container whose name ends the same", annotations("myweb.nix-closure/roots", a, criName, "web"), nil},
		{"for a container whose name begins the same", annotations("web.nix-closure/roots", a, criName, "web2"), nil},
		{"for a container in other letters", annotations("Web.nix-closure/roots", a, criName, "web"), nil},
		{"for a container with a dot in its name", annotations("web.x.nix-closure/roots", a, criName, "web.x"),
			&Request{Roots: roots("a"), Listing: true}},
		{"own roots win", annotations("nix-closure/roots", a, "web.nix-closure/roots", b, criName, "web"),
			&Request{Roots: roots("b"), Listing: true}},
		{"roots of another do not", annotations("nix-closure/roots", a, "db.nix-closure/roots", b, criName, "web"),
			&Request{Roots: roots("a"), Listing: true}},
		{"own closure-info in place of roots",
			annotations("nix-closure/roots", a, "web.nix-closure/closure-info", b, criName, "web"),
			&Request{ClosureInfo: named("b"), Listing: true}},
		{"own roots in place of a closure-info",
			annotations("nix-closure/closure-info", a, "web.nix-closure/roots", b, criName, "web"),
			&Request{Roots: roots("b"), Listing: true}},
		{"own mode, the pod's roots", annotations("nix-closure/roots", a, "nix-closure/mode", "overlay",
			"web.nix-closure/mode", "bind", criName, "web"),
			&Request{Roots: roots("a"), Mode: ModeBind, Listing: true}},
		{"own listing, the pod's mode", annotations("nix-closure/roots", a, "nix-closure/mode", "bind",
			"web.nix-closure/listing", "false", criName, "web"),
			&Request{Roots: roots("a"), Mode: ModeBind}},
		{"own value in place of a wrong one",
			annotations("nix-closure/roots", a, "nix-closure/mode", "wrong", "web.nix-closure/mode", "bind", criName,
				"web"),
			&Request{Roots: roots("a"), Mode: ModeBind, Listing: true}},
	} {
		got, err := ParseAnnotations(nixStore, engineOf(c.in), containerID, c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

// A typing mistake must never weaken the isolation: each has a message, to the
// letter.
func TestParseAnnotationsRefuses(t *testing.T) {
	a := storePath("a")
	const (
		notHash = "the hash is not 32 characters of Nix's base 32"
		notName = "the name is not 1 to 211 characters of letters, digits and +-._?=, or begins in a way Nix forbids"
		name    = "io.kubernetes.cri.container-name"
		unknown = "unknown; the keys are roots, closure-info, mode, registration, listing, writable"
		neither = "annotations: neither nix-closure/roots nor nix-closure/closure-info is given; name at least one " +
			"store path"
		both    = "annotations: both nix-closure/roots and nix-closure/closure-info are given; take one of them"
		empty   = "is empty; name at least one store path"
		outside = "not below the store directory /nix/store"
	)
	for _, c := range []struct {
		in   map[string]string
		want string
	}{
		{annotations("nix-closure/roots", ""), "annotation nix-closure/roots: " + empty},
		{annotations("nix-closure/roots", " ,\n\t,"), "annotation nix-closure/roots: " + empty},
		{annotations("nix-closure/roots", "hello"), `annotation nix-closure/roots: "hello": ` + outside},
		{annotations("nix-closure/roots", "/nix/store"), `annotation nix-closure/roots: "/nix/store": ` + outside},
		{annotations("nix-closure/roots", "/nix/store/"), `annotation nix-closure/roots: "/nix/store/": ` + notHash},
		{annotations("nix-closure/roots", a+" /nix/store/.."),
			`annotation nix-closure/roots: "/nix/store/..": ` + notHash},
		{annotations("nix-closure/roots", "/nix/storeX/"+string(named("a"))),
			`annotation nix-closure/roots: "/nix/storeX/` + string(named("a")) + `": ` + outside},
		{annotations("nix-closure/roots", a+";"+storePath("b")),
			`annotation nix-closure/roots: "` + a + ";" + storePath("b") + `": ` + notName},
		{annotations("nix-closure/roots", a+"\u00a0"+storePath("b")),
			`annotation nix-closure/roots: "` + a + `\u00a0` + storePath("b") + `": ` + notName},
		{annotations("nix-closure/roots", a+"\x00"), `annotation nix-closure/roots: "` + a + `\x00": ` + notName},
		{annotations("nix-closure/roots", `"`+a+`"`), `annotation nix-closure/roots: "\"` + a + `\"": ` + outside},
		{annotations("nix-closure/roots", a+"/../x"),
			`annotation nix-closure/roots: "` + a +
				"/../x\": has an empty component, or `.` or `..`, below the store path"},
		{annotations("nix-closure/roots", "/nix/store/*-hello"),
			`annotation nix-closure/roots: "/nix/store/*-hello": ` + notHash},

		{annotations("nix-closure/closure-info", ""), "annotation nix-closure/closure-info: " + empty},
		{annotations("nix-closure/closure-info", "/etc"), `annotation nix-closure/closure-info: "/etc": ` + outside},
		{annotations("nix-closure/closure-info", a+"/store-paths"),
			`annotation nix-closure/closure-info: "` + a +
				`/store-paths": below a store path; the closure-info must be one itself`},
		{annotations("nix-closure/closure-info", a+"/"),
			`annotation nix-closure/closure-info: "` + a +
				`/": below a store path; the closure-info must be one itself`},
		{annotations("nix-closure/closure-info", a+" "+storePath("b")),
			`annotation nix-closure/closure-info: "` + a + " " + storePath("b") + `": ` + notName},
		{annotations("nix-closure/closure-info", " "+a),
			`annotation nix-closure/closure-info: " ` + a + `": ` + outside},

		{annotations("nix-closure/mode", ""),
			`annotation nix-closure/mode: "" is not a mode; use auto, overlay or bind`},
		{annotations("nix-closure/roots", a, "nix-closure/mode", "Bind"),
			`annotation nix-closure/mode: "Bind" is not a mode; use auto, overlay or bind`},
		{annotations("nix-closure/roots", a, "nix-closure/mode", "bind "),
			`annotation nix-closure/mode: "bind " is not a mode; use auto, overlay or bind`},

		{annotations("nix-closure/roots", a, "nix-closure/listing", ""),
			`annotation nix-closure/listing: "" is neither true nor false`},
		{annotations("nix-closure/roots", a, "nix-closure/listing", "False"),
			`annotation nix-closure/listing: "False" is neither true nor false`},
		{annotations("nix-closure/roots", a, "nix-closure/listing", "0"),
			`annotation nix-closure/listing: "0" is neither true nor false`},
		{annotations("nix-closure/roots", a, "nix-closure/registration", "no"),
			`annotation nix-closure/registration: "no" is neither true nor false`},
		{annotations("nix-closure/roots", a, "nix-closure/writable", "yes"),
			`annotation nix-closure/writable: "yes" is neither true nor false`},
		{annotations("nix-closure/roots", a, "nix-closure/writable", "true", "nix-closure/mode", "bind"),
			"annotations: nix-closure/writable is true, which one overlay with a layer in memory does, and " +
				"nix-closure/mode is bind; ask for mode overlay or auto"},

		{annotations("nix-closure/root", a), "annotation nix-closure/root: " + unknown},
		{annotations("nix-closure/roots", a, "nix-closure/Listing", "true"),
			"annotation nix-closure/Listing: " + unknown},
		{annotations("nix-closure/roots", a, "nix-closure/", ""), "annotation nix-closure/: " + unknown},
		{annotations("nix-closure/roots", a, "nix-closure/roots/x", a), "annotation nix-closure/roots/x: " + unknown},
		{annotations("nix-closure/roots", a, "nix-closure/web.nix-closure/roots", a),
			"annotation nix-closure/web.nix-closure/roots: " + unknown},

		{annotations("nix-closure/mode", "bind"), neither},
		{annotations("nix-closure/listing", "false", "web.nix-closure/mode", "bind", name, "web"), neither},
		{annotations("nix-closure/roots", a, "nix-closure/closure-info", a), both},
		{annotations("web.nix-closure/roots", a, "web.nix-closure/closure-info", a, name, "web"), both},

		{annotations("web.nix-closure/roots", a),
			`annotation web.nix-closure/roots: is for one container of a pod, and the engine does not say which one ` +
				`this is; leave out "web."`},
		{annotations("nix-closure/roots", a, "web.nix-closure/mode", "bind", name, ""),
			`annotation web.nix-closure/mode: is for one container of a pod, and the engine does not say which one ` +
				`this is; leave out "web."`},
		{annotations(".nix-closure/roots", a), "annotation .nix-closure/roots: no container's name before the dot"},
		{annotations(".nix-closure/roots", a, name, "web"),
			"annotation .nix-closure/roots: no container's name before the dot"},
		{annotations("web.nix-closure/roots", "x", name, "web"), `annotation web.nix-closure/roots: "x": ` + outside},
		{annotations("web.nix-closure/rots", a, name, "web"), "annotation web.nix-closure/rots: " + unknown},
		{annotations("nix-closure/rots", a, "web.nix-closure/roots", a, name, "web"),
			"annotation nix-closure/rots: " + unknown},
		// A closure-info for the pod is wrong although this container has its own mode.
		{annotations("nix-closure/closure-info", "", "web.nix-closure/mode", "bind", name, "web"),
			"annotation nix-closure/closure-info: " + empty},
	} {
		got, err := ParseAnnotations(nixStore, engineOf(c.in), containerID, c.in)
		if err == nil || err.Error() != c.want {
			t.Errorf("%q:\n%v\nwant\n%s", c.in, err, c.want)
		}
		if got != nil {
			t.Errorf("%q: %+v with an error", c.in, got)
		}
	}
}

// The same mistakes give the same message each time.
func TestParseAnnotationsIsStable(t *testing.T) {
	in := annotations("nix-closure/a", "", "nix-closure/b", "", "nix-closure/c", "", "nix-closure/mode", "x",
		"nix-closure/listing", "x")
	for range 50 {
		if _, err := ParseAnnotations(nixStore, UnknownEngine, "", in); err == nil ||
			!strings.HasPrefix(err.Error(), "annotation nix-closure/a: ") {
			t.Fatal(err)
		}
	}
}

func TestAnnotated(t *testing.T) {
	for key, want := range map[string]bool{
		"nix-closure/roots": true, "nix-closure/": true, "nix-closure/anything": true, "web.nix-closure/roots": true,
		".nix-closure/roots": true,
		"":                   false, "nix-closure": false, "nix-closures/roots": false, "xnix-closure/roots": false,
		"x/nix-closure/roots": false, "NIX-CLOSURE/roots": false,
	} {
		if got := Annotated(annotations("other", "", key, "")); got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
	if Annotated(nil) {
		t.Error("nil")
	}
}

// Whatever the annotations are: they ask for nothing, or for something in full, or
// they are an error.
func FuzzAnnotations(f *testing.F) {
	a := storePath("a")
	f.Add("nix-closure/roots", a, "nix-closure/mode", "bind", "")
	f.Add("nix-closure/roots", a+","+storePath("b")+"/bin/x", "nix-closure/listing", "false", "")
	f.Add("nix-closure/closure-info", a, "web.nix-closure/roots", a, "web")
	f.Add("web.nix-closure/roots", a, "nix-closure/roots", "", "web")
	f.Add("nix-closure/rots", a, ".nix-closure/roots", a, "")
	f.Add("nix-closure/roots", "/nix/store/..", "io.kubernetes.cri.container-type", "sandbox", "web")
	f.Add("x.nix-closure/nix-closure/roots", a, "nix-closure/nix-closure/roots", a, "x")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, name string) {
		in := annotations(key1, value1, key2, value2)
		if name != "" {
			in["io.kubernetes.cri.container-name"] = name
		}
		got, err := ParseAnnotations(nixStore, Containerd, containerID, in)
		again, errAgain := ParseAnnotations(nixStore, Containerd, containerID, in)
		if !reflect.DeepEqual(got, again) || (err == nil) != (errAgain == nil) {
			t.Errorf("%q: first %+v, %v, then %+v, %v", in, got, err, again, errAgain)
		}
		if err != nil && got != nil {
			t.Errorf("%q: %+v and %v", in, got, err)
		}
		podWide := strings.HasPrefix(key1, Prefix) || strings.HasPrefix(key2, Prefix)
		if podWide && got == nil && err == nil {
			t.Errorf("%q: nothing is asked for", in)
		}
		if got == nil {
			return
		}
		// Two keys are too few to claim to be a sandbox and to be believed.
		if !Annotated(in) || got.Sandbox {
			t.Errorf("%q: %+v", in, got)
		}
		if (len(got.Roots) == 0) == (got.ClosureInfo == "") {
			t.Errorf("%q: %+v", in, got)
		}
		for i, r := range append(slices.Clone(got.Roots), got.ClosureInfo) {
			if r == "" {
				continue
			}
			if _, err := closure.ParseBaseName(string(r)); err != nil {
				t.Errorf("%q: %q: %v", in, r, err)
			}
			if slices.Contains(got.Roots[:min(i, len(got.Roots))], r) && i < len(got.Roots) {
				t.Errorf("%q: %q is there twice", in, r)
			}
			if !strings.Contains(value1, nixStore.Path(r)) && !strings.Contains(value2, nixStore.Path(r)) {
				t.Errorf("%q: nobody asked for %q", in, r)
			}
		}
		if !slices.Contains([]Mode{"", ModeAuto, ModeOverlay, ModeBind}, got.Mode) {
			t.Errorf("%q: mode %q", in, got.Mode)
		}
	})
}
