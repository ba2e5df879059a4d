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

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/proc"
)

// Class is what a mount of config.json
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md#mounts) means for
// the store.
type Class int

// The classes. A mount that cannot be judged is an error, never NoneOfOurs.
const (
	NoneOfOurs Class = iota
	// Admitted: a bind mount of one store path, or of something below it, onto its own
	// path. It asks for that store path as an annotation does. The mount is removed,
	// because the view shows it.
	Admitted
	// Replaced: a mount on the store directory, or one above it that shows the host's store
	// there. The view takes its place.
	Replaced
	// Leaks: a mount that shows the store, Nix's state directory, the daemon's socket or
	// this program's runtime directory at another place.
	Leaks
)

// Verdict is the result of Classify.
type Verdict struct {
	Class Class
	// Shows is what the mount shows, if it Leaks.
	Shows string
	// Asked are the store paths that the mount names and shows, at their own place or at
	// another.
	Asked []closure.BaseName
}

// Classify judges a mount of a config.json, by the names that the mount gives and by the
// host as it is now. bundle is where relative sources of bind mounts begin.
//
// It does not guarantee what the runtime will mount: a process that can rename a part of
// the source can change that afterwards. CheckMounts looks again at what is mounted.
func (h *Host) Classify(bundle string, m specs.Mount) (Verdict, error) {
	destination := path.Clean("/" + m.Destination)
	if destination == h.store.Dir {
		return Verdict{Class: Replaced}, nil
	}
	sources, err := sourcesOf(bundle, m)
	if err != nil {
		return Verdict{}, err
	}
	if below(destination, h.store.Dir) {
		return h.admit(m, sources, strings.TrimPrefix(destination, h.store.Dir+"/"))
	}
	if len(sources) == 0 {
		return Verdict{}, nil
	}
	if err := h.lookInside(); err != nil {
		return Verdict{}, err
	}
	inside, above := strings.CutPrefix(h.store.Dir, destination+"/")
	var v Verdict
	for _, s := range sources {
		if above && destination != "/" {
			if id, err := identify(s.path + "/" + inside); err == nil && id == h.storeID {
				return Verdict{Class: Replaced}, nil
			}
		}
		shows, asked, err := h.shown(s)
		if err != nil {
			return Verdict{}, err
		}
		if shows != "" {
			return Verdict{Class: Leaks, Shows: shows}, nil
		}
		v.Asked = append(v.Asked, asked...)
	}
	return v, nil
}

// ErrInside says that a mount lies inside the store directory and is not Admitted.
var ErrInside = errors.New("lies inside the store directory, where only a store path or a part of it, bound " +
	"onto its own path, can be asked for; take the mount out, or mount it elsewhere")

// admit judges a mount inside the store directory. inside is its destination, relative to
// that directory.
func (h *Host) admit(m specs.Mount, sources []source, inside string) (Verdict, error) {
	if len(sources) != 1 || !isBind(m) {
		return Verdict{}, ErrInside
	}
	first, _, _ := strings.Cut(inside, "/")
	base, err := closure.ParseBaseName(first)
	if err != nil {
		return Verdict{}, ErrInside
	}
	p, err := h.sourcePlace(sources[0].path)
	if errors.Is(err, os.ErrNotExist) {
		return Verdict{}, fmt.Errorf("%s is not in the store; fetch or build it first", h.store.Path(base))
	}
	if err != nil {
		return Verdict{}, err
	}
	for _, g := range h.guarded {
		if g.store && p == (place{g.device, strings.TrimSuffix(g.path, "/") + "/" + inside}) {
			return Verdict{Class: Admitted, Asked: []closure.BaseName{base}}, nil
		}
	}
	return Verdict{}, ErrInside
}

// sourcePlace returns the place of a source, and looks into its file system if necessary.
func (h *Host) sourcePlace(name string) (place, error) {
	p, m, err := h.placeNamed(name)
	if err != nil {
		return place{}, err
	}
	return p, h.look(h.mounts, m)
}

// placeNamed returns the place of a file of the host, and the mount that it is on.
func (h *Host) placeNamed(name string) (place, mountPoint, error) {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return place{}, mountPoint{}, err
	}
	m := mountOf(h.mounts, real)
	if m.device == "" {
		return place{}, mountPoint{}, fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	return m.placeOf(real), m, nil
}

