// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// An overlay shows the files of other file systems, and nothing says which: its
// options are what someone typed when it was mounted, relative to some directory, by
// way of links and mounts that may be others by now. So it is looked into.
//
// Where can a guarded directory be in it? A layer is a directory of the file system
// that the guarded one is on. If the layer is the guarded directory or lies above
// it, the rest of the guarded directory's path follows: each end of that path is a
// position to look at. If the layer lies inside, the overlay begins with one of the
// guarded directory's own, which are compared too (deepTrees).
//
// What is there is compared with the guarded directory itself, by what overlay
// passes through of a file and nobody can set: above all the time of its last
// change, and the inode number, but for bits above the 32nd that say which layer it
// is of (xino). A directory that overlay merges of several layers has attributes of
// the upper-most, and a link count of 1 (fs/overlayfs/inode.c, ovl_getattr): there
// what is in it is compared. So neither whiteouts nor directories that an upper layer
// has in place of the store's hide anything that shows.

// plainKinds are the types of file systems that have their files to themselves: one
// with another device number shows other files.
var plainKinds = []string{
	"ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "minix", "vfat", "msdos", "exfat", "ntfs3", "tmpfs", "ramfs",
	"devtmpfs", "hugetlbfs", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf",
}

// memoryKinds are those of them that have no source.
var memoryKinds = []string{"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}

// kernelKinds are the types of file systems that show no file of the host.
var kernelKinds = []string{
	"proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf", "pstore",
	"efivarfs", "configfs", "fusectl", "binfmt_misc", "nsfs", "rpc_pipefs", "selinuxfs",
}

// movableKinds are the types of file systems whose files another machine or program
// can rename at any time, after which the kernel takes off what was mounted on them.
var movableKinds = []string{"fuse", "fuseblk", "virtiofs", "9p", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "coda"}

func isFUSE(kind string) bool {
	return kind == "fuse" || kind == "fuseblk" || kind == "virtiofs" || strings.HasPrefix(kind, "fuse.")
}

func isMovable(kind string) bool { return isFUSE(kind) || slices.Contains(movableKinds, kind) }

// isLayered tells whether a file system of this type can be made of files that show at
// other mounts of the host too, by another device number.
func isLayered(kind string) bool {
	single := []string{"btrfs", "zfs", "bcachefs", "nfs", "nfs4", "9p", "virtiofs", "cifs", "smb3", "ceph"}
	return !slices.Contains(plainKinds, kind) && !slices.Contains(single, kind)
}

// tree is a guarded directory that is looked for.
type tree struct {
	name      string
	store     bool
	real      string   // its path without symbolic links
	fd        int      // -1: not open yet
	positions []string // relative to what is looked into; "": it itself
	deep      []string // see deepTrees
}

// guardedFile is a file that is looked for.
type guardedFile struct {
	name      string
	dir       int    // the directory that it is in
	base      string // its name there
	positions []string
}

// positionsOf returns the ends of paths, and "".
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

// deepTrees are directories inside guarded ones, with which a file system that is
// looked into may begin.
var deepTrees = map[string][]string{
	"store":   {".links"},
	"state":   {"db", "daemon-socket", "gcroots", "gcroots/auto", "gcroots/per-user", "profiles", "profiles/per-user"},
	"runtime": {"views", "closures", "registrations", "containers"},
}

// addTree has a guarded directory looked for.
func (h *Host) addTree(name, real string, m mountPoint, store bool) {
	h.layered = h.layered || isLayered(m.kind)
	paths := []string{real, m.placeOf(real).path}
	for _, layer := range m.layerNames() {
		paths = append(paths, layer+strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/")))
	}
	deep := "runtime"
	switch name {
	case h.store.Dir:
		deep = "store"
	case h.store.StateDir, logDir(h.store):
		deep = "state"
	}
	h.trees = append(h.trees, tree{
		name: name, store: store, real: real, fd: -1, positions: positionsOf(paths...), deep: deepTrees[deep],
	})
}

// openTrees opens the guarded directories, when they are needed for the first time.
// That may be in a container's mount namespace, where their names must lead to what
// they led to on the host.
func (h *Host) openTrees() error {
	if h.opened {
		return nil
	}
	h.opened = true
	for i := range h.trees {
		t := &h.trees[i]
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
		for _, deep := range t.deep {
			at, err := openBelow(fd, deep)
			// What this user may not enter, no container of this user's may.
			if errors.Is(err, errNotThere) || errors.Is(err, unix.EACCES) {
				continue
			}
			if err != nil {
				return err
			}
			h.trees = append(h.trees, tree{name: t.name + "/" + deep, fd: at, positions: []string{""}})
			t = &h.trees[i] // the list may have moved
		}
	}
	return nil
}

// needsLook tells whether a mount may show guarded directories by a device number
// that is not theirs.
func (h *Host) needsLook(m mountPoint) bool {
	return !slices.Contains(kernelKinds, m.kind) && (h.layered || !slices.Contains(plainKinds, m.kind))
}

// look looks into the file system of m, from every mount of it in mounts, which are
// those of the calling thread's mount namespace. Where a guarded directory shows is
// guarded from then on. One that cannot be looked into is an error.
func (h *Host) look(mounts Mounts, m mountPoint) error {
	if !h.needsLook(m) || h.looked[m.place] {
		return nil
	}
	if isFUSE(m.kind) && !h.FUSEAllowed {
		return fmt.Errorf("%s on %s: %w", m.kind, m.point, errFUSE)
	}
	var failed error
	for _, o := range mounts {
		if o.device != m.device || h.looked[o.place] {
			continue
		}
		err := h.lookAt(o)
		if err == nil {
			h.looked[o.place] = true
		} else if !errors.Is(err, errHidden) {
			failed = cmp.Or(failed, err)
		}
	}
	// What is mounted from further above shows it too.
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

// errPart: by a redirect, a directory of an overlay may have another name than on its
// layer, anywhere in it. One that leads to the store lies below what shows of the store
// at the overlay's root, if that is in sight.
var errPart = errors.New("only a part of it is mounted, and nothing tells what the rest shows; mount it whole too")

var errFUSE = errors.New("what a FUSE file system shows is what its program likes, also later; take the " +
	"volume out, or set fuse = true in the configuration if the programs behind this host's volumes are trusted")

// sawRoot tells whether the root of a file system was looked into.
func (h *Host) sawRoot(device string) bool { return h.looked[place{device, "/"}] }

var errHidden = errors.New("another mount covers it, so that it cannot be looked into; unmount it")

// lookAt looks into a file system from one mount of it.
func (h *Host) lookAt(m mountPoint) error {
	if err := h.openTrees(); err != nil {
		return err
	}
	fd, err := openMount(m)
	if err != nil {
		return fmt.Errorf("looking into the %s on %s: %w", m.kind, m.point, err)
	}
	defer unix.Close(fd)
	// A copy has nothing mounted in it that could cover what is underneath. Where
	// the kernel does not give one, a process in the container's user namespace
	// cannot take a cover off either.
	if clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH); err == nil {
		unix.Close(fd)
		fd = clone
	}
	if err := h.lookAtFile(fd, m); err != nil {
		return err
	}
	c := comparer{lax: isMovable(m.kind), layered: h.layered, left: mostCompared, root: fd}
	for _, t := range h.trees {
		for _, position := range t.positions {
			shows, err := c.shows(position, t)
			if err != nil {
				return fmt.Errorf("looking into the %s on %s: %w", m.kind, path.Join(m.point, position), err)
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
				return fmt.Errorf("looking into the %s on %s: %w", m.kind, path.Join(m.point, position), err)
			}
			if shows {
				h.guarded = append(h.guarded, guard{place{m.device, path.Join(m.path, position)}, f.name, false})
			}
		}
	}
	return nil
}

// lookAtFile looks at a mount of a single file: whether it is one of the state
// directory's.
func (h *Host) lookAtFile(fd int, m mountPoint) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at the file on %s: %w", m.point, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	c := comparer{lax: isMovable(m.kind)}
	for _, t := range h.trees {
		if t.store || strings.HasPrefix(t.name, h.store.Dir+"/") {
			continue // one file of the store was asked for by name
		}
		names, err := rootfs.Names(t.fd)
		if errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.name, err)
		}
		for _, name := range names {
			like, err := c.compare(fd, "", t.fd, name)
			if err != nil {
				return fmt.Errorf("looking at the file on %s: %w", m.point, err)
			}
			if like.same {
				h.guarded = append(h.guarded, guard{m.place, t.name + "/" + name, false})
			}
		}
	}
	return nil
}

