// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"path"
	"strings"
)

// transform makes of a spot another one, that shows as much, by mounts of the host.
func (g *generator) transform(s spot, times int) spot {
	for range times {
		s = g.transformOnce(s)
	}
	return s
}

func (g *generator) transformOnce(s spot) spot {
	if s.file {
		alias := g.fresh()
		g.step("touch %[2]s; mount --bind %[1]s %[2]s", quote(s.path), alias)
		g.kind("alias of a file")
		s.path = alias
		return s
	}
	all := []func(spot) spot{
		g.alias, g.aliasOfAlias, g.inside, g.hidden, g.moved, g.odd, g.vanishedAlias, g.stacked,
		g.renamedParent,
	}
	if s.depth < 2 {
		all = append(all, g.overlay, g.overlay, g.overlay, g.overlay, g.overlay, g.partOfOverlay, g.redirected)
	}
	if _, err := exec.LookPath("fuse-overlayfs"); err == nil {
		all = append(all, g.fuse)
	}
	if s.path == storeDir || s.path == "/nix" {
		all = append(all, g.diskAgain)
	}
	return pick(g, all)(s)
}

// bindOf is the command that mounts a spot somewhere.
func bindOf(s spot, target string) string {
	option := "--bind"
	if s.tree {
		option = "--rbind"
	}
	return fmt.Sprintf("mount %s %s %s", option, quote(s.path), quote(target))
}

func (g *generator) alias(s spot) spot {
	dir := g.freshDir()
	g.step("%s", bindOf(s, dir))
	g.kind("alias")
	s.path = dir
	return s
}

func (g *generator) aliasOfAlias(s spot) spot { return g.alias(g.alias(s)) }

// inside is a directory in which the spot is mounted.
func (g *generator) inside(s spot) spot {
	dir := g.freshDir()
	g.step("mkdir -p %[1]s/sub/dir; %[2]s", dir, bindOf(s, dir+"/sub/dir"))
	g.kind("mounted in a directory")
	return spot{path: dir, tree: true}
}

// hidden is like inside, and covered.
func (g *generator) hidden(s spot) spot {
	s = g.inside(s)
	g.step("%s", cover(s.path+"/sub/dir"))
	g.kind("hidden by a tmpfs")
	return s
}

// cover mounts on a mount point. What that is an alias of would get the same, if it
// were shared.
func cover(point string) string {
	return fmt.Sprintf("mount --make-rprivate %[1]s; mount -t tmpfs tmpfs %[1]s", point)
}

// unmount takes off what is mounted somewhere. If it were shared, what is mounted below
// would go where it is an alias of, too.
func unmount(point string) string {
	return fmt.Sprintf("mount --make-rprivate %[1]s; umount -l %[1]s", point)
}

// stacked is a directory with two mounts on it, of which the upper is the spot.
func (g *generator) stacked(s spot) spot {
	dir := g.freshDir()
	g.step("mount -t tmpfs tmpfs %s; %s", dir, bindOf(s, dir))
	g.kind("stacked on a tmpfs")
	s.path = dir
	return s
}

func (g *generator) moved(s spot) spot {
	s = g.alias(s)
	dir := g.freshDir()
	// A mount that is on a shared one cannot be moved.
	g.step("mount --make-private /; mount --move %s %s", s.path, dir)
	g.kind("moved")
	s.path = dir
	return s
}

func (g *generator) odd(s spot) spot {
	if g.t.podman {
		return g.alias(s)
	}
	g.n++
	dir := fmt.Sprintf("%s/%d%s", g.t.dir, g.n, pick(g, oddNames))
	g.step("mkdir %s; %s", quote(dir), bindOf(s, dir))
	g.kind("odd name")
	s.path = dir
	return s
}

// vanishedAlias is an alias of an alias whose file system is not mounted any more.
func (g *generator) vanishedAlias(s spot) spot {
	between, dir := g.freshDir(), g.freshDir()
	g.step("mount -t tmpfs tmpfs %[1]s; mkdir %[1]s/in; %[2]s; mount --rbind %[1]s/in %[3]s; %[4]s",
		between, bindOf(s, between+"/in"), dir, unmount(between))
	g.kind("alias of what is unmounted")
	s.path = dir
	return s
}

func (g *generator) renamedParent(s spot) spot {
	from, to := g.freshDir(), g.fresh()
	g.step("mkdir %[1]s/in; %[2]s; mv %[1]s %[3]s", from, bindOf(s, from+"/in"), to)
	g.kind("renamed mount point")
	s.path = to + "/in"
	return s
}

// diskAgain is another mount of the disk that the store is on. With a layer alone
// on it, it shows less.
func (g *generator) diskAgain(spot) spot {
	dir := g.freshDir()
	g.step("mount -t ext4 %s %s || mount -t ext4 -o ro %[1]s %[2]s", g.host.device, dir)
	g.kind("its disk mounted again")
	return spot{path: dir, above: g.host.layout.disk == "/"}
}

