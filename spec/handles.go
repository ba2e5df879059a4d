// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

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
	overlayHandleUUID   = 3 + 5
	overlayHandleHeader = overlayHandleUUID + 16
)

// layerFile is the handle of a layer's file.
type layerFile struct {
	unix.FileHandle
	// hasUUID: the layer's file system has a UUID. What a program or another machine serves
	// has none, and of what is on a disk, not everything has one: ZFS and squashfs do not.
	hasUUID bool
}

// kindsWithUUID are the types of file systems that always have a UUID.
var kindsWithUUID = []string{"xfs", "btrfs", "bcachefs", "f2fs", "tmpfs"}

// layerHandle returns the handle of the layer's file that a file of an overlay is. Not
// ok: there is none. errNotThere: the file is gone.
func layerHandle(dir int, name string) (_ layerFile, ok bool, _ error) {
	flags := atHandleFID
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	h, _, err := unix.NameToHandleAt(dir, name, flags)
	switch {
	case err == nil:
		file, ok := unwrapHandle(h)
		return file, ok, nil
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE):
		return layerFile{}, false, errNotThere
	}
	return layerFile{}, false, nil
}

func unwrapHandle(h unix.FileHandle) (_ layerFile, ok bool) {
	b := h.Bytes()
	if h.Type() != overlayHandle || len(b) <= overlayHandleHeader || b[4] != overlayHandleMagic {
		return layerFile{}, false
	}
	end := 3 + int(b[5])
	if end <= overlayHandleHeader || end > len(b) || b[7] == overlayHandle { // of an overlay of an overlay
		return layerFile{}, false
	}
	return layerFile{
		FileHandle: unix.NewFileHandle(int32(b[7]), b[overlayHandleHeader:end]),
		hasUUID:    !bytes.Equal(b[overlayHandleUUID:overlayHandleHeader], make([]byte, 16)),
	}, true
}

// handleRoots open files of file systems by their handles.
type handleRoots struct {
	roots []handleRoot
	// tried are places that are looked for below the roots, or for which there is none.
	tried map[place]bool
	// disks are mounts of the other file systems, for what is in none of the guarded
	// directories, and searched the devices that have one, and the mounts that were tried.
	disks    []handleRoot
	searched map[string]bool
	// incomplete: a guarded directory is below none of them.
	incomplete bool
	// privileged: this process may open files by handles.
	privileged bool
}

// handleRoot is a mount of a file system.
type handleRoot struct {
	fd int
	m  mountPoint
	// top is the name of its root.
	top string
}

func (r *handleRoots) close() {
	for _, root := range append(r.roots, r.disks...) {
		unix.Close(root.fd)
	}
	r.roots, r.disks = nil, nil
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
		r.addPlace(mounts, g.place)
	}
}

