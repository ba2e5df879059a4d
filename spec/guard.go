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

// Host knows what a container with a closure must not see of this host: the store
// directory, Nix's state and log directories, this program's runtime directory, everything
// in them, and the directories above them.
//
// It recognises them whichever mount shows them. On a file system with its own files, it
// goes by the place. It looks into a file system that is made of others, such as overlay or
// FUSE (look.go). It recognises single files by device and inode too, because they may have
// hard links.
type Host struct {
	store     closure.Store
	storeReal string // without symbolic links
	storeID   fileID
	mounts    Mounts
	guarded   []guard
	trees     []*tree
	// opened and openedDeep tell which trees are open.
	opened, openedDeep bool
	// layersUnknown: the store is on an overlay with a layer that was not found.
	layersUnknown bool
	// layersAsked are store paths in which layers of overlays lie.
	layersAsked []askedAt
	handles     handleRoots
	// directories has the attributes of the directories that rootsAlone has looked at.
	directories map[string]*unix.Stat_t
	files       []guardedFile
	ids         map[fileID]string
	// real are directories that were found by a path without symbolic links; zero: the
	// path does not exist.
	real map[string]fileID
	// identified has the IDs of the paths that were looked at; zero: the path does not
	// exist.
	identified map[string]fileID
	// lookedInside: ids has what lookInside adds.
	lookedInside bool
	// layered: a guarded directory is on a file system that is made of others. The files of
	// those may show at any mount.
	layered bool
	// looked are the places that were looked into. What they show is in guarded.
	looked map[place]bool
	// vague are the devices of overlays that may show anything, and a path of each that tells
	// nothing: see errNoHandles.
	vague map[string]string
	// depth is how many overlays are being looked into, each for one that has it as a layer.
	depth int
	// ProcessesAllowed: mounts of /proc are not judged.
	ProcessesAllowed bool
	// NamesElsewhere: the calling thread's mount namespace has another root directory than
	// the host's. So the names in the options of overlays mean nothing there.
	NamesElsewhere bool
	// OwnPIDs is the PID namespace of the container (/proc/PID/ns/pid), whose /proc it may
	// have; nil: not known, because the container does not exist yet.
	OwnPIDs os.FileInfo
	// FUSEAllowed: a volume may be a FUSE file system. It is looked into, but it can show
	// anything.
	FUSEAllowed bool
}

// guard is a directory that must not show. A single store path of the store directory may.
type guard struct {
	place
	name  string
	store bool
}

// asked returns the store path that a path inside the guarded directory belongs to.
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

// LookAtHost finds out what to guard. mountinfo is the text of the host's
// /proc/self/mountinfo (proc_pid_mountinfo(5)). Close the Host after use.
func LookAtHost(store closure.Store, runtimeDir string, mountinfo []byte) (_ *Host, Err error) {
	mounts, err := ParseMounts(mountinfo)
	if err != nil {
		return nil, err
	}
	h := &Host{
		store: store, mounts: mounts,
		real: map[string]fileID{}, ids: map[fileID]string{}, identified: map[string]fileID{}, looked: map[place]bool{},
		vague: map[string]string{},
	}
	defer func() {
		if Err != nil {
			h.Close()
		}
	}()
	if h.storeReal, err = h.guard(store.Dir, true); err != nil {
		return nil, err
	}
	if h.storeID, err = h.identify(store.Dir); err != nil {
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
	return h, h.guardDisks() // those of the layers
}

// logDir is where Nix keeps the logs of builds: beside its state directory.
func logDir(store closure.Store) string {
	return filepath.Dir(store.StateDir) + "/log/" + filepath.Base(store.StateDir)
}

// Close closes the directories that the Host has open.
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

// guard guards a directory and all directories above it, by their names. A directory that
// does not exist yet may exist when something is mounted, so it is guarded where it will
// be. It returns the directory's path without symbolic links.
func (h *Host) guard(dir string, store bool) (real string, err error) {
	there, missing := dir, ""
	real, err = h.evalSymlinks(there)
	for !store && errors.Is(err, os.ErrNotExist) && there != "/" {
		there, missing = path.Dir(there), "/"+path.Base(there)+missing
		real, err = h.evalSymlinks(there)
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
			id, err := h.identify(p)
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

// evalSymlinks is filepath.EvalSymlinks. It looks at each directory once, because the paths
// that are guarded have most of them in common.
func (h *Host) evalSymlinks(name string) (string, error) {
	if _, real, err := h.realDirectory(name); real || err != nil {
		return name, err
	}
	return filepath.EvalSymlinks(name)
}

// identify is identify without a system call for a path that was looked at.
func (h *Host) identify(name string) (fileID, error) {
	if id, real, err := h.realDirectory(name); real || err != nil {
		return id, err
	}
	return identify(name)
}

// realDirectory reports whether an absolute path is of a directory and has no symbolic
// links, and which directory it is. If it does not exist, it fails with fs.ErrNotExist.
func (h *Host) realDirectory(name string) (id fileID, real bool, err error) {
	if path.Clean(name) != name || !path.IsAbs(name) {
		return fileID{}, false, nil
	}
	for end := 1; end <= len(name); end++ {
		if end > 1 && end < len(name) && name[end] != '/' {
			continue
		}
		if id, real, err = h.directory(name[:end]); !real || err != nil {
			return fileID{}, false, err
		}
	}
	return id, true, nil
}

// directory looks at the last name of a path whose other names are of real directories, and
// remembers what it found.
func (h *Host) directory(name string) (id fileID, real bool, err error) {
	id, known := h.real[name]
	if !known {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			id = fileID{st.Dev, st.Ino}
		} else if !errors.Is(err, unix.ENOENT) {
			return fileID{}, false, nil
		}
		h.real[name] = id
	}
	if id == (fileID{}) {
		return id, false, &os.PathError{Op: "lstat", Path: name, Err: unix.ENOENT}
	}
	return id, true, nil
}

// lookInside adds the files of the state directory, which must not be reached by a hard
// link either. The mounts of most containers do not need this.
func (h *Host) lookInside() error {
	if h.lookedInside {
		return nil
	}
	for _, dir := range []string{h.store.StateDir, h.store.StateDir + "/db", h.store.StateDir + "/daemon-socket"} {
		entries, err := os.ReadDir(dir)
		// If an ordinary user may not look into it, no container of that user may.
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

// showsPlace returns what a mount of p shows that it must not (empty: nothing), and the
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

// storePathAt returns the store path in which a place is.
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

// ErrNoMount says that a path is on no mount that mountinfo lists.
var ErrNoMount = errors.New("is on none of the mounts in mountinfo")

// Open opens the directories that mounts are compared with. Call it before you join another
// mount namespace: the host's names may lead elsewhere there.
func (h *Host) Open() error {
	if err := h.openTrees(); err != nil {
		return err
	}
	h.handles.add(h.mounts, h.guarded)
	return nil
}

// MountsInStore returns the host's mount points inside the store directory.
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
