// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
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
	// Leaks: it shows the store, Nix's state directory or the daemon's socket
	// at some other place.
	Leaks
)

// Host is what of this host a container with a closure must not see: the store
// directory, Nix's state directory and what is in it, and each directory above
// them. A file is known by device and inode, so that it is recognised however a
// mount reaches it: by symbolic links, or by another mount of it.
type Host struct {
	store      closure.Store
	storeReal  string // without symbolic links
	stateReal  string
	storeID    fileID
	guarded    map[fileID]string
	looked     bool // whether guarded has what lookInside adds
	mountPaths []string
}

type fileID struct{ device, inode uint64 }

// LookAtHost finds out what to guard. mountinfo is the text of
// /proc/self/mountinfo of the host.
func LookAtHost(store closure.Store, mountinfo []byte) (*Host, error) {
	h := &Host{store: store, guarded: map[fileID]string{}, mountPaths: MountPoints(mountinfo)}
	var err error
	if h.storeReal, err = h.guard(store.Dir); err != nil {
		return nil, err
	}
	h.storeID, _ = identify(store.Dir)
	if h.stateReal, err = h.guard(store.StateDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return h, nil
}

// lookInside adds the parts of the state directory and of the store directory
// that are no store path, should one of them be mounted somewhere on the host.
// Most containers' mounts never need it.
func (h *Host) lookInside() error {
	if h.looked {
		return nil
	}
	inside := []string{h.store.Dir + "/.links"}
	for _, dir := range []string{h.store.StateDir, h.store.StateDir + "/db", h.store.StateDir + "/daemon-socket"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			inside = append(inside, dir+"/"+e.Name())
		}
	}
	for _, p := range inside {
		if id, err := identify(p); err == nil {
			h.guarded[id] = p
		}
	}
	h.looked = true
	return nil
}

// guard adds a directory and all above it, by both its name and its real path.
func (h *Host) guard(dir string) (real string, _ error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	paths := []string{dir}
	if real != dir {
		paths = append(paths, real)
	}
	for _, p := range paths {
		for ; ; p = path.Dir(p) {
			id, err := identify(p)
			if err != nil {
				return "", err
			}
			if _, ok := h.guarded[id]; !ok {
				h.guarded[id] = p
			}
			if p == "/" {
				break
			}
		}
	}
	return real, nil
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// Guards returns the path on the host of an open file if it is one that a
// container must not see. The file may be of any mount namespace.
func (h *Host) Guards(f *os.File) (path string, ok bool, _ error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", false, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	path, ok = h.guarded[fileID{st.Dev, st.Ino}]
	return path, ok, nil
}

// MountsInStore returns the mount points of the host that lie inside the store
// directory.
func (h *Host) MountsInStore() []string { return h.mountsBelow(h.storeReal) }

func (h *Host) mountsBelow(dir string) []string {
	var below []string
	for _, m := range h.mountPaths {
		if strings.HasPrefix(m, strings.TrimSuffix(dir, "/")+"/") && m != "/" {
			below = append(below, m)
		}
	}
	return below
}

// Classify tells what a mount of a config.json means. Of a mount that Leaks it
// says what it shows. It looks at the host as it is now, and by the names that
// the mount gives: whoever can rename a part of the source can make it another
// by the time that the runtime mounts it, so what is mounted is looked at again
// (Guards).
func (h *Host) Classify(bundle string, m specs.Mount) (_ Class, shows string, _ error) {
	destination := path.Clean("/" + m.Destination)
	if destination == h.store.Dir || strings.HasPrefix(destination, h.store.Dir+"/") {
		return Replaced, "", nil
	}
	below, above := strings.CutPrefix(h.store.Dir, destination+"/")
	sources, err := sourcesOf(bundle, m)
	if err != nil || len(sources) == 0 {
		return NoneOfOurs, "", err
	}
	if err := h.lookInside(); err != nil {
		return 0, "", err
	}
	for _, s := range sources {
		if above && destination != "/" {
			if id, err := identify(s.path + "/" + below); err == nil && id == h.storeID {
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

// ShowsHost tells whether a mount shows files of the host.
func ShowsHost(m specs.Mount) bool {
	sources, err := sourcesOf("/", m)
	return err != nil || len(sources) > 0
}

// source is a file of the host that a mount shows.
type source struct {
	path      string
	recursive bool // with what is mounted below it
	device    bool // only as a block device that holds a file system
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
	case m.Type == "bind", bind, rbind:
		return []source{{path: absolute(m.Source), recursive: rbind || !bind}}, nil
	case m.Type == "overlay":
		var all []source
		for _, o := range m.Options {
			key, value, _ := strings.Cut(o, "=")
			switch key {
			case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
			default:
				continue
			}
			if strings.Contains(value, `\`) {
				return nil, fmt.Errorf("overlay option %q: has a backslash, which can hide a path", o)
			}
			for dir := range strings.SplitSeq(value, ":") {
				if dir != "" {
					all = append(all, source{path: absolute(dir)})
				}
			}
		}
		return all, nil
	case filepath.IsAbs(m.Source):
		return []source{{path: m.Source, device: true}}, nil
	}
	return nil, nil
}

// shown returns what a source shows that it must not, or nothing.
func (h *Host) shown(s source) (string, error) {
	// O_PATH: no permission but the way there, no side effect on what is opened.
	f, err := os.OpenFile(s.path, unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // the runtime cannot mount it either, or it is seen by Guards
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if s.device {
		return h.holdsStore(f)
	}
	if p, ok, err := h.Guards(f); ok || err != nil {
		return p, err
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", err
	}
	if h.stateReal != "" && strings.HasPrefix(real, h.stateReal+"/") {
		return real, nil
	}
	if inStore, ok := strings.CutPrefix(real, h.storeReal+"/"); ok {
		// A single store path, or a part of one, is what was asked for by name.
		first, _, _ := strings.Cut(inStore, "/")
		if _, err := closure.ParseBaseName(first); err != nil {
			return real, nil
		}
	}
	if s.recursive {
		for _, m := range h.mountsBelow(real) {
			id, err := identify(m)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return "", err
			}
			if p, ok := h.guarded[id]; err == nil && ok {
				return p, nil
			}
		}
	}
	return "", nil
}

// holdsStore tells whether f is the block device that the store is on.
func (h *Host) holdsStore(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == h.storeID.device {
		return h.store.Dir, nil
	}
	return "", nil
}

// MountPoints returns the mount points in the text of a mountinfo file
// (proc_pid_mountinfo(5)): the fifth field, with octal escapes.
func MountPoints(mountinfo []byte) []string {
	var points []string
	for line := range bytes.Lines(mountinfo) {
		fields := bytes.SplitN(line, []byte(" "), 6)
		if len(fields) == 6 {
			points = append(points, unescape(string(fields[4])))
		}
	}
	return points
}

// unescape undoes the kernel's \ooo for white space and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