// addPlace opens the mount that shows a place and the most around it. One that another
// mount covers cannot be opened.
func (r *handleRoots) addPlace(mounts Mounts, p place) {
	var all Mounts
	for _, m := range mounts {
		if p.within(m.place) {
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b mountPoint) int { return len(a.path) - len(b.path) })
	for _, m := range all {
		if m.kind == "overlay" {
			return // its files are others'
		}
		root, err := openByHandles(m)
		if err == nil {
			r.privileged = true
			r.roots = append(r.roots, root)
			return
		}
	}
	r.incomplete = true
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
// is. -1: it is below none of the roots. onDisk: the file system of one of them has it.
func (r *handleRoots) open(handle layerFile, shown unix.Stat_t) (fd int, at place, onDisk bool) {
	for _, root := range r.roots {
		fd, st, has := root.open(handle, shown)
		onDisk = onDisk || has
		if fd < 0 {
			continue
		}
		if at, ok := root.placeOf(fd, st); ok {
			return fd, at, true
		}
		unix.Close(fd)
	}
	return -1, place{}, onDisk
}

// open opens a file of the mount's file system; -1: it shows nothing like it. Another file
// system can have a file with the same handle, hence shown. has: the file system has the
// file, but overlay may have copied it to the upper layer since (copy-up), so that what shows
// has other attributes, and the same number.
func (r handleRoot) open(handle layerFile, shown unix.Stat_t) (fd int, st unix.Stat_t, has bool) {
	fd, err := unix.OpenByHandleAt(r.fd, handle.FileHandle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return -1, st, false
	}
	like := likeness{}
	if unix.Fstat(fd, &st) == nil {
		(&comparer{}).match(&like, shown, st)
	}
	sameKind := st.Mode&unix.S_IFMT == shown.Mode&unix.S_IFMT
	isCopied := sameKind && uint32(st.Ino) == uint32(shown.Ino)
	isTheirs := handle.hasUUID || !slices.Contains(kindsWithUUID, r.m.kind)
	if like.attributes || isCopied && handle.hasUUID {
		return fd, st, isTheirs
	}
	unix.Close(fd)
	// What had several links has another number once it is copied.
	isLinked := sameKind && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR
	return -1, st, isTheirs && (isCopied || isLinked)
}

// isOnDisk reports whether one of the host's file systems that have no server, and are made
// of no other, has the file of a layer. mounts are those of the calling thread's mount
// namespace.
func (r *handleRoots) isOnDisk(mounts Mounts, handle layerFile, shown unix.Stat_t) bool {
	r.searchDisks(mounts)
	return slices.ContainsFunc(r.disks, func(root handleRoot) bool {
		fd, _, has := root.open(handle, shown)
		if fd >= 0 {
			unix.Close(fd)
		}
		return has
	})
}

// searchDisks opens a mount of each of these file systems that need not have a UUID.
func (r *handleRoots) searchDisks(mounts Mounts) {
	if r.searched == nil {
		r.searched = map[string]bool{}
	}
	for _, m := range mounts {
		if r.searched[m.device] || r.searched[m.id] || m.kind == "overlay" || slices.Contains(kindsWithUUID, m.kind) ||
			slices.Contains(kernelKinds, m.kind) || isMovable(m.kind) {
			continue
		}
		r.searched[m.id] = true
		// If it is covered, another mount of the file system may not be.
		if root, err := openByHandles(m); err == nil {
			r.searched[m.device] = true
			r.disks = append(r.disks, root)
		}
	}
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

// layerLook looks where the files of an overlay are on its layers. A directory that is
// merged has no place: what is in it does.
type layerLook struct {
	*Host
	*comparer
	m      mountPoint
	mounts Mounts // of the calling thread's mount namespace
	// thorough: every file counts. Else a few in each merged directory of the root, which is
	// enough for what a redirect leads to the store, because that has only files of that.
	thorough bool
	// handles counts the files that have one, without those that have none or one of a file
	// system that may show what another has, and unknown all those whose place cannot be
	// told.
	handles, without, unknown int
	// example is one of the files that without counts.
	example string
	// givesHandles: the overlay gives handles of its files.
	givesHandles bool
	// layers are directories of layers that are not guarded, for the directory that is
	// looked at: most files are in one that has been found.
	layers []int
}

// mostLayers bounds the directories that are kept open.
const mostLayers = 8

const (
	// mostHandles bounds the files that are looked for in the root, mostInMerged those in a
	// directory of it, where the look is not thorough.
	mostHandles  = 512
	mostInMerged = 16
)

// known tells whether it is known of the files whether they are in guarded directories.
func (l *layerLook) known() bool {
	return l.handles > 0 && l.unknown == 0 && !l.Host.handles.incomplete && !l.layersUnknown
}

// isVague reports whether the overlay has a layer that may show what another file system
// has. That is one without handles, such as another overlay: then the kernel gives none for
// any file of the overlay. Or it is one of a server.
func (l *layerLook) isVague(named namedLayers) bool {
	switch {
	case !l.Host.handles.privileged || !overlayHasHandles() || l.hasOwn(l.m):
		return false // nothing is expected, or this host was started with it
	case l.without == 0 && !named.onOverlay:
		return false
	case named.nowhere || named.unsure != "" || named.onVague || l.hasEmptyLayer():
		return true
	case l.lax && l.givesHandles: // the names tell of the server
		return false
	}
	// The runtime mounted it for this container: its names are as new. Overlay gives no
	// handles if it was mounted in a user namespace, or if a layer is an overlay, as a
	// volume of an image is.
	return l.isHosts()
}

// hasEmptyLayer reports whether a name of a lower layer leads to an empty directory: something
// may have been mounted there.
func (l *layerLook) hasEmptyLayer() bool {
	if l.NamesElsewhere {
		return false
	}
	return slices.ContainsFunc(l.m.namedBy([]string{"lowerdir", "lowerdir+"}), func(name string) bool {
		fd, err := unix.Open("/"+name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return true
		}
		defer unix.Close(fd)
		names, err := rootfs.Names(fd, 1)
		return len(names) == 0 && !errors.Is(err, rootfs.ErrTooMany)
	})
}

// isHosts reports whether the overlay is mounted on the host too.
func (l *layerLook) isHosts() bool {
	return slices.ContainsFunc(l.Host.mounts, func(m mountPoint) bool { return m.device == l.m.device })
}

// overlayHasHandles reports whether the kernel gives handles of files of an overlay: since
// Linux 6.6. Before 6.5 it gives none, and between none of the layers' files.
var overlayHasHandles = sync.OnceValue(func() bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return true
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > 6 || major == 6 && minor >= 6
})

func (l *layerLook) look() error {
	l.Host.handles.add(l.mounts, l.guarded)
	var st unix.Stat_t
	if err := unix.Fstat(l.root, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return l.file(l.root, "", l.m.path)
	}
	if _, ok, err := layerHandle(l.root, ""); err != nil {
		return err
	} else if l.givesHandles = ok; !ok {
		l.without++
		l.example = l.m.path
	}
	return l.directory(l.root, l.m.path, mostHandles)
}

// directory looks at what is in a merged directory.
func (l *layerLook) directory(dir int, at string, most int) error {
	names, err := l.names(dir)
	if errors.Is(err, unix.EACCES) {
		return nil // what this user may not list, no container of this user's may
	}
	if err != nil {
		return err
	}
	if !l.thorough && len(names) > most {
		slices.Sort(names)
		names = names[:most]
		l.unknown++
	}
	outer := l.layers
	l.layers = nil
	defer func() {
		for _, layer := range l.layers {
			unix.Close(layer)
		}
		l.layers = outer
	}()
	for _, name := range names {
		if l.left--; l.left < 0 {
			return errTooMany
		}
		merged, err := l.merged(dir, name)
		if err != nil {
			return err
		}
		switch {
		case merged < 0:
			err = l.file(dir, name, at)
		case l.thorough || dir == l.root:
			before := l.unknown
			err = l.directory(merged, path.Join(at, name), mostInMerged)
			if !l.thorough {
				l.unknown = before
			}
		}
		if merged >= 0 {
			unix.Close(merged)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

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

// file notes what the directory that a file is in shows, by where the file is on its
// layer: what is beside it there shows too.
func (l *layerLook) file(dir int, name, at string) error {
	st, there, err := l.stat(dir, name, false)
	if err != nil || !there {
		return err
	}
	if l.inKnownLayer(name, st) {
		return nil
	}
	handle, ok, err := layerHandle(dir, name)
	if errors.Is(err, errNotThere) {
		return nil
	}
	if err != nil {
		return err
	}
	unaccounted := func() {
		l.without++
		l.unknown++
		l.example = path.Join(at, name)
	}
	if !ok {
		unaccounted()
		return nil
	}
	l.handles++
	l.givesHandles = true
	fd, layer, onDisk := l.Host.handles.open(handle, st)
	if fd < 0 {
		if !onDisk && !handle.hasUUID && !l.NamesElsewhere && !l.Host.handles.isOnDisk(l.mounts, handle, st) {
			unaccounted()
		}
		return nil // in none of the guarded directories
	}
	defer unix.Close(fd)
	if name != "" {
		layer.path = path.Dir(layer.path)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && name != "" && !l.isGuarded(layer) && len(l.layers) < mostLayers {
		if above, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			l.layers = append(l.layers, above)
		}
	}
	// Of the names of a file with hard links, this need not be the one that shows.
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if l.isGuarded(layer) {
			l.unknown++
		}
		return nil
	}
	l.showLayer(place{l.m.device, at}, layer)
	return nil
}

// isGuarded tells whether a place is in a guarded directory.
func (l *layerLook) isGuarded(p place) bool {
	return slices.ContainsFunc(l.guarded, func(g guard) bool { return p.within(g.place) })
}

// inKnownLayer tells whether a file is in a directory of a layer that was found for a file
// beside it, and that is not guarded.
func (l *layerLook) inKnownLayer(name string, shown unix.Stat_t) bool {
	for _, layer := range l.layers {
		st, there, err := l.stat(layer, name, false)
		like := likeness{kind: st.Mode & unix.S_IFMT}
		if err != nil || !there || like.kind != shown.Mode&unix.S_IFMT {
			continue
		}
		if l.match(&like, shown, st); like.same {
			return true
		}
	}
	return false
}
