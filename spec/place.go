// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
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
	kind       string // of file system
	options    string // of the file system
}

// parseMounts parses the text of a mountinfo file. A line that it does not
// understand is left out.
func parseMounts(mountinfo []byte) []mountPoint {
	var all []mountPoint
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := bytes.Cut(line, []byte(" - "))
		fields := bytes.SplitN(before, []byte(" "), 6)
		if !ok || len(fields) < 6 {
			continue
		}
		m := mountPoint{
			id: string(fields[0]), parent: string(fields[1]),
			place: place{string(fields[2]), unescape(string(fields[3]))},
			point: unescape(string(fields[4])),
		}
		if f := strings.Fields(string(after)); len(f) >= 3 {
			m.kind, m.options = f[0], f[2]
		}
		all = append(all, m)
	}
	return all
}

// mountOf returns the mount that a path without symbolic links is on. It goes
// from mount to mount as the kernel does: what is mounted on one that another
// covers is not on the way.
func mountOf(mounts []mountPoint, real string) mountPoint {
	ids := make(map[string]bool, len(mounts))
	for _, m := range mounts {
		ids[m.id] = true
	}
	var found mountPoint
	for _, m := range mounts {
		if m.point == "/" && !ids[m.parent] {
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
func placeOf(mounts []mountPoint, real string) place {
	m := mountOf(mounts, real)
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
