// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strconv"
	"strings"
)

// Mount is what a mountinfo file says of a mount, for who knows what it must be.
type Mount struct {
	Device, Path string // of what is mounted
	Point        string // where
	Kind         string // of file system
	Source       string
	Options      string // of the file system
	Attributes   string // of the mount, separated by commas
	Propagates   bool   // mounts propagate into it or out of it
}

// Has tells whether a mount has an attribute, such as ro.
func (m Mount) Has(attribute string) bool {
	return slices.Contains(strings.Split(m.Attributes, ","), attribute)
}

func (m mountPoint) exported() Mount {
	return Mount{
		Device: m.device, Path: m.path, Point: m.point, Kind: m.kind, Source: m.source, Options: m.options,
		Attributes: m.attributes, Propagates: m.group != "" || m.slave,
	}
}

// Attached finds a mount by its ID (STATX_MNT_ID): the mount, and those that are mounted
// on it, whatever on which of them. others are the rest, but for mounts that show of the
// same overlay no more than this one does: they are no other sight of anything.
func (m Mounts) Attached(id uint64) (at Mount, on []Mount, others Mounts, ok bool) {
	name := strconv.FormatUint(id, 10)
	i := slices.IndexFunc(m, func(o mountPoint) bool { return o.id == name })
	if i < 0 {
		return Mount{}, nil, m, false
	}
	top := m[i]
	inside := map[string]bool{name: true}
	// A mount may stand before the one that it is on, if that was moved there.
	for more := true; more; {
		more = false
		for _, o := range m {
			if !inside[o.id] && inside[o.parent] {
				inside[o.id], more = true, true
			}
		}
	}
	for _, o := range m {
		switch {
		case o.id == name:
		case inside[o.id]:
			on = append(on, o.exported())
		case top.kind != "overlay" || !o.within(top.place):
			others = append(others, o)
		}
	}
	return top.exported(), on, others, true
}
