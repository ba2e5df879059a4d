// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strconv"
	"strings"
)

// place is where a file is on its file system, whatever the names and mounts by
// which it is reached: the device (major:minor) and the path from the file
// system's root, both as mountinfo has them (proc_pid_mountinfo(5)).
type place struct{ device, path string }

// within tells whether p is dir or below it.
func (p place) within(dir place) bool {
	return p.device == dir.device && below(p.path, dir.path)
}

// below tells whether a path is dir or lies below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountPoint is a line of a mountinfo file.
type mountPoint struct {
	id, parent string
	place             // of what is mounted
	point      string // where
	group      string // peer group (shared:N), if its mounts propagate
	kind       string // of file system
	options    string // of the file system
}

// Mounts are the mounts of a mount namespace.
type Mounts []mountPoint

// ParseMounts parses the text of a mountinfo file. A line that it does not
// understand is left out.
func ParseMounts(mountinfo []byte) Mounts {
	text := string(mountinfo) // once: all that is returned is a part of it
	all := make(Mounts, 0, strings.Count(text, "\n")+1)
	for line := range strings.Lines(text) {
		var m mountPoint
		var ok [7]bool
		rest := strings.TrimSuffix(line, "\n")
		m.id, rest, ok[0] = strings.Cut(rest, " ")
		m.parent, rest, ok[1] = strings.Cut(rest, " ")
		m.device, rest, ok[2] = strings.Cut(rest, " ")
		m.path, rest, ok[3] = strings.Cut(rest, " ")
		m.point, rest, ok[4] = strings.Cut(rest, " ")
		flags, rest, separated := strings.Cut(rest, " - ")
		ok[5] = separated
		m.kind, rest, ok[6] = strings.Cut(rest, " ")
		if slices.Contains(ok[:], false) {
			continue
		}
		_, m.options, _ = strings.Cut(rest, " ")
		for field := range strings.SplitSeq(flags, " ") {
			if strings.HasPrefix(field, "shared:") {
				m.group = field
			}
		}
		m.path, m.point = unescape(m.path), unescape(m.point)
		all = append(all, m)
	}
	return all
}

// mountOf returns the mount that a path without symbolic links is on. It goes
// from mount to mount as the kernel does: what is mounted on one that another
// covers is not on the way.
func mountOf(mounts Mounts, real string) mountPoint {
	var found mountPoint
	for _, m := range mounts {
		// The parent of the root is itself, or in no list.
		if m.point == "/" && (m.parent == m.id || !slices.ContainsFunc(mounts, func(o mountPoint) bool { return o.id == m.parent })) {
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

// placeOf returns the place of a path that is on this mount.
func (m mountPoint) placeOf(real string) place {
	if m.device == "" {
		return place{}
	}
	rest := strings.TrimPrefix(real, strings.TrimSuffix(m.point, "/"))
	return place{m.device, strings.TrimSuffix(m.path, "/") + rest}
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
