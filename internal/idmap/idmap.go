// SPDX-License-Identifier: Apache-2.0

// Package idmap reads how a user namespace numbers users and groups.
package idmap

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// Outside returns the number that an ID of a user namespace has outside that namespace
// (user_namespaces(7)). path is a uid_map or gid_map below /proc. For another namespace than
// the caller's, "outside" is the caller's namespace; for the caller's own, it is the parent
// of that. ok is false if the ID has no number there.
func Outside(path string, id int) (_ int, ok bool, _ error) {
	maps, err := user.ParseIDMapFile(path)
	if err != nil {
		return 0, false, err
	}
	outside, ok := find(maps, id)
	return outside, ok, nil
}

func find(maps []user.IDMap, id int) (int, bool) {
	for _, m := range maps {
		if inside := int64(id) - m.ID; inside >= 0 && inside < m.Count {
			return int(m.ParentID + inside), true
		}
	}
	return 0, false
}

// RootIDs returns the user IDs that files of the host's root have for this process. In the
// initial user namespace, that is 0. In another one, 0 is the namespace's own root. The
// host's root then has the overflow ID, as every user without a number in the namespace
// (user_namespaces(7)).
//
// It does not guarantee that a file with the overflow ID belongs to root: it may belong to
// another such user. A caller in a user namespace must not rely on it for places where other
// users can make files.
func RootIDs() []uint32 {
	// An unreadable file counts as empty: then only 0 is root.
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	overflow, _ := os.ReadFile("/proc/sys/kernel/overflowuid")
	return rootIDs(string(uidMap), string(overflow))
}

// rootIDs is RootIDs for the texts of uid_map and overflowuid.
func rootIDs(uidMap, overflow string) []uint32 {
	if m := strings.Fields(uidMap); len(m) == 0 || slices.Equal(m, []string{"0", "0", "4294967295"}) {
		return []uint32{0}
	}
	id, err := strconv.ParseUint(strings.TrimSpace(overflow), 10, 32)
	if err != nil {
		return []uint32{0}
	}
	return []uint32{0, uint32(id)}
}
