// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// The store of a live or netboot system is on an overlay. Then its files also have places
// on the file systems of the layers. Those were mounted before the host changed its root
// directory, under names that are gone. The handles of the files tell where they are
// (handles.go).

// guardLayers guards, for each guarded directory that is on an overlay, the directories of
// the layers in which its files are. If the kernel gives no handles, every mount of the
// host that shows the same counts as a layer.
func (h *Host) guardLayers() error {
	// What is found can lead to more: a layer may itself be on an overlay.
	for i := 0; i < len(h.guarded); i++ {
		g := h.guarded[i]
		fd := h.openPlace(g.place)
		if fd < 0 {
			continue
		}
		all, err := h.guardLayersOf(g, fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("looking for the layers of %s: %w", g.name, err)
		}
		h.layersUnknown = h.layersUnknown || !all && g.store
	}
	if h.layersUnknown {
		h.lookAtMounts()
	}
	return nil
}

// openPlace opens a place on an overlay by a mount of the host; -1: there is none.
func (h *Host) openPlace(p place) int {
	for _, m := range h.mounts {
		if m.device != p.device || m.kind != "overlay" || !below(p.path, m.path) {
			continue
		}
		root, err := openMount(m)
		if err != nil {
			continue
		}
		inside := strings.Trim(strings.TrimPrefix(p.path, strings.TrimSuffix(m.path, "/")), "/")
		if inside == "" {
			return root
		}
		fd, err := openBelow(root, inside)
		unix.Close(root)
		if err == nil {
			return fd
		}
	}
	return -1
}

// mostMissed bounds how many directories are searched for in vain. Such directories are on
// layers that cannot be found, for example on a server or a FUSE file system.
const mostMissed = 64

// guardLayersOf guards the layers in which the directories of one guarded directory are,
// and reports whether it found all of them.
func (h *Host) guardLayersOf(g guard, dir int) (all bool, _ error) {
	names, err := rootfs.Names(dir, mostOfHost)
	if err != nil {
		return true, ignore(err, unix.ENOTDIR)
	}
	layered := layersOfHost{mounts: h.mounts}
	defer layered.close()
	c := comparer{}
	known, missed := map[string]bool{}, 0
	for _, name := range names {
		if known[name] || missed > mostMissed {
			continue
		}
		handle, ok, err := layerHandle(dir, name)
		if errors.Is(err, errNotThere) {
			continue
		}
		if err != nil || !ok {
			return false, err // as for every other
		}
		st, there, err := c.stat(dir, name, false)
		if err != nil {
			return false, err
		}
		if !there || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue // only a directory has `..`, the way to its parent
		}
		layer, at := layered.layerOf(handle, st)
		if layer < 0 {
			missed++
			continue
		}
		h.addLayer(g, at)
		err = layered.mark(known, layer, names, g.store, dir)
		unix.Close(layer)
		if err != nil {
			return false, err
		}
	}
	return missed == 0, nil
}

// layersOfHost opens files by handles on every file system of the host.
type layersOfHost struct {
	handleRoots
	mounts Mounts
}

// layerOf opens the directory, on the layer's file system, that contains a directory of an
// overlay, and returns its place; -1: unknown.
func (l *layersOfHost) layerOf(handle layerFile, shown unix.Stat_t) (int, place) {
	for {
		fd, at, _ := l.open(handle, shown)
		if fd >= 0 {
			above, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			if err != nil {
				return -1, place{}
			}
			return above, place{at.device, path.Dir(at.path)}
		}
		if !l.addNext() {
			return -1, place{}
		}
	}
}

// addNext adds one more mount of the host.
func (l *layersOfHost) addNext() bool {
	for _, m := range l.mounts {
		if l.tried[m.place] || m.kind == "overlay" || slices.Contains(kernelKinds, m.kind) || isMovable(m.kind) {
			continue
		}
		l.add(l.mounts, []guard{{place: m.place}})
		return true
	}
	return false
}

// mark marks the names that a layer has. If two layers of the store have the same store
// path, it is the same. Files of other directories are compared one by one.
func (l *layersOfHost) mark(known map[string]bool, layer int, shown []string, store bool, dir int) error {
	names, err := rootfs.Names(layer, mostOfHost)
	if err != nil {
		return err
	}
	slices.Sort(names)
	c := comparer{}
	for _, name := range shown {
		if _, in := slices.BinarySearch(names, name); !in {
			continue
		}
		if store {
			known[name] = true
			continue
		}
		like, err := c.compare(layer, name, dir, name)
		if err != nil {
			return err
		}
		known[name] = known[name] || like.same
	}
	return nil
}

// addLayer guards a layer, and adds it to the trees that are searched for.
func (h *Host) addLayer(g guard, p place) {
	for _, known := range h.guarded {
		if known.place == p {
			return
		}
	}
	h.guarded = append(h.guarded, guard{p, g.name, g.store})
	for _, t := range h.trees {
		if t.name != g.name {
			continue
		}
		for _, position := range positionsOf(p.path) {
			if !slices.Contains(t.positions, position) {
				t.positions = append(t.positions, position)
			}
		}
	}
}

// lookAtMounts looks into every mount of the host. It ignores one that cannot be looked
// into: that one is refused when a container mounts it, and harms nobody before.
func (h *Host) lookAtMounts() {
	for _, m := range h.mounts {
		// No layer of the store is on a server, which may not answer.
		if !isMovable(m.kind) {
			_ = h.look(h.mounts, m)
		}
	}
}
