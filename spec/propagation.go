// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Receiving returns the mount points of mounts that must lose their propagation: those
// below the container's root that receive what the host mounts later, or pass mounts on,
// although neither a mount of config.json nor linux.rootfsPropagation asks for it
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md#rootfs-mount-propagation).
// bundle is where relative sources begin. mounts are those of the container's mount
// namespace, and mountinfo is the text that they were read from.
//
// A mount counts as asked for if a mount of config.json with an option for propagation
// shows the same, and if both receive from the same mounts of the host. Its mount point
// does not count: symbolic links in the image can lead a mount elsewhere than its
// destination says, perhaps below one that asks. If one of two mounts of the same directory
// asks, both keep their propagation: they show the same, also later.
//
// Mounts that the container's root covers are left out, such as the one that an engine made
// there. No process of the container reaches them, and pivot_root(2) removes them.
func (h *Host) Receiving(c Config, bundle string, mountinfo []byte, mounts Mounts, root string) []string {
	receives := func(m mountPoint) bool { return (m.slave || m.group != "") && below(m.point, root) }
	if !slices.ContainsFunc(mounts, receives) {
		return nil // no mount of the host is shared
	}
	inside, around := split(mounts, root)
	asked := &asked{groups: peerGroups(mountinfo), from: map[place][]string{}, kinds: map[string]bool{}}
	// Before it mounts anything, a runtime may end the propagation of the host's mounts in
	// the container's namespace.
	_, hosts := split(h.mounts, root)
	asked.hosts = slices.Concat(around, hosts)
	asked.add(c, bundle, around, func(m mountPoint) []string { return asked.groups[m.id] }, root)
	asked.add(c, bundle, hosts, groupOf, root)
	var all []string
	for _, m := range inside {
		if receives(m) && !asked.has(m) {
			all = append(all, m.point)
		}
	}
	return all
}

// split separates the mounts in a container's root from the host's mounts around it,
// including those that the root covers.
func split(mounts Mounts, root string) (inside, outside Mounts) {
	top := mountOf(mounts, root)
	parents := map[string]string{}
	for _, m := range mounts {
		parents[m.id] = m.parent
	}
	for _, m := range mounts {
		isInside := false
		// A mount has at most one ancestor for each line.
		for id, n := m.id, len(mounts); n > 0 && !isInside; n-- {
			isInside = id == top.id
			id = parents[id]
		}
		if isInside && below(m.point, root) {
			inside = append(inside, m)
		} else {
			outside = append(outside, m)
		}
	}
	return inside, outside
}

// Inside reports whether the mount with this ID is in a container's root.
func (m Mounts) Inside(root, id string) bool {
	inside, _ := split(m, root)
	return slices.ContainsFunc(inside, func(o mountPoint) bool { return o.id == id })
}

// peerGroups returns, for each mount ID, the numbers of the peer groups that the mount is
// in or receives from (mount_namespaces(7)).
func peerGroups(mountinfo []byte) map[string][]string {
	groups := map[string][]string{}
	for line := range strings.Lines(string(mountinfo)) {
		id, rest, _ := strings.Cut(line, " ")
		flags, _, _ := strings.Cut(rest, " - ")
		for field := range strings.FieldsSeq(flags) {
			key, number, _ := strings.Cut(field, ":")
			if (key == "shared" || key == "master") && isNumber(number) {
				groups[id] = append(groups[id], number)
			}
		}
	}
	return groups
}

// groupOf returns the number of the peer group that a mount is in.
func groupOf(m mountPoint) []string {
	if number, ok := strings.CutPrefix(m.group, "shared:"); ok {
		return []string{number}
	}
	return nil
}

// asked is what may propagate in a container.
type asked struct {
	groups map[string][]string // see peerGroups
	// from are, by place, the peer groups of the host's mounts that show it.
	from  map[place][]string
	kinds map[string]bool // types of new file systems
	hosts Mounts          // all mounts of the host
}

// add adds what a config.json asks for, by the mounts of the host in one mount namespace.
func (a *asked) add(c Config, bundle string, host Mounts, groups func(mountPoint) []string, root string) {
	add := func(real string, recursive bool) {
		on := mountOf(host, real)
		at := on.placeOf(real)
		a.from[at] = append(a.from[at], groups(on)...)
		for _, m := range host {
			if recursive && m.point != real && below(m.point, real) {
				a.from[m.place] = append(a.from[m.place], groups(m)...)
			}
		}
	}
	if c.RootPropagates {
		add(root, true)
	}
	for _, m := range c.Mounts {
		if !asksForPropagation(m) {
			continue
		}
		if !isBind(m) {
			a.kinds[m.Type] = true
			continue
		}
		sources, err := sourcesOf(bundle, m)
		if err != nil {
			continue // what is not understood asks for nothing
		}
		for _, s := range sources {
			if real, err := filepath.EvalSymlinks(s.path); err == nil {
				add(real, s.recursive)
			}
		}
	}
}

// has reports whether a mount of the container asked for propagation. It did if all peer
// groups that it is in or receives from are groups that config.json names. Two cases have
// nothing of the host: a group that the runtime made for `shared`, and a file system that
// was made for the container. For the latter, the type is enough.
func (a *asked) has(m mountPoint) bool {
	isHosts := func(o mountPoint) bool { return o.device == m.device }
	if a.kinds[m.kind] && !slices.ContainsFunc(a.hosts, isHosts) {
		return true
	}
	from, named := a.from[m.place]
	if !named {
		return false
	}
	inHostsGroup := func(o mountPoint) bool { return o.group == m.group }
	if m.group != "" && !slices.ContainsFunc(a.hosts, inHostsGroup) {
		from = append(slices.Clip(from), groupOf(m)...)
	}
	return !slices.ContainsFunc(a.groups[m.id], func(group string) bool { return !slices.Contains(from, group) })
}

func asksForPropagation(m specs.Mount) bool {
	return slices.ContainsFunc(m.Options, isPropagation)
}

// isPropagation reports whether a mount option, or a value of linux.rootfsPropagation, lets
// mounts go from one mount namespace to another.
func isPropagation(option string) bool {
	return slices.Contains([]string{"shared", "rshared", "slave", "rslave"}, option)
}

// AsksForPropagation reports whether any mount of config.json, or the root, asks for
// propagation.
func (c Config) AsksForPropagation() bool {
	return c.RootPropagates || slices.ContainsFunc(c.Mounts, asksForPropagation)
}
