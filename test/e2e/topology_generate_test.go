// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"math/rand/v2"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// topology is what a host mounts, and what a container of it.
type topology struct {
	dir     string   // on the host; the bundle is in it
	kinds   []string // what it is made of
	steps   []string // shell commands of the host, before the container
	undo    []string // and after it, where its mount namespace's end does not do
	late    []string // commands for when the container runs
	again   string   // a command that takes back what late did
	meet    string   // a directory of the container that the host sees too, for that
	mounts  []object // of config.json
	volumes []string // or podman's options
	root    string   // the container's root, empty: the bundle's rootfs
	image   []string // commands that make more of that, run in it
	podman  bool
	// precreate: podman has the hook file for that stage too.
	precreate bool
	runtime   string
	mode      string // empty: no annotation for it
	admin     bool   // CAP_SYS_ADMIN
	userns    bool   // a user namespace, of the host's ids
	device    bool   // may read block devices
	readonly,
	listing bool
}

// spot is a file or directory of the host that something may be made of.
type spot struct {
	path  string
	depth int  // of overlays, of what it is on
	file  bool // not a directory
	tree  bool // what it is about is mounted below it
	above bool // the topology's directory is in it, so that layers beside it would overlap
}

// generator makes one topology.
type generator struct {
	*rand.Rand
	host *simulated
	t    *topology
	n    int // for names
	// What there is one of: a directory in memory, and mounts on these.
	memory, named, onNix bool
	// linked tells whether /link of the image leads elsewhere and is not used yet.
	linked bool
	// used are destinations, and nesting those in which there may be others.
	used, nesting []string
}

