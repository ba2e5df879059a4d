// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"os"
	"strconv"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/idmap"
	"github.com/nix-closure/nix-closure/spec"
)

// ownerOf is the user that a container runs as, as this process numbers users:
// what is writable in the container is that user's.
func ownerOf(stage string, pid int, bundle spec.Config) (view.Owner, error) {
	inside := view.Owner{UID: int(bundle.UID), GID: int(bundle.GID)}
	if stage == "createContainer" || pid <= 0 {
		return inside, nil // the hook is in the container's user namespace, or refuses
	}
	process := "/proc/" + strconv.Itoa(pid)
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return inside, err
	}
	its, err := os.Stat(process + "/ns/user")
	if err != nil || os.SameFile(own, its) {
		return inside, err
	}
	uid, err := outside(process+"/uid_map", inside.UID)
	if err != nil {
		return inside, err
	}
	gid, err := outside(process+"/gid_map", inside.GID)
	return view.Owner{UID: uid, GID: gid}, err
}

// outside is the number that an id of another user namespace has here.
func outside(idMap string, id int) (int, error) {
	n, ok, err := idmap.Outside(idMap, id)
	if err == nil && !ok {
		err = fmt.Errorf("id %d is not in %s: the container's user has no number outside of its user namespace", id, idMap)
	}
	return n, err
}

// defaultWritableSize bounds what a container writes that has no memory limit, in
// bytes; noLimit is a limit that is none, however a runtime writes it.
const (
	defaultWritableSize = 1 << 30
	noLimit             = 1 << 60
)

// writableSize bounds what a container may write to its store, in bytes.
func writableSize(c config.Config, bundle spec.Config) int64 {
	switch {
	case c.WritableSize > 0:
		return int64(c.WritableSize)
	case bundle.Memory > 0 && bundle.Memory < noLimit:
		return bundle.Memory / 2
	}
	return defaultWritableSize
}