func (g *generator) fuse(s spot) spot {
	dir, empty := g.freshDir(), g.freshDir()
	source := s.path
	if strings.ContainsAny(source, `:,\`) {
		s = g.alias(s)
		source = s.path
	}
	// It has this mount namespace as long as it runs, and runs as long as that has it.
	g.step("fuse-overlayfs -f -o lowerdir=%s:%s %s >fuse.log 2>&1 & fuse=$! all=\"$all $!\"", quote(source), empty, dir)
	g.step("until mountpoint -q %s; do kill -0 $fuse; sleep 0.01; done", dir)
	g.t.undo = append(g.t.undo, "kill $all")
	g.kind("fuse-overlayfs")
	return spot{path: dir}
}

// layer is a layer of an overlay while it is mounted.
type layer struct {
	in    string // the directory to be in
	name  string // as a path
	after string // what is done when it is mounted
	raw   bool   // named by fsconfig(2)
}

// overlay is an overlay of the spot, whose layer has a name of some kind, now or
// when it was mounted.
func (g *generator) overlay(s spot) spot {
	named := map[string]func() layer{
		"by its name":   func() layer { return layer{name: s.path} },
		"relative":      func() layer { return layer{in: path.Dir(s.path), name: path.Base(s.path)} },
		"relative, up":  func() layer { return layer{in: g.t.dir, name: "../.." + s.path} },
		"not clean":     func() layer { return layer{name: unclean(s.path)} },
		"below /proc":   func() layer { return layer{in: s.path, name: "/proc/self/cwd"} },
		"by lowerdir+":  func() layer { return layer{name: s.path, raw: true} },
		"a link":        func() layer { return layer{name: g.link(s)} },
		"a link once":   func() layer { l := g.link(s); return layer{name: l, after: "rm " + l} },
		"another link":  func() layer { l := g.link(s); return layer{name: l, after: "ln -snf /usr/share/misc " + l} },
		"an odd name":   func() layer { return layer{name: g.odd(s).path} },
		"odd, relative": func() layer { o := g.odd(s).path; return layer{in: path.Dir(o), name: path.Base(o)} },
		"unmounted": func() layer {
			p := g.alias(s).path
			return layer{name: p, after: unmount(p)}
		},
		"moved": func() layer {
			p, to := g.alias(s).path, g.freshDir()
			return layer{name: p, after: fmt.Sprintf("mount --make-private /; mount --move %s %s", p, to)}
		},
		"covered": func() layer {
			p := g.alias(s).path
			return layer{name: p, after: cover(p)}
		},
		"renamed": func() layer {
			p := g.renamable(s)
			return layer{name: p + "/in", after: fmt.Sprintf("mv %s %s", p, g.fresh())}
		},
		"renamed, and another there": func() layer {
			p := g.renamable(s)
			return layer{name: p + "/in", after: fmt.Sprintf("mv %[1]s %[2]s; mkdir -p %[1]s/in", p, g.fresh())}
		},
		"unmounted, and another there": func() layer {
			p := g.alias(s).path
			return layer{name: p, after: fmt.Sprintf("%s; echo >%s/file", unmount(p), p)}
		},
	}
	how := pick(g, sorted(named))
	l := named[how]()
	g.kind("overlay, layer %s", how)
	dir := g.mountOverlay(s, l)
	return spot{path: dir, depth: s.depth + 1}
}

// mountOverlay mounts an overlay of a spot, by that name, and of an empty directory.
func (g *generator) mountOverlay(s spot, l layer) string {
	dir, empty := g.freshDir(), g.beside(s)
	command := ""
	if l.in != "" {
		command = fmt.Sprintf("cd %s && ", quote(l.in))
	}
	if l.raw {
		command += fmt.Sprintf("/prober fsmount %s overlay lowerdir+=%s lowerdir+=%s", dir, quote(l.name), empty)
	} else {
		layers := []string{escape(l.name), empty}
		if l.in == "" && g.IntN(2) == 0 {
			layers = []string{empty, escape(l.name)}
		}
		options := []string{"lowerdir=" + strings.Join(layers, ":")}
		if g.IntN(2) == 0 {
			options = append(options, g.upper(s)...)
			g.Shuffle(len(options), func(i, j int) { options[i], options[j] = options[j], options[i] })
		}
		command += fmt.Sprintf("/prober mount overlay %s overlay %s", dir, quote(strings.Join(options, ",")))
	}
	g.step("(%s)", command)
	if l.after != "" {
		g.step("%s", l.after)
	}
	return dir
}

// partOfOverlay is a directory of an overlay, that alone is mounted.
func (g *generator) partOfOverlay(s spot) spot {
	if s.path == "/" || strings.HasPrefix(s.path, g.t.dir) {
		return g.overlay(s)
	}
	// What is mounted on it is not in the overlay, so that this may show less.
	around := spot{path: path.Dir(s.path), above: path.Dir(s.path) == "/"}
	whole := g.mountOverlay(around, layer{name: around.path})
	part := g.freshDir()
	g.step("mount --bind %s %s; umount %[3]s", quote(whole+"/"+path.Base(s.path)), part, whole)
	g.kind("part of an overlay")
	return spot{path: part, depth: s.depth + 1}
}

// redirected is a directory of an overlay that is in none of its lower layers, and shows
// one of theirs by another name.
func (g *generator) redirected(s spot) spot {
	name := path.Base(g.host.seed.paths["foreign"])
	if s.path != storeDir && !strings.HasSuffix(s.path, "/store") && !strings.HasPrefix(s.path, "/layers/lower") {
		return g.overlay(s)
	}
	whole, part, upper := g.freshDir(), g.freshDir(), g.freshDir()
	g.step("mkdir -p %[1]s/sub/x %[1]s.work; /prober xattr %[1]s/sub/x trusted.overlay.redirect /%s", upper, name)
	g.step("/prober mount overlay %s overlay %s", whole,
		quote(fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%[2]s.work,redirect_dir=on", escape(s.path), upper)))
	g.step("mount --bind %[1]s/sub %s; umount %[1]s", whole, part)
	g.kind("redirected in an overlay")
	return spot{path: part, depth: s.depth + 1}
}

func (g *generator) link(s spot) string {
	link := g.fresh()
	g.step("ln -s %s %s", quote(s.path), link)
	return link
}

// renamable is a directory with the spot mounted on in.
func (g *generator) renamable(s spot) string {
	dir := g.freshDir()
	g.step("mkdir %s/in; %s", dir, bindOf(s, dir+"/in"))
	return dir
}
