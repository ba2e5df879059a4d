// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// An overlay shows the files of other file systems, and nothing in mountinfo says which.
// Its options are what a user typed when it was mounted: relative to some directory,
// through links and mounts that may have changed. So the overlay is looked into.
//
// Where in it can a guarded directory be? A layer is a directory of the file system that
// the guarded directory is on. If the layer is the guarded directory or lies above it, the
// overlay shows the guarded directory at the rest of its path. So each end of that path is
// a position to look at. If the layer lies inside the guarded directory, the handles of the
// overlay's files say so (handles.go). If the kernel gives no handles, the overlay begins
// with one of the guarded directory's own directories, which are compared too (deepTrees).
//
// What shows at a position is compared with the guarded directory, by attributes that
// overlay passes through and that nobody can set. These are above all the time of the last
// change (ctime) and the inode number, without the bits above the 32nd, which name the
// layer (xino). A directory that overlay merges from several layers has the attributes of
// the uppermost and a link count of 1 (fs/overlayfs/inode.c, ovl_getattr). Of such a
// directory, the contents are compared. So neither a whiteout nor a directory of an upper
// layer can hide what else shows.
//
// The names in the options are evidence too, if they lead to a guarded place today. They
// are never evidence that nothing shows.

// tree is a guarded directory that is searched for.
type tree struct {
	name      string
	store     bool
	real      string   // its path without symbolic links
	device    string   // of its file system
	fd        int      // -1: not open yet
	positions []string // relative to what is looked into; "": that itself
	deep      []string // see deepTrees
	names     []string // in it, once they were read; not of the store
}

// common returns those of names that can be in the tree. It does not read the store for
// this, which can have tens of thousands of names.
func (t *tree) common(names []string) ([]string, error) {
	if !t.store && t.names == nil {
		own, err := rootfs.Names(t.fd, mostOfHost)
		if err != nil && !errors.Is(err, unix.EACCES) { // if this user may not list it, no container may
			return nil, fmt.Errorf("reading %s: %w", t.name, err)
		}
		t.names = slices.Sorted(slices.Values(append(own, "")))
	}
	var all []string
	for _, name := range names {
		_, isPath := slices.BinarySearch(t.names, name)
		if t.store {
			_, err := closure.ParseBaseName(name)
			isPath = err == nil || name == ".links"
		}
		if isPath {
			all = append(all, name)
		}
	}
	return all, nil
}

// guardedFile is a file that is searched for.
type guardedFile struct {
	name      string
	dir       int    // the directory that it is in
	base      string // its name there
	positions []string
}

// positionsOf returns all ends of these paths, and "".
func positionsOf(paths ...string) []string {
	positions := []string{""}
	for _, p := range paths {
		components := strings.Split(strings.Trim(path.Clean("/"+p), "/"), "/")
		for i := range components {
			if end := strings.Join(components[i:], "/"); !slices.Contains(positions, end) {
				positions = append(positions, end)
			}
		}
	}
	return positions
}

// deepTrees are directories inside guarded ones with which a file system that is looked
// into may begin.
var deepTrees = struct{ store, state, log, runtime []string }{
	store: []string{".links"},
	state: []string{
		"db", "daemon-socket", "gcroots", "gcroots/auto", "gcroots/per-user", "profiles", "profiles/per-user",
	},
	log:     []string{"drvs"},
	runtime: []string{"views", "closures", "registrations", "containers"},
}

// addTree adds a guarded directory to those that are searched for.
func (h *Host) addTree(name, real string, m mountPoint, store bool) {
	h.layered = h.layered || m.isLayered()
	paths := append(h.pathsOnLayers(m, real, 0), real, m.placeOf(real).path)
	deep := deepTrees.runtime
	switch name {
	case h.store.Dir:
		deep = deepTrees.store
	case h.store.StateDir:
		deep = deepTrees.state
	case logDir(h.store):
		deep = deepTrees.log
	}
	h.trees = append(h.trees, &tree{
		name: name, store: store, real: real, device: m.device, fd: -1,
		positions: positionsOf(paths...), deep: deep,
	})
}

// overlaysDeep bounds how many overlays may be layers of each other. The kernel allows two
// (FILESYSTEM_MAX_STACK_DEPTH).
const overlaysDeep = 4