// generate makes the topology that belongs to a seed, in a directory of a host.
func generate(host *simulated, seed1, seed2 uint64, dir string) *topology {
	g := &generator{Rand: rand.New(rand.NewPCG(seed1, seed2)), host: host, t: &topology{dir: dir, listing: true}}
	t := g.t
	t.runtime = pick(g, runtimes)
	t.podman = g.IntN(9) == 0
	t.admin = g.IntN(8) > 0
	t.userns = !t.podman && g.IntN(8) == 0
	t.readonly = g.IntN(4) == 0
	if g.IntN(5) == 0 {
		t.mode = "bind"
	}
	t.listing = g.IntN(10) > 0
	if g.IntN(4) == 0 {
		g.kind("all of the host is shared")
		g.step("mount --make-rshared /")
	}
	g.chooseImage()
	count := 1 + g.IntN(3)
	if g.IntN(100) < 55 {
		// One and no more: what is found of a second would hide that nothing is of the first.
		at := g.IntN(count)
		for i := range count {
			if i == at {
				g.secretMount()
			} else {
				g.plainMount()
			}
		}
	} else {
		for range count {
			g.innocentMount()
		}
	}
	return t
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// choose calls one of some functions.
func (g *generator) choose(from ...func()) { pick(g, from)() }

func (g *generator) kind(format string, args ...any) {
	g.t.kinds = append(g.t.kinds, fmt.Sprintf(format, args...))
}

func (g *generator) step(format string, args ...any) {
	g.t.steps = append(g.t.steps, fmt.Sprintf(format, args...))
}

// fresh is a name that nothing has.
func (g *generator) fresh() string {
	g.n++
	return fmt.Sprintf("%s/%c%d", g.t.dir, 'a'+rune(g.IntN(26)), g.n)
}

// freshDir is a new directory.
func (g *generator) freshDir() string {
	dir := g.fresh()
	g.step("mkdir %s", dir)
	return dir
}

// beside is a new directory for an overlay of a spot: on the same file system, or in
// memory.
func (g *generator) beside(s spot) string {
	if !s.above && g.IntN(2) == 0 {
		return g.freshDir()
	}
	memory := g.t.dir + "/memory"
	if !g.memory {
		g.memory = true
		g.step("mkdir %[1]s; mount -t tmpfs tmpfs %[1]s", memory)
	}
	g.n++
	dir := fmt.Sprintf("%s/m%d", memory, g.n)
	g.step("mkdir %s", dir)
	return dir
}

// upper are the options that make an overlay of a spot writable.
func (g *generator) upper(s spot) []string {
	upper := g.beside(s)
	g.prepare(upper)
	work := upper + ".work"
	g.step("mkdir %s", work)
	return []string{"upperdir=" + upper, "workdir=" + work}
}

// quote makes a word of the shell.
func quote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:"

// escape makes a layer's name of a path, in an overlay's options.
func escape(s string) string { return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(s) }

// oddNames are those that parsers trip over.
var oddNames = []string{
	"with space", "co:lon", "com,ma", `back\slash`, "new\nline", "tab\tbed", `quo"te`, "apos'trophe", `\040`,
	"a,lowerdir=b", "#hash", "ümlaut", "x - overlay overlay rw", "-", "e,upperdir=f", "trailing ", `end\`,
}

// chooseImage makes more of the image, or nothing.
func (g *generator) chooseImage() {
	image := func(kind, command string) func() {
		return func() {
			g.kind("image: %s", kind)
			g.t.image = append(g.t.image, command)
		}
	}
	nothing := func() {}
	g.choose(
		nothing, nothing, nothing, nothing,
		image("own /nix/store", "mkdir -p nix/store; echo image >nix/store/of-the-image"),
		image("own /nix", "mkdir -p nix/var/nix/profiles; echo image >nix/var/nix/profiles/mine"),
		image("/nix is a link to /etc", "mkdir -p etc; ln -s /etc nix"),
	)
	if g.IntN(10) == 0 {
		to := pick(g, []string{storeDir, "/nix", "/nix/var/nix"})
		image("/link leads to "+to, "mkdir -p ."+to+"; ln -s "+to+" link")()
		g.linked = true
	}
}

// plainMount adds a mount that is nobody's trouble.
func (g *generator) plainMount() {
	if g.t.podman || g.IntN(2) == 0 {
		s := spot{path: g.freshDir()}
		g.bind(s, g.destination(s))
		return
	}
	d := g.destination(spot{})
	g.nesting = append(g.nesting, d)
	options := []string{"nosuid", "size=1m"}
	g.mount(object{"destination": d, "type": "tmpfs", "source": "tmpfs", "options": options})
}

// destination is where something is mounted that is not about the store.
func (g *generator) destination(s spot) string {
	d := g.newDestination()
	switch {
	case s.file: // would be in the way of directories
		return d
	case g.linked && g.IntN(3) == 0:
		g.linked = false
		g.kind("its destination is a link")
		return "/link"
	case g.t.podman:
	case len(g.used) > 0 && g.t.meet == "" && g.IntN(8) == 0:
		g.kind("stacked in the container")
		return pick(g, g.used)
	case len(g.nesting) > 0 && g.IntN(4) == 0:
		g.kind("in another mount of the container")
		d = pick(g, g.nesting) + d
	}
	g.used = append(g.used, d)
	return d
}

// destinations are numbered.
var destinations = []string{"/x", "/mnt/y", "/var/lib/z", "/tmp/t", "/opt/with space", "/host"}

func (g *generator) newDestination() string {
	g.n++
	return fmt.Sprintf("%s%d", pick(g, destinations), g.n)
}

// mount adds a mount to config.json.
func (g *generator) mount(m object) {
	g.t.mounts = append(g.t.mounts, m)
}

// bind adds a bind mount of a spot, and says how that spells its source.
func (g *generator) bind(s spot, destination string, options ...string) {
	if g.t.podman {
		g.volume(s, destination, slices.Contains(options, "rw"))
		return
	}
	source := s.path
	clean := filepath.Clean(source) == source
	g.choose(
		func() {}, func() {}, func() {}, func() {},
		func() {
			link := g.fresh()
			g.step("ln -s %s %s", quote(source), link)
			g.kind("source is a symlink")
			source = link
		},
		func() {
			if clean {
				g.kind("source not clean")
				source = unclean(source)
			}
		},
		func() {
			g.kind("source below /proc/self/root")
			source = "/proc/self/root" + source
		},
		func() {
			if g.t.runtime == "runc" { // which takes it from the bundle, as the specification says
				g.kind("source relative")
				source = "../../.." + source
			}
		},
	)
	if len(options) == 0 {
		options = []string{"rbind"}
		if !s.tree && g.IntN(2) == 0 {
			options = []string{"bind"}
		}
		options = append(options, pick(g, []string{"ro", "rw"}))
		if p := pick(g, []string{"", "", "private", "rprivate"}); p != "" {
			options = append(options, p)
		}
	}
	kind := pick(g, []string{"bind", "bind", "none"})
	if g.t.runtime == "crun" {
		kind = "bind"
	}
	g.mount(object{"destination": destination, "type": kind, "source": source, "options": options})
}

// volume is bind for podman.
func (g *generator) volume(s spot, destination string, writable bool) {
	option := ""
	switch {
	case writable:
	case !s.file && s.depth < 2 && g.IntN(3) == 0:
		option = ":O"
		g.kind("podman -v :O")
	case g.IntN(2) == 0:
		option = ":ro"
	}
	g.t.volumes = append(g.t.volumes, "-v", s.path+":"+strings.ReplaceAll(destination, " ", "")+option)
}

// unclean is another spelling of a path.
func unclean(p string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	if first == "" {
		return "/./"
	}
	return strings.TrimSuffix("/"+first+"/.././/"+first+"/./"+rest, "/")
}

// data is something of the host that is no secret.
func (g *generator) data() spot {
	s := spot{}
	g.choose(
		func() {
			s.path = g.freshDir()
			g.step("mkdir %[1]s/sub; echo data >%[1]s/sub/file", s.path)
		},
		func() {
			s.path = g.freshDir()
			g.step("mount -t tmpfs tmpfs %[1]s; mkdir -p %[1]s/store %[1]s/var/nix", s.path)
			g.kind("data on a tmpfs")
		},
		func() {
			s.path = g.freshDir()
			g.step("mkdir -p %[1]s/nix/store/sub; echo data >%[1]s/nix/store/file", s.path)
			g.kind("data that looks like a store")
		},
		func() {
			s.path = "/usr/share/misc"
			g.kind("a directory of the system")
		},
		func() {
			image, dir := g.fresh(), g.freshDir()
			g.step("truncate -s 4M %[1]s; mkfs.ext4 -q %[1]s; mount -o loop %[1]s %[2]s; mkdir %[2]s/store", image, dir)
			g.kind("data on a loop device")
			s.path = dir
		},
	)
	return s
}

// innocentMount adds a mount that shows no secret, however it is made.
func (g *generator) innocentMount() {
	named := spot{path: g.host.seed.paths["named"]}
	ordinary := func() {
		s := g.transform(g.data(), g.IntN(3))
		g.bind(s, g.destination(s))
	}
	g.choose(
		ordinary, ordinary, ordinary, ordinary, ordinary,
		g.plainMount,
		func() {
			if g.t.podman {
				ordinary()
				return
			}
			g.kind("config.json has an overlay of data")
			g.overlayMount(g.transform(g.data(), g.IntN(2)))
		},
		func() {
			g.kind("a store path by name")
			destination := g.destination(named)
			if !g.named && g.IntN(2) == 0 {
				g.named, destination = true, named.path
			}
			g.bind(named, destination, "bind", "ro")
		},
		func() {
			g.kind("a store path by an alias")
			alias := g.freshDir()
			g.step("mount --bind %s %s", named.path, alias)
			s := spot{path: alias}
			g.bind(s, g.destination(s), "bind", "ro")
		},
		func() {
			if g.onNix {
				ordinary()
				return
			}
			g.onNix = true
			g.kind("a harmless directory on /nix")
			g.bind(spot{path: g.freshDir()}, "/nix", "rbind", "rw", "rprivate")
		},
		func() {
			root := g.transform(spot{path: "/images/plain"}, 1)
			if root.tree || root.depth > 1 {
				return
			}
			g.kind("root is an overlay of an image")
			g.rootOverlay(escape(root.path))
		},
		func() {
			g.kind("the volume is shared, and gets data after the start")
			g.lateMount("mount -t tmpfs tmpfs %s")
		},
	)
}

// bases are the places of the host that show what no container may see.
func (g *generator) bases() []spot {
	l := g.host.layout
	state := "/nix/var/nix"
	all := []spot{
		{path: storeDir, depth: l.depth}, {path: storeDir, depth: l.depth}, {path: storeDir, depth: l.depth},
		{path: "/nix", depth: l.depthNix, tree: true}, {path: "/nix", depth: l.depthNix, tree: true},
		{path: "/nix/var", depth: l.depthNix}, {path: state, depth: l.depthNix}, {path: state, depth: l.depthNix},
		{path: state + "/db", depth: l.depthNix}, {path: state + "/profiles", depth: l.depthNix},
		{path: state + "/daemon-socket", depth: l.depthNix}, {path: storeDir + "/.links", depth: l.depth},
		{path: state + "/daemon-socket/socket", file: true}, {path: state + "/db/db.sqlite", file: true},
		{path: "/", tree: true, above: true}, {path: "/", tree: true, above: true},
		{path: runtimeDir}, {path: "/run", tree: true},
		{path: runtimeDir + "/" + g.host.seed.secretFile(), file: true},
	}
	for _, p := range l.backing {
		s := spot{path: p, tree: true, file: p == l.image}
		if p == "/layers/merged" {
			s.depth = 1
		}
		all = append(all, s, s)
	}
	return all
}

// secretMount adds one mount that shows a secret.
func (g *generator) secretMount() {
	bound := func() {
		s := pick(g, g.bases())
		g.kind("secret: %s", s.path)
		s = g.transform(s, g.IntN(4))
		g.bind(s, g.destination(s))
	}
	kinds := []func(){
		bound, bound, bound, bound, bound, bound,
		g.secretRoot,
		func() {
			g.kind("secret: mounted below a volume after the start")
			g.lateMount("mount --bind " + pick(g, []string{storeDir, "/nix", "/nix/var/nix"}) + " %s")
		},
		func() {
			l := g.host.layout
			from := []spot{{path: storeDir, depth: l.depth}, {path: "/nix", depth: l.depthNix, tree: true}}
			s := g.transform(pick(g, from), g.IntN(2))
			g.kind("secret: on the store directory")
			g.bind(s, pick(g, []string{storeDir, "/nix"}), "rbind", "rprivate")
		},
	}
	if !g.t.podman {
		overlay := func() {
			var fit []spot
			for _, b := range g.bases() {
				if !b.file && b.depth < 2 {
					fit = append(fit, b)
				}
			}
			base := pick(g, fit)
			g.kind("secret: config.json has an overlay of %s", base.path)
			g.overlayMount(g.transform(base, g.IntN(2)))
		}
		kinds = append(kinds, overlay, overlay, overlay, g.secretDisk)
	}
	pick(g, kinds)()
}

// secretDisk mounts the disk that the store is on, or shows it.
func (g *generator) secretDisk() {
	g.choose(
		func() {
			g.kind("secret: the store's disk, mounted by config.json")
			options := []string{"ro"}
			// A file system is mounted read-only or not, once for all of its mounts.
			if !strings.HasPrefix(g.host.layout.name, "live") {
				options = []string{"rw"}
			}
			g.mount(object{"destination": g.newDestination(), "type": "ext4", "source": g.host.device,
				"options": options})
		},
		func() {
			g.kind("secret: the store's block device")
			g.t.device = true
			s := g.transform(spot{path: g.host.device, file: true}, g.IntN(2))
			g.bind(s, g.destination(s), "bind")
		},
	)
}

// secretRoot makes a root that shows a secret.
func (g *generator) secretRoot() {
	depth := g.host.layout.depth
	g.choose(
		func() {
			g.kind("secret: mounted in the bundle's root")
			dir := g.t.dir + "/b/rootfs/data"
			g.step("mkdir -p %s; mount --bind %s %s", dir, pick(g, []string{storeDir, "/nix/var/nix"}), dir)
		},
		func() {
			g.kind("secret: root is an overlay of an image and of /nix")
			g.rootOverlay("/images/plain:/nix")
		},
		func() {
			if depth > 1 {
				g.kind("secret: root is an overlay of the host")
				g.rootOverlay("/run/image:/") // layers must not overlap
				return
			}
			g.kind("secret: root is an overlay of the store")
			g.rootOverlay("/images/plain:/nix/store")
		},
	)
}

// rootOverlay makes the root an overlay of these layers.
func (g *generator) rootOverlay(lower string) {
	root := g.freshDir()
	options := append([]string{"lowerdir=" + lower}, g.upper(spot{above: true})...)
	g.step("/prober mount overlay %s overlay %s", root, quote(strings.Join(options, ",")))
	g.t.root = root
	g.t.image = nil
	g.t.kinds = slices.DeleteFunc(g.t.kinds, func(k string) bool { return strings.HasPrefix(k, "image: ") })
}

// lateMount adds a volume whose mounts propagate on the host, and in which something
// is mounted when the container runs. The container does not ask for that.
func (g *generator) lateMount(command string) {
	if g.t.podman || g.t.meet != "" {
		g.plainMount()
		return
	}
	dir := g.freshDir()
	g.t.meet = g.newDestination()
	g.choose(
		func() { g.step("mount --bind %[1]s %[1]s; mount --make-shared %[1]s", dir) },
		func() {
			g.kind("all of the host is shared")
			g.step("mount --make-rshared /")
		},
		func() {
			if g.t.root != "" || g.t.readonly {
				g.step("mount --make-rshared /")
				return
			}
			g.kind("in the container's root")
			g.step("mount --make-rshared /")
			dir = g.t.dir + "/b/rootfs/meet"
			g.step("mkdir %s", dir)
			g.t.meet = "/meet"
		},
	)
	g.step("mkdir %s/late", dir)
	g.t.late = []string{fmt.Sprintf(command, dir+"/late"), "touch " + dir + "/go"}
	g.t.again = fmt.Sprintf("rm -f %[1]s/ready %[1]s/go; umount %[1]s/late || :", dir)
	if g.t.meet == "/meet" {
		return
	}
	options := []string{"rbind", "rw"}
	if p := pick(g, []string{"", "private", "rprivate"}); p != "" {
		options = append(options, p)
		g.kind("private for the container")
	} else {
		g.kind("no propagation given")
	}
	g.mount(object{"destination": g.t.meet, "type": "bind", "source": dir, "options": options})
}

// overlayMount adds an overlay to config.json.
func (g *generator) overlayMount(s spot) {
	if s.file || s.depth > 1 {
		g.bind(s, g.destination(s))
		return
	}
	name := escape(s.path)
	up := strings.Repeat("../", 12)
	empty := g.beside(s)
	link := func(in, target string) string {
		g.step("ln -s %s %s/layer", quote(target), in)
		return "layer"
	}
	bundle, rootfs := g.t.dir+"/b", g.t.dir+"/b/rootfs"
	names := map[string]func() string{
		"by its name":        func() string { return name },
		"relative":           func() string { return up + name[1:] },
		"not clean":          func() string { return unclean(name) },
		"below /proc":        func() string { return "/proc/self/cwd/" + up + name[1:] },
		"below /proc's root": func() string { return "/proc/self/root" + name },
		"a link":             func() string { return g.t.dir + "/" + link(g.t.dir, s.path) },
		"a link of the image": func() string {
			if g.t.root != "" {
				return name
			}
			return rootfs + "/" + link(rootfs, s.path)
		},
		"a link of the image, relative": func() string {
			if g.t.root != "" || g.t.runtime == "crun" {
				return up + name[1:]
			}
			g.step("mkdir %s/layer", bundle) // what it is not
			return link(rootfs, s.path)
		},
		"an odd name": func() string {
			dir := g.t.dir + "/" + pick(g, oddNames)
			g.step("mkdir %[2]s; mount --bind %[1]s %[2]s", quote(s.path), quote(dir))
			return escape(dir)
		},
	}
	how := pick(g, sorted(names))
	g.kind("its layer %s", how)
	name = names[how]()
	options := []string{"lowerdir=" + pick(g, []string{name + ":" + empty, empty + ":" + name})}
	if g.IntN(2) == 0 {
		options = append(options, g.upper(s)...)
	}
	g.mount(object{"destination": g.destination(s), "type": "overlay", "source": "overlay", "options": options})
}

// prepare makes some of an upper directory that is there in the store, too.
func (g *generator) prepare(upper string) {
	base := func(name string) string { return path.Base(g.host.seed.paths[name]) }
	g.choose(
		func() {},
		func() {
			g.kind("upper directory with names of the store")
			g.step("mkdir -p %[1]s/%[2]s/bin %[1]s/store/%[2]s %[1]s/nix/store", upper, base("foreign"))
		},
		func() {
			g.kind("upper directory with whiteouts")
			g.step("mknod %s/%s c 0 0; mkdir %[1]s/var", upper, base("named"))
		},
	)
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
