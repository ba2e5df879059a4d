// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// ConcernsStore reports whether a container has to be judged before a runtime creates it,
// although the hook judges it again. There are three reasons:
//   - Classify may have a mount removed from the list;
//   - the runtime may make directories in the store: below a mount of it, or in the root,
//     which CheckRoot refuses;
//   - a name or a file system shows that a mount will be refused: then the reason is said
//     where the engine shows it.
//
// It is no verdict. It goes by the names of today, does not read the host's mounts, and
// takes every mount that it does not understand for one that concerns the store. A bind
// mount of the host can give the store another name: then the runtime mounts it, and the
// hook refuses the container.
func ConcernsStore(store closure.Store, runtimeDir, bundle, root string, mounts []specs.Mount) bool {
	guarded := []string{store.Dir, store.StateDir, logDir(store), runtimeDir}
	var volumes []string
	for _, m := range mounts {
		destination := path.Clean("/" + m.Destination)
		isInside := func(volume string) bool { return below(destination, volume) }
		if meets(destination, store.Dir) || slices.ContainsFunc(volumes, isInside) {
			return true
		}
		sources, err := sourcesOf(bundle, m)
		if err != nil || len(sources) > 0 && !isBind(m) {
			return true
		}
		for _, s := range sources {
			if isTelling(s.path, guarded) {
				return true
			}
			volumes = append(volumes, destination)
		}
	}
	// Directories that are made in an overlay are on its upper layer.
	return fileSystem(absoluteIn(bundle, root)) != unix.OVERLAYFS_SUPER_MAGIC ||
		fileSystem(store.Dir) == unix.OVERLAYFS_SUPER_MAGIC
}

// meets reports whether a path is in or above one of these directories, by its name.
func meets(name string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return below(name, dir) || below(dir, name) })
}

// isTelling reports whether a bind mount of this source is likely to be refused.
func isTelling(source string, guarded []string) bool {
	real, err := filepath.EvalSymlinks(source)
	if err != nil || meets(real, guarded...) {
		return true
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return true
	}
	return slices.Contains([]int64{0, unix.PROC_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC},
		fileSystem(real))
}

// fileSystem returns the type of the file system that a file is on, as in statfs(2); 0: it
// cannot be found out.
func fileSystem(name string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(name, &st) != nil {
		return 0
	}
	return st.Type
}

// AreBelow reports whether each of these mounts is of the kernel, of memory, or a bind mount
// of something below a directory with this name. bundle is where relative sources begin.
func AreBelow(name, bundle string, mounts []specs.Mount) bool {
	return !slices.ContainsFunc(mounts, func(m specs.Mount) bool {
		sources, err := sourcesOf(bundle, m)
		return err != nil || len(sources) > 0 && !isBind(m) || slices.ContainsFunc(sources, func(s source) bool {
			real, err := filepath.EvalSymlinks(s.path)
			return err != nil || !strings.Contains(filepath.Dir(real)+"/", "/"+name+"/")
		})
	})
}