// pathsOnLayers returns where a path on an overlay can be on the layers, and on their
// layers, by the names in the options.
func (h *Host) pathsOnLayers(m mountPoint, real string, depth int) []string {
	if depth == overlaysDeep {
		return nil
	}
	rest := strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/"))
	if m.path != "/" {
		rest = m.path + rest
	}
	var paths []string
	for _, layer := range m.layerNames() {
		paths = append(paths, layer+rest)
		at, err := realPath("/" + layer + rest)
		if err != nil {
			continue // these names say where to look, and prove nothing
		}
		paths = append(paths, h.pathsOnLayers(mountOf(h.mounts, at), at, depth+1)...)
	}
	return paths
}

// openTrees opens the guarded directories when they are first needed. That may be in a
// container's mount namespace, where their names must lead to the same directories as on
// the host.
func (h *Host) openTrees() error {
	if h.opened {
		return nil
	}
	h.opened = true
	for _, t := range h.trees {
		fd, err := unix.Open(t.real, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: t.real, Err: err}
		}
		t.fd = fd
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return &os.PathError{Op: "fstat", Path: t.real, Err: err}
		}
		if h.identified[t.real] != (fileID{st.Dev, st.Ino}) {
			return fmt.Errorf("%s is another directory here than on the host", t.real)
		}
	}
	return nil
}

// openDeepTrees opens the directories that are needed if there are no handles.
func (h *Host) openDeepTrees() error {
	if h.openedDeep {
		return nil
	}
	h.openedDeep = true
	for _, t := range slices.Clone(h.trees) {
		for _, deep := range t.deep {
			at, err := openBelow(t.fd, deep)
			// If this user may not enter it, no container of this user may.
			if errors.Is(err, errNotThere) || errors.Is(err, unix.EACCES) {
				continue
			}
			if err != nil {
				return err
			}
			h.trees = append(h.trees, &tree{name: t.name + "/" + deep, fd: at, positions: []string{""}})
		}
	}
	return nil
}

// needsLook reports whether a mount may show guarded directories under a device number that
// is not theirs.
func (h *Host) needsLook(m mountPoint) bool {
	return !slices.Contains(kernelKinds, m.kind) && (h.layered || !m.ownsItsFiles())
}

// Looked reports whether all that these mounts show is known by their places: there is
// nothing in them to look into that was not looked into on the host.
func (h *Host) Looked(mounts Mounts) bool {
	return !slices.ContainsFunc(mounts, func(m mountPoint) bool { return h.needsLook(m) && !h.looked[m.place] })
}

// look looks into the file system of m, from every mount of it in mounts, which are those
// of the calling thread's mount namespace. From then on, the places where a guarded
// directory shows are guarded too. A file system that cannot be looked into is an error.
func (h *Host) look(mounts Mounts, m mountPoint) error {
	if !h.needsLook(m) || h.looked[m.place] {
		return nil
	}
	named, err := h.lookAtNames(mounts, m)
	if err != nil {
		return err
	}
	below := m
	if named.server != nil {
		below = *named.server
	}
	if isFUSE(below.kind) && !h.FUSEAllowed {
		return fmt.Errorf("%s on %s: %w", below.kind, below.point, errFUSE)
	}
	var failed error
	for _, o := range mounts {
		if o.device != m.device || h.looked[o.place] {
			continue
		}
		err := h.lookAt(mounts, o, isMovable(below.kind), named)
		if err == nil {
			h.looked[o.place] = true
		} else if !errors.Is(err, errHidden) {
			failed = cmp.Or(failed, err)
		}
	}
	// A mount from further above shows this one too.
	for looked := range h.looked {
		if m.within(looked) {
			h.looked[m.place] = true
			break
		}
	}
	if h.looked[m.place] && m.kind == "overlay" && !h.sawRoot(m.device) {
		return fmt.Errorf("%s on %s: %w", m.kind, m.point, errPart)
	}
	if h.looked[m.place] {
		return nil
	}
	return cmp.Or(failed, fmt.Errorf("%s on %s: %w", m.kind, m.point, errHidden))
}

// errPart: by a redirect, a directory of an overlay can have another name than on its
// layer, anywhere in the overlay. A redirect that leads to the store lies below what the
// overlay's root shows of the store, so the root must be in sight.
var errPart = errors.New("only a part of it is mounted, and nothing tells what the rest shows; mount it whole too")

var errFUSE = errors.New("what a FUSE file system shows is what its program likes, also later; take the " +
	"volume out, or set fuse = true in the configuration if the programs behind this host's volumes are trusted")

