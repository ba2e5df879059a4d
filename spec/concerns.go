// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"path"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// ConcernsStore reports whether a container has to be judged before a runtime creates it,
// although the hook judges it again: because Classify may have a mount removed from the list,
// because CheckRoot may refuse the root, or because a name shows that a mount leaks, so that
// the reason is said where the engine shows it.
//
// It is no verdict. It goes by the names of today, and does not read the host's mounts.
func ConcernsStore(store closure.Store, runtimeDir, bundle, root string, mounts []specs.Mount) bool {
	guarded := []string{store.Dir, store.StateDir, logDir(store), runtimeDir}
	meets := func(name string, dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return below(name, dir) || below(dir, name) })
	}
	for _, m := range mounts {
		if meets(path.Clean("/"+m.Destination), store.Dir) {
			return true
		}
		sources, err := sourcesOf(bundle, m)
		if err != nil || len(sources) > 0 && !isBind(m) {
			return true
		}
		for _, s := range sources {
			if real, err := filepath.EvalSymlinks(s.path); err != nil || meets(real, guarded...) {
				return true
			}
		}
	}
	return !isOverlayApart(absoluteIn(bundle, root), store.Dir)
}

// isOverlayApart reports whether a root directory is on an overlay, and the store is not on
// the same. Directories that are made in such a root are on its upper layer.
func isOverlayApart(root, store string) bool {
	var system unix.Statfs_t
	id, err := identify(root)
	storeID, storeErr := identify(store)
	return errors.Join(err, storeErr, unix.Statfs(root, &system)) == nil &&
		system.Type == unix.OVERLAYFS_SUPER_MAGIC && id.device != storeID.device
}
