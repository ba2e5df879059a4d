// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// ErrCovered says that a mount that config.json does not list is on the container's store
// directory, or inside it.
var ErrCovered = errors.New("a mount is in the way of the view: another mount covers it, or config.json does not " +
	"list it; remove it")

// CheckMounts checks what is really mounted in a container. mounts are those of its mount
// namespace, in which the calling thread must be. root is the path of the container's root
// in that namespace, without symbolic links. It returns the store paths that mounts show.
//
// Classify is not enough, for two reasons. A source's name may have led elsewhere by the
// time that the runtime mounted it, and config.json need not list all mounts.
//
// A root that is not the root of a mount is an error: runtimes mount it, so its name must
// have led elsewhere since.
func (h *Host) CheckMounts(mounts Mounts, root string) ([]closure.BaseName, error) {
	isMount := false
	var all []closure.BaseName
	for _, m := range mounts {
		if !below(m.point, root) {
			continue
		}
		isMount = isMount || m.point == root
		shows, asked, err := h.showsAny(mounts, []mountPoint{m})
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", inContainer(m.point, root), err)
		}
		if shows != "" {
			return nil, &LeakError{inContainer(m.point, root), shows}
		}
		if base, in := h.storePathAt(m.place); in && m.point == root {
			return nil, h.rootInStore(base)
		}
		all = append(all, asked...)
	}
	if !isMount {
		return nil, fmt.Errorf("the container's root %s is not the root of a mount, as runtimes make it; its name "+
			"leads elsewhere than it did", root)
	}
	return all, nil
}

// LeakError says that a mount of a container shows what it must not.
type LeakError struct {
	Point string // of the mount, in the container
	Shows string
}

func (e *LeakError) Error() string {
	return fmt.Sprintf("mount on %s: shows %s of the host, and with it more than the closure; take the mount out, or "+
		"take another root", e.Point, e.Shows)
}

func (h *Host) rootInStore(base closure.BaseName) error {
	return fmt.Errorf("the container's root is %s, or in it, and directories would be made there; take a copy "+
		"of it, or an overlay", h.store.Path(base))
}

// CheckRoot refuses a root.path of config.json
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md#root) that is in
// the store. A runtime makes directories in the root before it calls createRuntime, so this
// check belongs where config.json is rewritten too. It does not look into an overlay: there,
// such directories are on the upper layer.
func (h *Host) CheckRoot(bundle, root string) error {
	p, m, err := h.placeOfRoot(bundle, root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the runtime reports it
	}
	if err == nil && m.kind != "overlay" {
		err = h.look(h.mounts, m)
	}
	if err != nil {
		return err
	}
	if base, in := h.storePathAt(p); in {
		return h.rootInStore(base)
	}
	return nil
}