// sawRoot reports whether the root of a file system was looked into.
func (h *Host) sawRoot(device string) bool { return h.looked[place{device, "/"}] }

var errHidden = errors.New("another mount covers it, so that it cannot be looked into; unmount it")

// namedLayers is what the names in an overlay's options say today.
type namedLayers struct {
	// server is the mount of a layer whose server or program can change what shows; nil:
	// there is none.
	server *mountPoint
	// unsure is a name that other users than root may have changed since; empty: there is
	// none.
	unsure string
	// nowhere: a name leads nowhere. onOverlay: a name leads to another overlay. onVague: to
	// one that tells nothing.
	nowhere, onOverlay, onVague bool
}

// lookAtNames looks at the names in an overlay's options that lead somewhere today.
func (h *Host) lookAtNames(mounts Mounts, m mountPoint) (named namedLayers, _ error) {
	if h.NamesElsewhere {
		return named, nil
	}
	for _, name := range m.shownLayers() {
		// Engines name layers relative to their own directory. Users cannot.
		if path.IsAbs(name) && named.unsure == "" && !h.rootsAlone(name) {
			named.unsure = name
		}
		real, err := realPath("/" + name)
		if err != nil {
			named.nowhere = true
			continue // no evidence
		}
		on := mountOf(mounts, real)
		switch {
		case on.device == "":
			return named, fmt.Errorf("%s: %w", real, ErrNoMount)
		case on.kind == "overlay" && on.device != m.device: // an overlay may cover its own layer
			if err := h.lookBelow(mounts, on); err != nil {
				return named, fmt.Errorf("its layer %s: %w", name, err)
			}
			_, vague := h.vague[on.device]
			named.onOverlay, named.onVague = true, named.onVague || vague
		case isMovable(on.kind) && (named.server == nil || isFUSE(on.kind)):
			named.server = &on
		}
		h.showLayer(place{m.device, "/"}, on.placeOf(real))
	}
	if h.hasOwn(m) {
		named.unsure = "" // this host was started with it
	}
	return named, nil
}

// lookBelow looks into an overlay that is a layer of another.
func (h *Host) lookBelow(mounts Mounts, m mountPoint) error {
	h.depth++
	defer func() { h.depth-- }()
	if h.depth > overlaysDeep {
		return errors.New("an overlay has itself as a layer, by its name")
	}
	return h.look(mounts, m)
}

// hasOwn reports whether the host's root directory, or a guarded directory, is on this
// overlay.
func (h *Host) hasOwn(m mountPoint) bool {
	return mountOf(h.mounts, "/").device == m.device ||
		slices.ContainsFunc(h.trees, func(t *tree) bool { return t.device == m.device })
}

// realPath returns a path without symbolic links. It needs fewer system calls than
// filepath.EvalSymlinks.
func realPath(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return proc.FileName(fd)
}

// showLayer notes that a directory of an overlay shows a directory of a layer.
func (h *Host) showLayer(at, layer place) {
	for _, g := range slices.Clone(h.guarded) {
		// Below the overlay's root, a redirect may lead above a guarded directory. At the
		// root, the positions were looked at.
		if rest := strings.TrimPrefix(g.path, layer.path); g.within(layer) && rest != "" && at.path != "/" {
			h.guarded = append(h.guarded, guard{place{at.device, path.Join(at.path, rest)}, g.name, g.store})
			continue
		}
		if !layer.within(g.place) {
			continue
		}
		inside := strings.TrimPrefix(strings.TrimPrefix(layer.path, g.path), "/")
		if base, ok := g.asked(inside); ok {
			h.layersAsked = append(h.layersAsked, askedAt{at, base})
			continue
		}
		h.guarded = append(h.guarded, guard{at, path.Join(g.name, inside), g.store && inside == ""})
	}
	for _, a := range slices.Clone(h.layersAsked) {
		if a.within(layer) || layer.within(a.place) {
			h.layersAsked = append(h.layersAsked, askedAt{at, a.base})
		}
	}
}

