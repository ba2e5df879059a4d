// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// Class is what a mount of config.json means for the store.
type Class int

// The classes. A mount whose class cannot be found out is an error, never
// NoneOfOurs.
const (
	NoneOfOurs Class = iota
	// Replaced: it lies on the store directory or inside it, or above it and
	// shows the host's store there. The view takes its place.
	Replaced
	// Leaks: it shows the store, Nix's state directory, the daemon's socket or
	// this program's runtime directory at some other place.
	Leaks
)

// Host is what of this host a container with a closure must not see: the store
// directory, Nix's state directory, this program's runtime directory, what is in
// them and the directories above them.
//
// They are recognised however a mount reaches them, by symbolic links or by
// another mount of the same file system: by the place on the file system, and
// single files also by device and inode, for they may have hard links.
type Host struct {
	store     closure.Store
	storeReal string // without symbolic links
	storeID   fileID
	mounts    Mounts
	guarded   []guard
	ids       map[fileID]string
	looked    bool // whether ids has what lookInside adds
}

// guard is a directory that must not show. Of the store directory, a single
// store path may.
type guard struct {
	place
	name  string
	store bool
}

type fileID struct{ device, inode uint64 }

// LookAtHost finds out what to guard. mountinfo is the text of
// /proc/self/mountinfo of the host.
func LookAtHost(store closure.Store, runtimeDir string, mountinfo []byte) (*Host, error) {
	h := &Host{store: store, mounts: ParseMounts(mountinfo), ids: map[fileID]string{}}
	var err error
	if h.storeReal, err = h.guard(store.Dir, true); err != nil {
		return nil, err
	}
	if h.storeID, err = identify(store.Dir); err != nil {
		return nil, err
	}
	for _, dir := range []string{store.StateDir, runtimeDir} {
		if _, err := h.guard(dir, false); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// guard adds a directory, and all above it by name. What is not there yet, and
// may be made by the time that something is mounted, is guarded where it will be.
// It returns the directory's path without symbolic links.
func (h *Host) guard(dir string, store bool) (real string, err error) {
	there, missing := dir, ""
	real, err = filepath.EvalSymlinks(there)
	for !store && errors.Is(err, os.ErrNotExist) && there != "/" {
		there, missing = path.Dir(there), "/"+path.Base(there)+missing
		real, err = filepath.EvalSymlinks(there)
	}
	if err != nil {
		return "", err
	}
	real = strings.TrimSuffix(real, "/") + missing
	m := mountOf(h.mounts, real)
	if m.device == "" {
		return "", fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	h.guarded = append(h.guarded, guard{m.placeOf(real), dir, store})
	// A store that is an overlay, as on a live system, has its files in layers.
	for _, layer := range m.layers() {
		layer += strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/"))
		h.guarded = append(h.guarded, guard{placeOf(h.mounts, layer), layer, store})
	}
	paths := []string{dir}
	if real != dir {
		paths = append(paths, real)
	}
	for _, p := range paths {
		for ; ; p = path.Dir(p) {
			id, err := identify(p)
			if err != nil && (missing == "" || !errors.Is(err, os.ErrNotExist)) {
				return "", err
			}
			if _, ok := h.ids[id]; err == nil && !ok {
				h.ids[id] = p
			}
			if p == "/" {
				break
			}
		}
	}
	return real, nil
}

// lookInside adds the files of the state directory that must not be reached by a
// hard link either. Most containers' mounts never need it.
func (h *Host) lookInside() error {
	if h.looked {
		return nil
	}
	for _, dir := range []string{h.store.StateDir, h.store.StateDir + "/db", h.store.StateDir + "/daemon-socket"} {
		entries, err := os.ReadDir(dir)
		// What an ordinary user may not look into, no container of theirs may.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return err
		}
		for _, e := range entries {
			if id, err := identify(dir + "/" + e.Name()); err == nil {
				h.ids[id] = dir + "/" + e.Name()
			}
		}
	}
	h.looked = true
	return nil
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// showsPlace returns what a mount of p shows that it must not, or nothing.
func (h *Host) showsPlace(p place) string {
	for _, g := range h.guarded {
		if g.within(p) {
			return g.name
		}
		if !p.within(g.place) {
			continue
		}
		inside := strings.TrimPrefix(strings.TrimPrefix(p.path, g.path), "/")
		first, _, _ := strings.Cut(inside, "/")
		// A single store path, or a part of one, is what was asked for by name.
		if _, err := closure.ParseBaseName(first); err != nil || !g.store {
			return g.name + "/" + inside
		}
	}
	return ""
}

// showsMount returns what a mount shows that it must not, or nothing. An overlay
// shows its layers.
func (h *Host) showsMount(m mountPoint) string {
	if shows := h.showsPlace(m.place); shows != "" {
		return shows
	}
	for _, layer := range m.layers() {
		if shows := h.showsPlace(placeOf(h.mounts, layer)); shows != "" {
			return shows
		}
	}
	return ""
}

// ErrNoMount says that a path is on none of the mounts that a mountinfo lists.
var ErrNoMount = errors.New("is on none of the mounts in mountinfo")

// MountsInStore returns the mount points of the host that lie inside the store
// directory.
func (h *Host) MountsInStore() []string {
	var inside []string
	for _, m := range h.mounts {
		if strings.HasPrefix(m.point, h.storeReal+"/") {
			inside = append(inside, m.point)
		}
	}
	return inside
}

// ErrCovered says that something is mounted on a container's store directory or
// inside it.
var ErrCovered = errors.New("is mounted where a view goes or inside of it, under another mount or by none of the mounts in config.json, and cannot be taken off")

// CheckMounts looks at what is really mounted in a container, by the mounts of
// its mount namespace: the name of a mount's source may have led elsewhere
// when the runtime mounted it than when it was classified, and config.json need
// not have all mounts. root is the container's root as a path in that namespace
// without symbolic links. Runtimes mount it; if nothing is mounted there, the
// name has led elsewhere since.
func (h *Host) CheckMounts(mounts Mounts, root string) error {
	isMount := false
	for _, m := range mounts {
		if !below(m.point, root) {
			continue
		}
		isMount = isMount || m.point == root
		if shows := h.showsMount(m); shows != "" {
			inside := "/" + strings.TrimPrefix(strings.TrimPrefix(m.point, root), "/")
			return fmt.Errorf("mount on %s: shows %s of the host, and with it more than the closure; take the mount out, or take another root", inside, shows)
		}
	}
	if !isMount {
		return fmt.Errorf("the container's root %s is not the root of a mount, as runtimes make it; its name leads elsewhere than it did", root)
	}
	return nil
}

// CheckTarget looks at a directory of a container before a view is attached to
// it: that nothing is mounted on it or inside it, and that what is mounted on it
// does not propagate to the host. dir is its name in the container, and target
// where that leads; paths are as for CheckMounts.
func (h *Host) CheckTarget(mounts Mounts, root, dir, target string) error {
	named := strings.TrimSuffix(root, "/") + dir
	for _, m := range mounts {
		if below(m.point, target) || below(m.point, named) {
			return fmt.Errorf("what is on %s %w; take it out of the container's mounts", strings.TrimPrefix(m.point, strings.TrimSuffix(root, "/")), ErrCovered)
		}
	}
	m := mountOf(mounts, target)
	if m.device == "" {
		return fmt.Errorf("%s: %w", target, ErrNoMount)
	}
	if m.group != "" && slices.ContainsFunc(h.mounts, func(o mountPoint) bool { return o.group == m.group }) {
		return fmt.Errorf("what is mounted in %s of the container propagates to the host; mount it without shared propagation", strings.TrimPrefix(m.point, strings.TrimSuffix(root, "/")))
	}
	return nil
}

// Classify tells what a mount of a config.json means. Of a mount that Leaks it
// says what it shows. It looks at the host as it is now, and by the names that
// the mount gives: whoever can rename a part of the source can make it another
// by the time that the runtime mounts it, so what is mounted is looked at again
// (CheckMounts).
func (h *Host) Classify(bundle string, m specs.Mount) (_ Class, shows string, _ error) {
	destination := path.Clean("/" + m.Destination)
	if below(destination, h.store.Dir) {
		return Replaced, "", nil
	}
	sources, err := sourcesOf(bundle, m)
	if err != nil || len(sources) == 0 {
		return NoneOfOurs, "", err
	}
	if err := h.lookInside(); err != nil {
		return 0, "", err
	}
	inside, above := strings.CutPrefix(h.store.Dir, destination+"/")
	for _, s := range sources {
		if above && destination != "/" {
			if id, err := identify(s.path + "/" + inside); err == nil && id == h.storeID {
				return Replaced, "", nil
			}
		}
		shows, err := h.shown(s)
		if err != nil {
			return 0, "", err
		}
		if shows != "" {
			return Leaks, shows, nil
		}
	}
	return NoneOfOurs, "", nil
}

// source is a file of the host that a mount shows.
type source struct {
	path      string
	recursive bool // with what is mounted below it
}

// virtual are the types of file systems that show no file of the host.
var virtual = []string{"tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "ramfs", "hugetlbfs", "securityfs", "debugfs", "tracefs", "bpf"}

// sourcesOf lists what of the host a mount shows: nothing, for most types.
func sourcesOf(bundle string, m specs.Mount) ([]source, error) {
	absolute := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(bundle, p)
	}
	bind, rbind := slices.Contains(m.Options, "bind"), slices.Contains(m.Options, "rbind")
	switch {
	case m.Type == "bind", bind, rbind:
		return []source{{path: absolute(m.Source), recursive: rbind || !bind}}, nil
	case m.Type == "overlay":
		var all []source
		// The kernel takes what is between commas for options, whatever string
		// of the list it is in.
		for option := range strings.SplitSeq(strings.Join(m.Options, ","), ",") {
			if strings.Contains(option, `\`) {
				return nil, fmt.Errorf("overlay option %q: has a backslash, which can hide a path", option)
			}
			for _, dir := range layers(option) {
				all = append(all, source{path: absolute(dir)})
			}
		}
		return all, nil
	case m.Source == "" || slices.Contains(virtual, m.Type):
		return nil, nil
	}
	return []source{{path: absolute(m.Source)}}, nil
}

// layers returns the directories of an overlay, as far as they are named by
// absolute paths.
func (m mountPoint) layers() []string {
	if m.kind != "overlay" {
		return nil
	}
	var all []string
	for option := range strings.SplitSeq(m.options, ",") {
		for _, layer := range layers(option) {
			if filepath.IsAbs(layer) {
				all = append(all, layer)
			}
		}
	}
	return all
}

// layers returns the directories that an option of an overlay names.
func layers(option string) []string {
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
		return strings.FieldsFunc(value, func(r rune) bool { return r == ':' })
	}
	return nil
}

// shown returns what a source shows that it must not, or nothing.
func (h *Host) shown(s source) (string, error) {
	// O_PATH: no permission but the way there, no side effect on what is opened.
	f, err := os.OpenFile(s.path, unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // the runtime cannot mount it either, or CheckMounts sees it
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	// The disk that the store is on.
	if st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == h.storeID.device {
		return h.store.Dir, nil
	}
	if name, ok := h.ids[fileID{st.Dev, st.Ino}]; ok {
		return name, nil
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", err
	}
	m := mountOf(h.mounts, real)
	if m.device == "" {
		return "", fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	if shows := h.showsPlace(m.placeOf(real)); shows != "" {
		return shows, nil
	}
	for _, layer := range m.layers() {
		if shows := h.showsPlace(placeOf(h.mounts, layer+strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/")))); shows != "" {
			return shows, nil
		}
	}
	if s.recursive {
		for _, m := range h.mounts {
			if below(m.point, real) {
				if shows := h.showsMount(m); shows != "" {
					return shows, nil
				}
			}
		}
	}
	return "", nil
}