// openMount opens the root of a mount, and no other that is mounted over it.
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
	// STATX_MNT_ID: Linux 5.8. AT_STATX_DONT_SYNC: a network or FUSE file system is
	// not asked.
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == nil && fmt.Sprint(st.Mnt_id) != m.id {
		err = errHidden
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

var errNotThere = errors.New("not there")

// openBelow opens a directory below another, on the same mount and not by way of a
// link.
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

// comparer compares what shows with guarded directories.
type comparer struct {
	// lax: the file system says what it likes of a file's times and links, as FUSE
	// and servers do. Then names decide, and sizes.
	lax bool
	// layered: a guarded directory may itself be merged, and what shows be a layer.
	layered bool
	left    int // how many names may still be looked at
	root    int // what is looked into
	// rootNames are the names in it, once they were read.
	rootNames []string
}

// mostCompared bounds the names that are looked at in one file system. An image with a
// store of its own has some thousand.
const mostCompared = 200_000

var errTooMany = errors.New("it has too many names to tell whether the host's store shows there")

// shows tells whether a guarded directory, or a part of it, shows at a position.
func (c *comparer) shows(position string, t tree) (bool, error) {
	fd := c.root
	if position != "" {
		var err error
		if fd, err = c.open(c.root, position); err != nil {
			return false, ignore(err, errNotThere)
		}
		defer unix.Close(fd)
	}
	like, err := c.compare(fd, "", t.fd, "")
	if err != nil || like.same {
		return like.same, err
	}
	if like.kind != unix.S_IFDIR {
		return false, nil
	}
	return c.contains(fd, t.fd, t.store, like.attributes)
}

// showsFile tells whether a guarded file shows at a position.
func (c *comparer) showsFile(position string, f guardedFile) (bool, error) {
	dir, name := c.root, position
	if above, base := path.Split(position); above != "" {
		var err error
		if dir, err = c.open(c.root, strings.TrimSuffix(above, "/")); err != nil {
			return false, ignore(err, errNotThere)
		}
		defer unix.Close(dir)
		name = base
	}
	like, err := c.compare(dir, name, f.dir, f.base)
	return like.same, err
}

// contains tells whether a directory has something of a guarded one in it. It needs to
// be looked into if it is merged, or may lie, or has the guarded one's attributes and
// another inode number, which overlay makes up for a directory of another file system:
// any other is the guarded directory itself, or is not.
func (c *comparer) contains(dir, guarded int, store, attributes bool) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if st.Nlink != 1 && !attributes && !c.lax && !c.layered {
		return false, nil
	}
	names, err := c.names(dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if c.left--; c.left < 0 {
			return false, errTooMany
		}
		like, err := c.compare(dir, name, guarded, name)
		if err != nil || like.same {
			return like.same, err
		}
		if like.kind == 0 {
			continue
		}
		// The same hash and the same time are no accident.
		if _, err := closure.ParseBaseName(name); err == nil && store && (c.lax || like.attributes) {
			return true, nil
		}
		if like.kind != unix.S_IFDIR {
			continue
		}
		if found, err := c.containsBelow(dir, guarded, name, like.attributes); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

func (c *comparer) containsBelow(dir, guarded int, name string, attributes bool) (bool, error) {
	a, err := c.open(dir, name)
	if err != nil {
		return false, ignore(err, errNotThere)
	}
	defer unix.Close(a)
	b, err := openBelow(guarded, name)
	if err != nil {
		return false, ignore(err, errNotThere)
	}
	defer unix.Close(b)
	return c.contains(a, b, false, attributes)
}

// open is openBelow in what is looked into. What this process may not enter, a FUSE
// file system may let another user enter.
func (c *comparer) open(dir int, name string) (int, error) {
	fd, err := openBelow(dir, name)
	if errors.Is(err, unix.EACCES) && !c.lax {
		err = errNotThere
	}
	return fd, err
}

// names returns the names in a directory, those in the root from the first reading.
func (c *comparer) names(dir int) ([]string, error) {
	if dir != c.root {
		return rootfs.Names(dir)
	}
	if c.rootNames == nil {
		names, err := rootfs.Names(dir)
		if err != nil {
			return nil, err
		}
		c.rootNames = names
	}
	return c.rootNames, nil
}

// ignore returns nil for an error that is target.
func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// likeness is how like a guarded file another is.
type likeness struct {
	kind       uint32 // the type of both; 0: they have different ones, or one is not there
	same       bool   // it is the same file
	attributes bool   // it has the guarded file's attributes
}

// compare compares a file with a guarded one. That is looked at twice, because it may
// change meanwhile.
func (c *comparer) compare(dir int, name string, guarded int, guardedName string) (likeness, error) {
	var st [3]unix.Stat_t
	for i, f := range []struct {
		dir  int
		name string
	}{{guarded, guardedName}, {dir, name}, {guarded, guardedName}} {
		flags := unix.AT_SYMLINK_NOFOLLOW
		if f.name == "" {
			flags |= unix.AT_EMPTY_PATH
		}
		err := unix.Fstatat(f.dir, f.name, &st[i], flags)
		// Where this user may not look, no container of this user's may. A FUSE file
		// system may let another user.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) && (i != 1 || !c.lax) {
			return likeness{}, nil
		}
		if err != nil {
			return likeness{}, &os.PathError{Op: "fstatat", Path: name, Err: err}
		}
	}
	shown := st[1]
	var like likeness
	if shown.Mode&unix.S_IFMT != st[0].Mode&unix.S_IFMT {
		return like, nil
	}
	like.kind = shown.Mode & unix.S_IFMT
	for _, own := range []unix.Stat_t{st[0], st[2]} {
		if c.lax {
			// Directories have nothing that could be relied on.
			equal := own.Size > 0 && shown.Size == own.Size && shown.Mtim.Sec == own.Mtim.Sec
			like.same = like.same || like.kind == unix.S_IFREG && equal
			continue
		}
		equal := shown.Size == own.Size && shown.Mtim == own.Mtim && shown.Ctim == own.Ctim
		like.attributes = like.attributes || equal
		like.same = like.same || equal && uint32(shown.Ino) == uint32(own.Ino)
	}
	return like, nil
}
