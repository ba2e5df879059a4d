// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// Since Linux 6.6, overlay gives a handle for each of its files that has the handle of
// the file of the layer in it (fs/overlayfs/export.c, ovl_encode_fh). By that the file
// system of the layer opens the file, and says where it is. It takes CAP_DAC_READ_SEARCH
// in the host's user namespace.

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

// layerHandle returns the handle of the layer's file that a file of an overlay is. Not
// ok: there is none.
func layerHandle(dir int, name string) (_ unix.FileHandle, ok bool) {
	flags := atHandleFID
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	h, _, err := unix.NameToHandleAt(dir, name, flags)
	if err != nil {
		return h, false
	}
	return unwrapHandle(h)
}

func unwrapHandle(h unix.FileHandle) (_ unix.FileHandle, ok bool) {
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

// handleRoots open files of file systems by their handles.
type handleRoots struct {
	roots []handleRoot
	// tried are places that are looked for below the roots, or for which there is none.
	tried map[place]bool
	// incomplete: a guarded directory is below none of them.
	incomplete bool
}

// handleRoot is a mount of a file system.
type handleRoot struct {
	fd int
	m  mountPoint
	// top is the name of its root.
	top string
}

func (r *handleRoots) close() {
	for _, root := range r.roots {
		unix.Close(root.fd)
	}
	r.roots = nil
}

// add opens mounts of the calling thread's mount namespace that show guarded directories.
func (r *handleRoots) add(mounts Mounts, guarded []guard) {
	if r.tried == nil {
		r.tried = map[place]bool{}
	}
	for _, g := range guarded {
		if r.tried[g.place] {
			continue
		}
		r.tried[g.place] = true
		if slices.ContainsFunc(r.roots, func(root handleRoot) bool { return g.within(root.m.place) }) {
			continue
		}
		m, ok := bestMount(mounts, g.place)
		if ok && m.kind == "overlay" {
			continue // its files are others'
		}
		if !ok {
			r.incomplete = true
			continue
		}
		root, err := openByHandles(m)
		if err != nil {
			r.incomplete = true
			continue
		}
		r.roots = append(r.roots, root)
	}
}

// bestMount returns the mount that shows a place and the most around it.
func bestMount(mounts Mounts, p place) (best mountPoint, ok bool) {
	for _, m := range mounts {
		if p.within(m.place) && (!ok || len(m.path) < len(best.path)) {
			best, ok = m, true
		}
	}
	return best, ok
}

// openByHandles opens the root of a mount, if its file system opens files by their
// handles for this process.
func openByHandles(m mountPoint) (handleRoot, error) {
	r := handleRoot{m: m, top: m.point}
	at, err := openMount(m)
	if err != nil {
		return r, err
	}
	defer func() { unix.Close(at) }()
	// In a copy nothing is mounted that could cover a file. It is nowhere, so that names
	// begin at its root.
	clone, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == nil {
		unix.Close(at)
		at, r.top = clone, "/"
	}
	if r.fd, err = unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return r, err
	}
	handle, _, err := unix.NameToHandleAt(r.fd, "", unix.AT_EMPTY_PATH)
	if err == nil {
		var again int
		if again, err = unix.OpenByHandleAt(r.fd, handle, unix.O_PATH|unix.O_CLOEXEC); err == nil {
			unix.Close(again)
			return r, nil
		}
	}
	unix.Close(r.fd)
	return r, err
}

// open opens a file of a layer that shows in an overlay as shown, and returns where it
// is. Not ok: it is below none of the roots.
func (r *handleRoots) open(handle unix.FileHandle, shown unix.Stat_t) (fd int, at place, ok bool) {
	for _, root := range r.roots {
		fd, err := unix.OpenByHandleAt(root.fd, handle, unix.O_PATH|unix.O_CLOEXEC)
		if err != nil {
			continue
		}
		// Another file system can have a file with the same handle.
		var st unix.Stat_t
		like := likeness{}
		if unix.Fstat(fd, &st) == nil {
			(&comparer{}).match(&like, shown, st)
		}
		if like.attributes {
			if at, ok := root.placeOf(fd, st); ok {
				return fd, at, true
			}
		}
		unix.Close(fd)
	}
	return -1, place{}, false
}

// placeOf returns where an open file is. Not ok: it is not below the root, and then the
// kernel has no name for it.
func (r handleRoot) placeOf(fd int, st unix.Stat_t) (place, bool) {
	name, err := proc.FileName(fd)
	if err != nil || !below(name, r.top) {
		return place{}, false
	}
	inside := strings.TrimPrefix(strings.TrimPrefix(name, strings.TrimSuffix(r.top, "/")), "/")
	var there unix.Stat_t
	err = unix.Fstatat(r.fd, inside, &there, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	if err != nil || there.Ino != st.Ino || there.Dev != st.Dev {
		return place{}, false
	}
	return place{r.m.device, path.Join(r.m.path, inside)}, true
}

// mostHandles bounds how many files of an overlay are looked for on its layers.
const mostHandles = 512

// lookByHandles looks where the files are, on the layers, that an overlay begins with. A
// directory that is merged has no place: what is in it does. It tells whether that says
// of all of them whether they are in guarded directories.
func (h *Host) lookByHandles(mounts Mounts, m mountPoint, c *comparer) (known bool, _ error) {
	if m.kind != "overlay" {
		return false, nil
	}
	h.handles.add(mounts, h.guarded)
	known = !h.handles.incomplete
	left := mostHandles
	var st unix.Stat_t
	if err := unix.Fstat(c.root, &st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return h.lookAtHandle(m, c.root, "", m.path) && known, nil
	}
	names, err := c.names(c.root)
	if errors.Is(err, unix.EACCES) {
		return false, nil // what this user may not list, no container of this user's may
	}
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if left--; left < 0 {
			return false, nil
		}
		merged, err := c.merged(c.root, name)
		if err != nil {
			return false, err
		}
		if merged < 0 {
			known = h.lookAtHandle(m, c.root, name, m.path) && known
			continue
		}
		inside, err := rootfs.Names(merged)
		slices.Sort(inside)
		for _, deeper := range inside[:min(len(inside), mostInMerged)] {
			h.lookAtHandle(m, merged, deeper, path.Join(m.path, name))
		}
		unix.Close(merged)
		if err != nil {
			return false, err
		}
	}
	return known, nil
}

// mostInMerged bounds how many files are looked for in a merged directory. One that a
// redirect leads to the store has only files of that.
const mostInMerged = 16

// merged opens a directory if overlay merges it of several layers; -1: it does not.
func (c *comparer) merged(dir int, name string) (int, error) {
	st, there, err := c.stat(dir, name, false)
	if err != nil || !there || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Nlink != 1 {
		return -1, err
	}
	fd, err := c.open(dir, name)
	if errors.Is(err, errNotThere) {
		return -1, nil
	}
	return fd, err
}

// lookAtHandle notes what the directory that a file is in shows, by where the file is on
// its layer: what is beside it there shows too. It tells whether the file has a handle.
func (h *Host) lookAtHandle(m mountPoint, dir int, name, at string) (known bool) {
	handle, ok := layerHandle(dir, name)
	if !ok {
		return false
	}
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fstatat(dir, name, &st, flags); err != nil {
		return false
	}
	fd, layer, ok := h.handles.open(handle, st)
	if !ok {
		return true // in none of the guarded directories
	}
	unix.Close(fd)
	if name != "" {
		layer.path = path.Dir(layer.path)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && path.Base(layer.path) == ".links" {
		return false // one of its names, by a hard link
	}
	h.showLayer(place{m.device, at}, layer)
	return true
}
