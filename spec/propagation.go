// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Receiving returns the mount points, below the container's root, of mounts that
// receive what the host mounts later, or pass it on, though no mount of config.json
// asked for that, and linux.rootfsPropagation did not. bundle is where relative sources
// begin.
//
// A mount asked for it if it shows what a mount of config.json shows that has an option
// for propagation, and receives from the same mounts of the host. Where it is has no say:
// symbolic links in the image lead a mount of config.json elsewhere than its destination
// says, below one that asked, perhaps. Of two mounts of the same directory, of which one
// asks, both keep it: they show the same, also later.
//
// What the container's root covers is left out, such as the mount that an engine made
// there. No process of the container reaches it, and with pivot_root(2) it goes.
//
// mountinfo is the text that mounts were read from, which are of the container's mount
// namespace.
func (h *Host) Receiving(c Config, bundle string, mountinfo []byte, mounts Mounts, root string) []string {
	receives := func(m mountPoint) bool { return (m.slave || m.group != "") && below(m.point, root) }
	if !slices.ContainsFunc(mounts, receives) {
		return nil // as where the host's mounts are private
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

// split returns the mounts of a container's root, and those of the host around it,
// with what the root covers.
func split(mounts Mounts, root string) (inside, outside Mounts) {
	top := mountOf(mounts, root)
	parents := map[string]string{}
	for _, m := range mounts {
		parents[m.id] = m.parent
	}
	for _, m := range mounts {
		isInside := false
		// A mount has an ancestor for each line at most.
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

// Inside tells whether a mount, by its ID, is in a container's root.
func (m Mounts) Inside(root, id string) bool {
	inside, _ := split(m, root)
	return slices.ContainsFunc(inside, func(o mountPoint) bool { return o.id == id })
}

// peerGroups returns, for each mount by its ID, the peer groups that it is in and that it
// receives from, by their numbers (mount_namespaces(7)).
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
	// from are the peer groups of the mounts of the host that show a place.
	from  map[place][]string
	kinds map[string]bool // of new file systems
	hosts Mounts          // all of the host
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
			continue // nothing that is understood asks
		}
		for _, s := range sources {
			if real, err := filepath.EvalSymlinks(s.path); err == nil {
				add(real, s.recursive)
			}
		}
	}
}

// has tells whether a mount of the container asked for propagation: whether it is in no
// peer group, and receives from none, that what config.json names is not in. A group of
// its own, which a runtime makes for `shared`, has nothing of the host. Nor has a file
// system that was made for the container, of which the kind is enough.
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

// isPropagation tells mount options, and values of linux.rootfsPropagation, by which
// mounts go from one mount namespace to another.
func isPropagation(option string) bool {
	return slices.Contains([]string{"shared", "rshared", "slave", "rslave"}, option)
}

// AsksForPropagation tells whether any mount of config.json, or the root, asks for
// propagation.
func (c Config) AsksForPropagation() bool {
	return c.RootPropagates || slices.ContainsFunc(c.Mounts, asksForPropagation)
}
