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

// Outside is the number that an id of a user namespace has outside of it. path is
// a uid_map or gid_map of /proc; what is outside is, of another namespace than
// the caller's, the caller's own, and of the caller's own, its parent's
// (user_namespaces(7)). Not ok: the id has no number there.
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

// RootIDs are the user ids that files of the host's root have for this process.
// In the initial user namespace that is 0. In another, 0 is the one who made the
// namespace, or the container's root, and the host's root has the id of everybody
// who has none there (user_namespaces(7)). That may be another user: who must rely
// on it in a user namespace has nothing of another user's in that place.
func RootIDs() []uint32 {
	// What cannot be read is empty: then only 0 is root.
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	overflow, _ := os.ReadFile("/proc/sys/kernel/overflowuid")
	return rootIDs(string(uidMap), string(overflow))
}

// rootIDs is RootIDs by the texts of a uid_map and of overflowuid.
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