// lookAt looks into a file system from one mount of it.
func (h *Host) lookAt(mounts Mounts, m mountPoint, lax bool, named namedLayers) error {
	if err := h.openTrees(); err != nil {
		return err
	}
	fd, err := openMount(m)
	if err != nil {
		return fmt.Errorf("looking into the %s on %s: %w", m.kind, m.point, err)
	}
	defer func() { unix.Close(fd) }()
	// Nothing is mounted in a clone that could cover what is underneath. If this process
	// may not clone the mount, a process in the container's user namespace cannot remove a
	// cover either.
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == nil {
		unix.Close(fd)
		fd = clone
	} else if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("open_tree", err)
	}
	c := comparer{lax: lax, layered: h.layered, left: mostCompared, root: fd}
	if err := h.lookInto(mounts, m, &c, named); err != nil {
		return fmt.Errorf("looking into the %s on %s: %w", m.kind, m.point, err)
	}
	return nil
}

func (h *Host) lookInto(mounts Mounts, m mountPoint, c *comparer, named namedLayers) error {
	known := false
	if m.kind == "overlay" {
		l := layerLook{Host: h, m: m, mounts: mounts, comparer: c, thorough: named.unsure != ""}
		if err := l.look(); err != nil {
			return err
		}
		if l.isVague(named) {
			h.vague[m.device] = cmp.Or(l.example, m.path)
		}
		if known = l.known(); !known && named.unsure != "" && h.handles.privileged && (l.handles > 0 || h.layered) {
			return fmt.Errorf("its layer %s is named by a path that others than root can change, "+
				"or that leads nowhere, and "+
				"nothing else tells what it shows; mount it by a path that is root's alone", named.unsure)
		}
	}
	if !known {
		if err := h.openDeepTrees(); err != nil {
			return err
		}
	}
	if err := h.lookAtFile(c, m); err != nil {
		return err
	}
	for _, t := range h.trees {
		for _, position := range t.positions {
			shows, err := c.shows(position, t)
			if err != nil {
				return fmt.Errorf("%s: %w", path.Join("/", position), err)
			}
			if shows {
				at := place{m.device, path.Join(m.path, position)}
				h.guarded = append(h.guarded, guard{at, t.name, t.store})
			}
		}
	}
	for _, f := range h.files {
		for _, position := range f.positions {
			shows, err := c.showsFile(position, f)
			if err != nil {
				return fmt.Errorf("%s: %w", path.Join("/", position), err)
			}
			if shows {
				h.guarded = append(h.guarded, guard{place{m.device, path.Join(m.path, position)}, f.name, false})
			}
		}
	}
	return nil
}

// errNoHandles: a file without a handle may be of any directory of the host. The names in
// the options do not tell: they may have led elsewhere when it was mounted, and so may the
// names in the options of the layer.
var errNoHandles = errors.New("nothing tells what its layers show: one is on another overlay, or on a file system " +
	"that may show what another has, or the kernel gives no handles of their files, as in a user namespace; take " +
	"layers that are on a disk of this host, by paths that are root's alone")

// lookAtFile looks at a mount of a single file: is it a file of the state directory?
func (h *Host) lookAtFile(c *comparer, m mountPoint) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.root, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := h.openDeepTrees(); err != nil {
		return err
	}
	for _, t := range h.trees {
		if t.store || strings.HasPrefix(t.name, h.store.Dir+"/") {
			continue // one file of the store was asked for by name
		}
		names, err := rootfs.Names(t.fd, mostOfHost)
		if errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.name, err)
		}
		for _, name := range names {
			like, err := c.compare(c.root, "", t.fd, name)
			if err != nil {
				return err
			}
			if like.same {
				h.guarded = append(h.guarded, guard{m.place, t.name + "/" + name, false})
			}
		}
	}
	return nil
}

// openMount opens the root of a mount. It fails if another mount covers it.
func openMount(m mountPoint) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, m.point, &how)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return -1, errHidden
		}
		return -1, os.NewSyscallError("openat2", err)
	}
	// STATX_MNT_ID: Linux 5.8. AT_STATX_DONT_SYNC: the kernel does not ask a network or
	// FUSE file system.
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == nil && strconv.FormatUint(st.Mnt_id, 10) != m.id {
		err = errHidden
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

var errNotThere = errors.New("not there")

// openBelow opens a directory below another, on the same mount and without following links.
func openBelow(dir int, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(dir, name, &how)
	for _, notThere := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV} {
		if errors.Is(err, notThere) {
			return -1, errNotThere
		}
	}
	if err != nil {
		return -1, &os.PathError{Op: "openat2", Path: name, Err: err}
	}
	return fd, nil
}
