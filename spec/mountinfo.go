// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// place is where a file is on its file system, whichever names and mounts lead to it: the
// device (major:minor) and the path from the file system's root, as in mountinfo
// (proc_pid_mountinfo(5)).
type place struct{ device, path string }

// within reports whether p is dir or below it.
func (p place) within(dir place) bool {
	return p.device == dir.device && below(p.path, dir.path)
}

// below reports whether a path is dir or below it.
func below(path, dir string) bool {
	// This is called for each mount of the host, so it makes no string.
	rest, inside := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return path == dir || inside && strings.HasPrefix(rest, "/")
}

// mountPoint is one line of a mountinfo file.
type mountPoint struct {
	id, parent string
	place             // of what is mounted
	point      string // where
	attributes string // of the mount, such as ro and nosuid
	group      string // peer group (shared:N), if its mounts propagate
	slave      bool   // whether it receives what is mounted elsewhere (master:N)
	kind       string // of file system
	source     string // what it was mounted from, as its type has it
	options    string // of the file system
}

// Mounts are the mounts of one mount namespace, in the order of mountinfo.
type Mounts []mountPoint

// ErrMountinfo says that a line of a mountinfo file is not understood. Nobody can judge the
// mount in it.
var ErrMountinfo = errors.New("a line of mountinfo is not understood")

// ParseMounts parses the text of a mountinfo file (proc_pid_mountinfo(5)). It guarantees
// that it passes over no mount: a line that it does not understand is an error that wraps
// ErrMountinfo, because that line may show the store.
func ParseMounts(mountinfo []byte) (Mounts, error) {
	text := string(mountinfo) // once: all results are parts of it
	all := make(Mounts, 0, strings.Count(text, "\n")+1)
	for line := range strings.Lines(text) {
		m, ok := parseMount(strings.TrimSuffix(line, "\n"))
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrMountinfo, line)
		}
		all = append(all, m)
	}
	return all, nil
}

// ParseMountsIn is ParseMounts for a mountinfo file as a process reads it whose root
// directory is root, by the path that root has for others. It has only the mounts in root.
func ParseMountsIn(root string, mountinfo []byte) (Mounts, error) {
	all, err := ParseMounts(mountinfo)
	for i := range all {
		all[i].point = path.Join(root, all[i].point)
	}
	return all, err
}

func parseMount(line string) (m mountPoint, ok bool) {
	var found [7]bool
	rest := line
	m.id, rest, found[0] = strings.Cut(rest, " ")
	m.parent, rest, found[1] = strings.Cut(rest, " ")
	m.device, rest, found[2] = strings.Cut(rest, " ")
	m.path, rest, found[3] = strings.Cut(rest, " ")
	m.point, rest, found[4] = strings.Cut(rest, " ")
	flags, rest, separated := strings.Cut(rest, " - ")
	found[5] = separated
	m.kind, rest, found[6] = strings.Cut(rest, " ")
	major, minor, isDevice := strings.Cut(m.device, ":")
	if slices.Contains(found[:], false) || !isDevice || !isNumber(m.id) || !isNumber(m.parent) ||
		!isNumber(major) || !isNumber(minor) || m.kind == "" {
		return m, false
	}
	// The source may be empty, and the options too.
	if m.source, m.options, ok = strings.Cut(rest, " "); !ok {
		return m, false
	}
	// Of optional fields that are not known, none changes what is mounted: the
	// manual page tells readers to ignore them.
	var optional string
	m.attributes, optional, _ = strings.Cut(flags, " ")
	for field := range strings.SplitSeq(optional, " ") {
		switch {
		case strings.HasPrefix(field, "shared:"):
			m.group = field
		case strings.HasPrefix(field, "master:"):
			m.slave = true
		}
	}
	if m.path, ok = unescape(m.path); !ok || m.path == "" {
		return m, false
	}
	if m.source, ok = unescape(m.source); !ok {
		return m, false
	}
	m.point, ok = unescape(m.point)
	return m, ok && strings.HasPrefix(m.point, "/")
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// mountOf returns the mount that a path without symbolic links is on. It goes from mount to
// mount, as the kernel does: so it does not take a mount below one that is covered.
func mountOf(mounts Mounts, real string) mountPoint {
	var found mountPoint
	for _, m := range mounts {
		// The root's parent is the root itself, or is not in the list.
		isParent := func(o mountPoint) bool { return o.id == m.parent }
		if below(real, m.point) && (found.point == "" || len(m.point) <= len(found.point)) &&
			(m.parent == m.id || !slices.ContainsFunc(mounts, isParent)) {
			found = m
		}
	}
	for {
		next := -1
		for i, m := range mounts {
			if m.parent == found.id && m.id != found.id && below(real, m.point) &&
				(next < 0 || len(m.point) <= len(mounts[next].point)) {
				next = i
			}
		}
		if next < 0 {
			return found
		}
		found = mounts[next]
	}
}

// placeOf returns the place of a path without symbolic links.
func placeOf(mounts Mounts, real string) place {
	return mountOf(mounts, real).placeOf(real)
}

// placeOf returns the place of a path on this mount.
func (m mountPoint) placeOf(real string) place {
	if m.device == "" {
		return place{}
	}
	rest := strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/"))
	return place{m.device, cmp.Or(strings.TrimSuffix(m.path, "/")+rest, "/")}
}

// unescape undoes the kernel's \ooo for white space and backslashes; ok is false for a
// backslash that the kernel would not have written.
func unescape(s string) (_ string, ok bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 >= len(s) {
			return "", false
		}
		c, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 3
	}
	return b.String(), true
}

// layerNames returns the directories that an overlay's options name, with all escapes
// undone. A user typed them when the overlay was mounted: they say where to look, and never
// what is mounted.
func (m mountPoint) layerNames() []string { return m.namedBy(layerOptions) }

// shownLayers is layerNames without workdir, which does not show.
func (m mountPoint) shownLayers() []string {
	return m.namedBy(layerOptions[:len(layerOptions)-1])
}

func (m mountPoint) namedBy(keys []string) []string {
	if m.kind != "overlay" {
		return nil
	}
	var all []string
	for option := range strings.SplitSeq(m.options, ",") {
		key, value, _ := strings.Cut(option, "=")
		if !slices.Contains(keys, key) {
			continue
		}
		// mountinfo has its own escape. Then overlay has one too: a backslash before the
		// character.
		if text, ok := unescape(value); ok {
			value = text
		}
		for name := range splitLayers(value) {
			all = append(all, name)
		}
	}
	return all
}

// layerOptions are the options of an overlay that name directories, workdir last.
var layerOptions = []string{"lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"}

// splitLayers iterates over the names in the value of an overlay's option. A colon
// separates them, unless a backslash is before it.
func splitLayers(value string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var name strings.Builder
		for i := 0; i <= len(value); i++ {
			switch {
			case i == len(value) || value[i] == ':':
				if name.Len() > 0 && !yield(name.String()) {
					return
				}
				name.Reset()
			case value[i] == '\\' && i+1 < len(value):
				i++
				name.WriteByte(value[i])
			default:
				name.WriteByte(value[i])
			}
		}
	}
}