// RootLayers returns the store paths that are layers of a container's root. It refuses a
// root in the store, as CheckRoot does, and one that cannot be looked into.
func (h *Host) RootLayers(bundle, root string) ([]closure.BaseName, error) {
	p, m, err := h.placeOfRoot(bundle, root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := h.look(h.mounts, m); err != nil {
		return nil, err
	}
	if base, in := h.storePathAt(p); in {
		return nil, h.rootInStore(base)
	}
	_, layers := h.showsPlace(p) // CheckMounts refuses all else that it shows
	return layers, nil
}

// IsMountedIn reports whether something is mounted in a container's root on the host, or the
// root is not there.
func (h *Host) IsMountedIn(bundle, root string) bool {
	real, err := filepath.EvalSymlinks(absoluteIn(bundle, root))
	return err != nil || slices.ContainsFunc(h.mounts, func(m mountPoint) bool {
		return m.point != real && below(m.point, real)
	})
}

// placeOfRoot returns the place of a container's root, and the mount that it is on.
func (h *Host) placeOfRoot(bundle, root string) (place, mountPoint, error) {
	return h.placeNamed(absoluteIn(bundle, root))
}

// inContainer returns a path as the container names it.
func inContainer(point, root string) string {
	return "/" + strings.TrimPrefix(strings.TrimPrefix(point, root), "/")
}

// CheckTarget checks a directory of a container before a view is attached to it. It
// guarantees that nothing is mounted on the directory or inside it, that its mount does not
// propagate, and that no server can take the mount away. dir is the name of the directory
// in the container, and target is where that name leads; paths are as for CheckMounts.
//
// If target lies in a volume, CheckTarget returns the volume's mount point: other
// containers may have that volume, and rename things in it. Else volume is empty.
func (h *Host) CheckTarget(mounts Mounts, root, dir, target string) (volume string, _ error) {
	named := strings.TrimSuffix(root, "/") + dir
	for _, m := range mounts {
		if below(m.point, target) || below(m.point, named) {
			return "", fmt.Errorf("%s in the container: %w", inContainer(m.point, root), ErrCovered)
		}
	}
	m := mountOf(mounts, target)
	if m.device == "" {
		return "", fmt.Errorf("%s: %w", target, ErrNoMount)
	}
	for on := path.Dir(target); below(on, root); on = path.Dir(on) {
		if above := mountOf(mounts, on); isMovable(h.serverOf(mounts, above)) {
			return "", movableError(above, root, h.serverOf(mounts, above))
		}
		if on == "/" {
			break
		}
	}
	shared := m.point != root && m.group != ""
	if shared || m.group != "" && slices.ContainsFunc(h.mounts, func(o mountPoint) bool { return o.group == m.group }) {
		return "", fmt.Errorf("what is mounted in %s of the container propagates to the host; mount it without "+
			"shared propagation", inContainer(m.point, root))
	}
	if m.point == root || h.isOwnTmpfs(m) {
		return "", nil
	}
	return m.point, nil
}

// isOwnTmpfs reports whether a mount is a tmpfs that the runtime made for this container:
// no mount of the host has it.
func (h *Host) isOwnTmpfs(m mountPoint) bool {
	isHosts := slices.ContainsFunc(h.mounts, func(o mountPoint) bool { return o.device == m.device })
	return m.kind == "tmpfs" && m.path == "/" && !isHosts
}

// ShowsFile returns what an open file shows of the host that it must not, by its device and
// inode; empty: nothing. For a directory this is not enough, because `..` may lead to more.
func (h *Host) ShowsFile(st *unix.Stat_t) (string, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return h.ids[fileID{st.Dev, st.Ino}], nil
	case unix.S_IFCHR, unix.S_IFIFO:
		return "", nil
	case unix.S_IFBLK:
		return h.onDisk(st.Rdev), nil
	}
	if err := h.lookInside(); err != nil {
		return "", err
	}
	return h.ids[fileID{st.Dev, st.Ino}], nil
}

// CheckMasks refuses linux.maskedPaths
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md#masked-paths)
// that would hide a view. The runtime covers these paths after the hooks.
func (c Config) CheckMasks(dirs ...string) error {
	for _, masked := range c.MaskedPaths {
		at := path.Clean("/" + masked)
		for _, dir := range dirs {
			if below(at, dir) || below(dir, at) {
				return fmt.Errorf("linux.maskedPaths of config.json has %s, "+
					"which would hide what the view shows in %s; "+
					"take it out", masked, dir)
			}
		}
	}
	return nil
}

// CheckServers refuses a container whose root, or a mount on the way to one of dirs, is on
// a file system with a server. Such a server can take away what is mounted on it, or stop
// answering. CheckServers reads names only, so it asks no server.
func (h *Host) CheckServers(mounts Mounts, root string, dirs ...string) error {
	for _, m := range mounts {
		if !below(m.point, root) {
			continue
		}
		server := h.serverOf(mounts, m)
		for _, dir := range dirs {
			if isMovable(server) && below(strings.TrimSuffix(root, "/")+dir, m.point) {
				return movableError(m, root, server)
			}
		}
	}
	return nil
}

// IsLocal reports whether an open directory is on a mount of the host that has no server, so
// that whatever is done with the directory asks none. It does not ask one itself.
func (h *Host) IsLocal(dir int) bool {
	var st unix.Statx_t
	if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return false
	}
	device := fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	i := slices.IndexFunc(h.mounts, func(m mountPoint) bool { return m.device == device })
	return i >= 0 && !isMovable(h.serverOf(h.mounts, h.mounts[i]))
}

// serverOf returns the type of a mount's file system or, if a layer of it is on a movable
// one, the type of that. The names of layers are the host's, or, for what the runtime
// mounted, may lead into the container: mounts are those of its mount namespace.
func (h *Host) serverOf(mounts Mounts, m mountPoint) string {
	tables := []Mounts{mounts}
	if !h.NamesElsewhere {
		tables = append(tables, h.mounts)
	}
	for _, name := range m.layerNames() {
		for _, table := range tables {
			if on := mountOf(table, path.Clean("/"+name)); isMovable(on.kind) && on.device != "" {
				return on.kind
			}
		}
	}
	return m.kind
}

func movableError(m mountPoint, root, kind string) error {
	return fmt.Errorf("%s of the container is on a %s file system, whose server can take away what is mounted there; "+
		"take a root or a volume that is on a disk of this host, and with rootless podman native overlays (no "+
		"mount_program in storage.conf)",
		inContainer(m.point, root), kind)
}