// source is a file of the host that a mount shows.
type source struct {
	path      string
	recursive bool // with what is mounted below it
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// sourcesOf returns the files of the host that a mount shows. Most types show none.
func sourcesOf(bundle string, m specs.Mount) ([]source, error) {
	bind, rbind := slices.Contains(m.Options, "bind"), slices.Contains(m.Options, "rbind")
	switch {
	case isBind(m):
		return []source{{path: absoluteIn(bundle, m.Source), recursive: rbind || !bind}}, nil
	case m.Type == "overlay":
		return layersOf(m)
	case m.Source == "" || slices.Contains(kernelKinds, m.Type) || slices.Contains(memoryKinds, m.Type):
		return nil, nil
	}
	return []source{{path: absoluteIn(bundle, m.Source)}}, nil
}

// absoluteIn returns a path of config.json that begins in the bundle if it is relative.
func absoluteIn(bundle, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(bundle, name)
}

// layersOf returns the directories that the options of an overlay in config.json name.
func layersOf(m specs.Mount) ([]source, error) {
	var all []source
	// The kernel splits the options at commas, whichever string of the list they are in.
	for option := range strings.SplitSeq(strings.Join(m.Options, ","), ",") {
		key, value, _ := strings.Cut(option, "=")
		if strings.Contains(option, `\`) {
			return nil, fmt.Errorf("overlay option %q: has a backslash, which can hide a path", option)
		}
		if !slices.Contains(layerOptions, key) {
			continue
		}
		for name := range splitLayers(value) {
			if !filepath.IsAbs(name) {
				return nil, fmt.Errorf("overlay option %q: a layer is named relative to a directory, and which "+
					"that is depends on the runtime; name it by its absolute path", option)
			}
			all = append(all, source{path: name})
		}
	}
	return all, nil
}

// shown returns what a source shows that it must not (empty: nothing), and the store paths
// that it shows.
func (h *Host) shown(s source) (shows string, asked []closure.BaseName, _ error) {
	// O_PATH needs no permission but to reach the file, and has no side effect on it.
	f, err := os.OpenFile(s.path, unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, nil // the runtime cannot mount it either, or CheckMounts finds it
	}
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", nil, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return h.onDisk(st.Rdev), nil, nil
	}
	if name, ok := h.ids[fileID{st.Dev, st.Ino}]; ok {
		return name, nil, nil
	}
	real, err := proc.FileName(int(f.Fd()))
	if err != nil {
		return "", nil, err
	}
	m := mountOf(h.mounts, real)
	if m.device == "" {
		return "", nil, fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	shown := []mountPoint{m}
	shown[0].place = m.placeOf(real)
	if s.recursive {
		for _, o := range h.mounts {
			// A mount that is covered by the topmost one does not come with it.
			if o.point != real && below(o.point, real) {
				shown = append(shown, o)
			}
		}
	}
	return h.showsAny(h.mounts, shown)
}

// showsAny is showsPlace for several mounts. It looks into their file systems if the places
// alone do not tell. mounts are those of the calling thread's mount namespace.
func (h *Host) showsAny(mounts Mounts, shown []mountPoint) (shows string, asked []closure.BaseName, _ error) {
	for _, m := range shown {
		if shows, _ := h.showsPlace(m.place); shows != "" {
			return shows, nil, nil
		}
		if h.showsProcesses(m) {
			return "the processes", nil, nil
		}
	}
	for _, m := range shown {
		if !h.looked[m.place] {
			if err := h.look(mounts, m); err != nil {
				return "", nil, err
			}
		}
		shows, all := h.showsPlace(m.place)
		if shows != "" {
			return shows, nil, nil
		}
		if example, vague := h.vague[m.device]; vague {
			return "", nil, fmt.Errorf("%s on %s, at %s of it: %w", m.kind, m.point, example, errNoHandles)
		}
		for _, base := range all {
			if !slices.Contains(asked, base) {
				asked = append(asked, base)
			}
		}
	}
	return "", asked, nil
}

// onDisk returns the guarded directory that is on a disk; empty: none.
func (h *Host) onDisk(disk uint64) string {
	device := fmt.Sprintf("%d:%d", unix.Major(disk), unix.Minor(disk))
	for _, g := range h.guarded {
		if g.device == device {
			return g.name
		}
	}
	if disk == h.storeID.device {
		return h.store.Dir
	}
	return ""
}
