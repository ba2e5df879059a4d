// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// Where a guarded directory is on an overlay, as the store of a live or netboot system
// is, its files have places of their own on the file systems of the layers. Those were
// mounted before the host changed its root directory, by names that are no more. Since
// Linux 6.6, overlay gives a handle for each of its files that has the handle of the
// file of the layer in it (fs/overlayfs/export.c, ovl_encode_fh); by that the file
// system of the layer opens the file, and says where it is.

// atHandleFID asks name_to_handle_at for a handle that only identifies (AT_HANDLE_FID,
// Linux 6.5).
const atHandleFID = 0x200

// The handle of a file of an overlay (struct ovl_fh in fs/overlayfs/overlayfs.h): three
// bytes, a version, a magic number, the length from the version on, flags, the type of
// the layer's handle, the layer's UUID, the layer's handle.
const (
	overlayHandle       = 0xf8
	overlayHandleMagic  = 0xfb
	overlayHandleHeader = 3 + 5 + 16
)

// layerHandle takes the handle of the layer's file out of the overlay's.
func layerHandle(h unix.FileHandle) (_ unix.FileHandle, ok bool) {
	b := h.Bytes()
	if h.Type() != overlayHandle || len(b) <= overlayHandleHeader || b[4] != overlayHandleMagic {
		return h, false
	}
	end := 3 + int(b[5])
	if end <= overlayHandleHeader || end > len(b) {
		return h, false
	}
	return unix.NewFileHandle(int32(b[7]), b[overlayHandleHeader:end]), true
}

// guardLayers guards the directories of layers in which a guarded directory's files
// are, for each guarded directory that is on an overlay, and for what shows it on
// another. It does what it can: where the kernel gives no handles, the names of the
// layers that overlays' options have are positions to look at.
func (h *Host) guardLayers() error {
	for i := range h.trees {
		h.addLayerNames(&h.trees[i])
	}
	// What is found shows more: a layer may be on an overlay in turn.
	for i := 0; i < len(h.guarded); i++ {
		g := h.guarded[i]
		fd := h.openPlace(g.place)
		if fd < 0 {
			continue
		}
		err := h.guardLayersOf(g, fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("looking for the layers of %s: %w", g.name, err)
		}
	}
	return nil
}

// addLayerNames adds as positions what the options of overlays name, with and without
// the end of the guarded directory's own path.
func (h *Host) addLayerNames(t *tree) {
	var names []string
	for _, m := range h.mounts {
		for _, name := range m.layerNames() {
			names = append(names, name)
			for _, end := range t.positions {
				if len(end) > 0 && strings.Count(end, "/") < 2 {
					names = append(names, path.Join(name, end))
				}
			}
		}
	}
	for _, p := range positionsOf(names...) {
		if !slices.Contains(t.positions, p) {
			t.positions = append(t.positions, p)
		}
	}
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

// guardLayersOf guards the layers that the directories in one guarded directory are in.
func (h *Host) guardLayersOf(g guard, dir int) error {
	names, err := rootfs.Names(dir)
	if err != nil {
		return ignore(err, unix.ENOTDIR)
	}
	var layers []*os.File
	defer func() {
		for _, l := range layers {
			_ = l.Close()
		}
	}()
	c := comparer{}
	for _, name := range names {
		known := false
		for _, l := range layers {
			like, err := c.compare(int(l.Fd()), name, dir, name)
			if err != nil {
				return err
			}
			known = known || like.same
		}
		if known {
			continue
		}
		layer, p := h.layerOf(dir, name, &c)
		if layer == nil {
			continue
		}
		layers = append(layers, layer)
		h.addLayer(g, p)
	}
	return nil
}

// layerOf opens the directory, on the file system of a layer, that a directory of an
// overlay is in, and returns its place; nil: it cannot be told.
func (h *Host) layerOf(dir int, name string, c *comparer) (*os.File, place) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, place{} // only directories know the way to the root
	}
	handle, _, err := unix.NameToHandleAt(dir, name, atHandleFID)
	if err != nil {
		return nil, place{}
	}
	handle, ok := layerHandle(handle)
	if !ok {
		return nil, place{}
	}
	tried := map[string]bool{}
	for _, m := range h.mounts {
		if tried[m.device] || m.kind == "overlay" || !h.needsLook(m) || m.path != "/" && h.hasRootMount(m.device) {
			continue
		}
		root, err := openMountToRead(m)
		if err != nil {
			continue
		}
		tried[m.device] = true
		fd, err := unix.OpenByHandleAt(root, handle, unix.O_PATH|unix.O_CLOEXEC)
		unix.Close(root)
		if err != nil {
			continue
		}
		like, err := c.compare(fd, "", dir, name)
		real, linkErr := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		unix.Close(fd)
		if err != nil || linkErr != nil || !like.attributes {
			continue
		}
		at := path.Dir(m.placeOf(real).path)
		f, err := os.OpenFile(path.Dir(real), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			return f, place{m.device, at}
		}
	}
	return nil, place{}
}

func (h *Host) hasRootMount(device string) bool {
	for _, m := range h.mounts {
		if m.device == device && m.path == "/" {
			return true
		}
	}
	return false
}

// openMountToRead opens the root of a mount as open_by_handle_at wants it.
func openMountToRead(m mountPoint) (int, error) {
	place, err := openMount(m)
	if err != nil {
		return -1, err
	}
	defer unix.Close(place)
	return unix.Openat(place, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// addLayer guards a layer, and has it looked for.
func (h *Host) addLayer(g guard, p place) {
	for _, known := range h.guarded {
		if known.place == p {
			return
		}
	}
	h.guarded = append(h.guarded, guard{p, g.name, g.store})
	for i := range h.trees {
		if t := &h.trees[i]; t.name == g.name {
			for _, position := range positionsOf(p.path) {
				if !slices.Contains(t.positions, position) {
					t.positions = append(t.positions, position)
				}
			}
		}
	}
}

// lookAtLayers is what a host needs whose guarded directories are on overlays: their
// layers are guarded too, and what shows them at other mounts of the host.
func (h *Host) lookAtLayers() error {
	if err := h.guardLayers(); err != nil {
		return err
	}
	for _, m := range h.mounts {
		if isMovable(m.kind) {
			continue // no layer of the store; and its server may not answer
		}
		if err := h.look(h.mounts, m); err != nil && !errors.Is(err, errHidden) && !errors.Is(err, errPart) {
			return err
		}
	}
	return h.guardLayers()
}
