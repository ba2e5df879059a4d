// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// Host is what of this host a container with a closure must not see: the store
// directory, Nix's state and log directories, this program's runtime directory, what
// is in them and the directories above them.
//
// They are recognised however a mount reaches them. On a file system that has its
// own files, by the place on it. Where a file system is made of others, as an
// overlay or FUSE, by looking into it (look.go). Single files also by device and
// inode, because they may have hard links.
type Host struct {
	store     closure.Store
	storeReal string // without symbolic links
	storeID   fileID
	mounts    Mounts
	guarded   []guard
	trees     []*tree
	// opened and openedDeep tell which of them are open.
	opened, openedDeep bool
	// layersAsked are the store paths that layers of overlays are in.
	layersAsked []askedAt
	handles     handleRoots
	// directories are those whose attributes rootsAlone has looked at.
	directories map[string]*unix.Stat_t
	files       []guardedFile
	ids         map[fileID]string
	// identified are the ids of paths that were looked at; zero: nothing is there.
	identified map[string]fileID
	// lookedInside: whether ids has what lookInside adds.
	lookedInside bool
	// layered: a guarded directory is on a file system that is made of others, whose
	// own files may show at any mount.
	layered bool
	// looked are places that were looked into. What they show is in guarded.
	looked map[place]bool
	// ProcessesAllowed: whether mounts of /proc are none of our business.
	ProcessesAllowed bool
	// NamesElsewhere: the calling thread's mount namespace has another root directory than
	// the host's, so that what overlays were mounted with names nothing there.
	NamesElsewhere bool
	// OwnPIDs is the PID namespace of the container (/proc/PID/ns/pid), whose /proc it may
	// have. nil: not known, as before it is made.
	OwnPIDs os.FileInfo
	// FUSEAllowed: whether a volume may be a FUSE file system, which is looked into
	// then, and can show anything all the same.
	FUSEAllowed bool
}

// guard is a directory that must not show. Of the store directory, a single
// store path may.
type guard struct {
	place
	name  string
	store bool
}

// asked returns the store path that a path inside the guarded directory is of.
func (g guard) asked(inside string) (closure.BaseName, bool) {
	first, _, _ := strings.Cut(inside, "/")
	base, err := closure.ParseBaseName(first)
	return base, err == nil && g.store
}

// askedAt is a store path that a directory of an overlay shows.
type askedAt struct {
	place
	base closure.BaseName
}

type fileID struct{ device, inode uint64 }

// LookAtHost finds out what to guard. mountinfo is the text of
// /proc/self/mountinfo of the host. Close the Host when it is not needed any more.
func LookAtHost(store closure.Store, runtimeDir string, mountinfo []byte) (_ *Host, Err error) {
	mounts, err := ParseMounts(mountinfo)
	if err != nil {
		return nil, err
	}
	h := &Host{
		store: store, mounts: mounts,
		ids: map[fileID]string{}, identified: map[string]fileID{}, looked: map[place]bool{},
	}
	defer func() {
		if Err != nil {
			h.Close()
		}
	}()
	if h.storeReal, err = h.guard(store.Dir, true); err != nil {
		return nil, err
	}
	if h.storeID, err = identify(store.Dir); err != nil {
		return nil, err
	}
	for _, dir := range []string{store.StateDir, logDir(store), runtimeDir} {
		if _, err := h.guard(dir, false); err != nil {
			return nil, err
		}
	}
	if err := h.guardDisks(); err != nil || !h.layered {
		return h, err
	}
	if err := h.guardLayers(); err != nil {
		return nil, err
	}
	return h, h.guardDisks() // of the layers
}

// logDir is where Nix keeps the output of builds: beside its state directory.
func logDir(store closure.Store) string {
	return filepath.Dir(store.StateDir) + "/log/" + filepath.Base(store.StateDir)
}

// Close releases what was opened.
func (h *Host) Close() {
	for _, t := range h.trees {
		if t.fd >= 0 {
			unix.Close(t.fd)
		}
	}
	for _, f := range h.files {
		unix.Close(f.dir)
	}
	h.handles.close()
	h.trees, h.files = nil, nil
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
	if missing == "" {
		h.addTree(dir, real, m, store)
	}
	paths := []string{dir}
	if real != dir {
		paths = append(paths, real)
	}
	for _, p := range paths {
		for ; ; p = path.Dir(p) {
			if _, known := h.identified[p]; known {
				break
			}
			id, err := identify(p)
			h.identified[p] = id
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
	if h.lookedInside {
		return nil
	}
	for _, dir := range []string{h.store.StateDir, h.store.StateDir + "/db", h.store.StateDir + "/daemon-socket"} {
		entries, err := os.ReadDir(dir)
		// What an ordinary user may not look into, no container of theirs may.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return err
		}
		for _, e := range entries {
			id, err := identify(dir + "/" + e.Name())
			switch {
			case err == nil:
				h.ids[id] = dir + "/" + e.Name()
			case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.ELOOP):
				return err
			}
		}
	}
	h.lookedInside = true
	return nil
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// showsPlace returns what a mount of p shows that it must not, or nothing; and the
// store paths that it shows, which were asked for by name.
func (h *Host) showsPlace(p place) (shows string, asked []closure.BaseName) {
	for _, g := range h.guarded {
		if g.within(p) {
			return g.name, nil
		}
		if !p.within(g.place) {
			continue
		}
		inside := strings.TrimPrefix(strings.TrimPrefix(p.path, g.path), "/")
		base, ok := g.asked(inside)
		if !ok {
			return path.Join(g.name, inside), nil
		}
		if !slices.Contains(asked, base) {
			asked = append(asked, base)
		}
	}
	for _, a := range h.layersAsked {
		if (a.within(p) || p.within(a.place)) && !slices.Contains(asked, a.base) {
			asked = append(asked, a.base)
		}
	}
	return "", asked
}

// storePathAt returns the store path that a place is in.
func (h *Host) storePathAt(p place) (closure.BaseName, bool) {
	for _, g := range h.guarded {
		if !g.store || !p.within(g.place) {
			continue
		}
		inside := strings.TrimPrefix(strings.TrimPrefix(p.path, g.path), "/")
		if base, ok := g.asked(inside); ok {
			return base, true
		}
	}
	return "", false
}

// ErrNoMount says that a path is on none of the mounts that a mountinfo lists.
var ErrNoMount = errors.New("is on none of the mounts in mountinfo")

// Open opens what mounts are compared with. Where that is done in a mount namespace of
// others, it is called before that is joined: the host's names need not lead there.
func (h *Host) Open() error {
	if err := h.openTrees(); err != nil {
		return err
	}
	h.handles.add(h.mounts, h.guarded)
	return nil
}

// MountsInStore returns the mount points of the host that lie inside the store
// directory.
func (h *Host) MountsInStore() []string {
	names := h.namesInStore()
	for i, name := range names {
		names[i] = h.storeReal + "/" + name
	}
	return names
}

// HasInStore tells whether a path relative to the store directory is a mount point there.
func (h *Host) HasInStore(name string) bool { return slices.Contains(h.namesInStore(), name) }

func (h *Host) namesInStore() []string {
	var inside []string
	for _, m := range h.mounts {
		if name, ok := strings.CutPrefix(m.point, h.storeReal+"/"); ok {
			inside = append(inside, name)
		}
	}
	return inside
}
