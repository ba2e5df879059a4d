// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/idmap"
)

// paths are the runtime directory and the log file, if the configuration does not name
// others.
type paths struct {
	runtimeDir, logFile string
	rootless            bool
}

// defaultPaths returns root's paths or, for an ordinary user, paths below that user's
// runtime directory. A hook may have no environment, so this does not use XDG_RUNTIME_DIR.
//
// Root is the owner of /run. In the user namespace of a rootless engine, this process has
// user ID 0 too, but the owner of /run has no number there.
func defaultPaths() paths {
	euid := os.Geteuid()
	var st unix.Stat_t
	if err := unix.Stat("/run", &st); err == nil && int(st.Uid) == euid {
		return paths{"/run/nix-closure", "/var/log/nix-closure.log", false}
	}
	uid, ok, err := idmap.Outside("/proc/self/uid_map", euid)
	if err != nil || !ok {
		uid = euid
	}
	dir := fmt.Sprintf("/run/user/%d", uid)
	err = unix.Lstat(dir, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == euid && st.Mode&0o022 == 0 {
		dir += "/nix-closure"
	} else {
		// Every user may make files there. The owner is checked before anything in it is
		// believed.
		dir = fmt.Sprintf("/tmp/nix-closure-%d", uid)
	}
	return paths{dir, dir + "/nix-closure.log", true}
}
