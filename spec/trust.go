// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mostLinks bounds the symbolic links that are followed in one path, as the kernel does.
const mostLinks = 40

// rootsAlone tells whether an absolute path leads to a file that is there, by names and
// links that nobody but root can change: so it led there when it was used, unless root has
// changed that. Who may write is what the mode says.
func (h *Host) rootsAlone(name string) bool {
	at, links := "/", 0
	rest := strings.Split(name, "/")
	for len(rest) > 0 {
		component := rest[0]
		rest = rest[1:]
		switch component {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // which is no link
			continue
		}
		next := path.Join(at, component)
		above, here := h.lstat(at), h.lstat(next)
		if above == nil || here == nil || above.Uid != 0 {
			return false
		}
		// In a sticky directory, only its owner and root replace a file.
		if above.Mode&0o022 != 0 && (above.Mode&unix.S_ISVTX == 0 || here.Uid != 0) {
			return false
		}
		if here.Mode&unix.S_IFMT != unix.S_IFLNK {
			at = next
			continue
		}
		if links++; links > mostLinks {
			return false
		}
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlink(next, target)
		if err != nil || n == len(target) {
			return false
		}
		to := string(target[:n])
		if path.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return true
}

// lstat returns the attributes of a file, and remembers those of directories; nil: they
// cannot be had.
func (h *Host) lstat(name string) *unix.Stat_t {
	if st := h.directories[name]; st != nil {
		return st
	}
	st := new(unix.Stat_t)
	if err := unix.Lstat(name, st); err != nil {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if h.directories == nil {
			h.directories = map[string]*unix.Stat_t{}
		}
		h.directories[name] = st
	}
	return st
}
