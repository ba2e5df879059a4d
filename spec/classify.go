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

// Class is what a mount of config.json means for the store.
type Class int

// The classes. A mount whose class cannot be found out is an error, never
// NoneOfOurs.
const (
	NoneOfOurs Class = iota
	// Admitted: a bind of one store path, or of something below it, onto its own
	// path. That store path was asked for as by an annotation. The view shows it, so
	// the mount is taken off.
	Admitted
	// Replaced: it lies on the store directory, or above it and shows the host's
	// store there. The view takes its place.
	Replaced
	// Leaks: it shows the store, Nix's state directory, the daemon's socket or
	// this program's runtime directory at some other place.
	Leaks
)

// Verdict is what was found out of a mount.
type Verdict struct {
	Class Class
	// Shows is what a mount that Leaks shows.
	Shows string
	// Asked are the store paths that the mount names and shows, on their own place or
	// on another.
	Asked []closure.BaseName
}

// Classify tells what a mount of a config.json means. It looks at the host as it is
// now, and by the names that the mount gives: whoever can rename a part of the source
// can make it another by the time that the runtime mounts it, so what is mounted is
// looked at again (CheckMounts). bundle is where relative sources of binds begin.
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

// ErrInside says that a mount lies inside the store directory and is not admitted.
var ErrInside = errors.New("lies inside the store directory, where only a store path or a part of it, bound " +
	"onto its own path, can be asked for; take the mount out, or mount it elsewhere")

// admit classifies a mount inside the store directory, at a path relative to it.
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

// sourcePlace returns where a source is, and looks into its file system if need be.
func (h *Host) sourcePlace(name string) (place, error) {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return place{}, err
	}
	m := mountOf(h.mounts, real)
	if m.device == "" {
		return place{}, fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	return m.placeOf(real), h.look(h.mounts, m)
}

// source is a file of the host that a mount shows.
type source struct {
	path      string
	recursive bool // with what is mounted below it
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

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
	case isBind(m):
		return []source{{path: absolute(m.Source), recursive: rbind || !bind}}, nil
	case m.Type == "overlay":
		return layersOf(m)
	case m.Source == "" || slices.Contains(kernelKinds, m.Type) || slices.Contains(memoryKinds, m.Type):
		return nil, nil
	}
	return []source{{path: absolute(m.Source)}}, nil
}

// layersOf lists the directories that an overlay of a config.json names.
func layersOf(m specs.Mount) ([]source, error) {
	var all []source
	// The kernel takes what is between commas for options, whatever string of the list
	// it is in.
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

// shown returns what a source shows that it must not, or nothing, and the store paths
// that it shows.
func (h *Host) shown(s source) (shows string, asked []closure.BaseName, _ error) {
	// O_PATH: no permission but the way there, no side effect on what is opened.
	f, err := os.OpenFile(s.path, unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, nil // the runtime cannot mount it either, or CheckMounts sees it
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
			// What is mounted beneath the topmost mount does not come with it.
			if o.point != real && below(o.point, real) {
				shown = append(shown, o)
			}
		}
	}
	return h.showsAny(h.mounts, shown)
}

// showsAny is showsPlace for several mounts, of which the file systems are looked into
// when the places alone do not tell. mounts are those of the calling thread's mount
// namespace.
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
		for _, base := range all {
			if !slices.Contains(asked, base) {
				asked = append(asked, base)
			}
		}
	}
	return "", asked, nil
}

// onDisk returns which guarded directory is on a disk, or nothing.
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
