// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Container is what is to be run.
type Container struct {
	Args        []string
	Env         []string // NAME=VALUE
	Dir         string   // the working directory; it is made if it is missing
	Terminal    bool
	HostNetwork bool
	ReadOnly    bool // the root; /tmp and /dev stay writable
	User        User
	Volumes     []Volume
	// Capabilities are added to the usual ones.
	Capabilities []string
	// Annotations are for the hook, which is called with these arguments before the stage.
	Annotations map[string]string
	Hook        string
	HookArgs    []string

	Runtime string // absolute path of runc or crun
	// Scratch is a directory of this user's alone, to be made if it is missing. All
	// containers share it as a mount point, and nothing is ever written in it.
	Scratch string

	size *unix.Winsize // of the terminal; nil: there is none
}

// User is a user and a group in the container.
type User struct{ UID, GID uint32 }

// ParseUser reads UID or UID:GID. There are no names: the root is empty, and so is
// /etc/passwd.
func ParseUser(s string) (User, error) {
	uid, gid, ok := strings.Cut(s, ":")
	if !ok {
		gid = "0"
	}
	u, err := strconv.ParseUint(uid, 10, 31)
	if err != nil {
		return User{}, fmt.Errorf("%q: not a number, nor two with a colon between them", s)
	}
	g, err := strconv.ParseUint(gid, 10, 31)
	if err != nil {
		return User{}, fmt.Errorf("%q: not a number, nor two with a colon between them", s)
	}
	return User{uint32(u), uint32(g)}, nil
}

// Volume is a file or directory of the host that the container has too.
type Volume struct {
	Source, Destination string // absolute
	ReadOnly            bool
}

// ParseVolume reads SOURCE:DESTINATION[:ro|rw]. A relative source begins with a dot, so
// that nobody takes it for the name of a volume.
func ParseVolume(s string) (Volume, error) {
	part := strings.Split(s, ":")
	if len(part) == 3 && part[2] != "ro" && part[2] != "rw" || len(part) < 2 || len(part) > 3 {
		return Volume{}, fmt.Errorf("%q: not SOURCE:DESTINATION, with :ro or :rw after it", s)
	}
	v := Volume{Source: part[0], Destination: part[1], ReadOnly: len(part) == 3 && part[2] == "ro"}
	if !filepath.IsAbs(v.Source) && !strings.HasPrefix(v.Source, ".") {
		return v, fmt.Errorf("%q: there are no named volumes; begin a path with / or ./", s)
	}
	if !filepath.IsAbs(v.Destination) || filepath.Clean(v.Destination) == "/" {
		return v, fmt.Errorf("%q: the destination is not an absolute path below /", s)
	}
	var err error
	if v.Source, err = filepath.Abs(v.Source); err == nil {
		_, err = os.Stat(v.Source)
	}
	return v, err
}

// ParseEnv reads NAME=VALUE, or NAME for the value that this program has.
func ParseEnv(s string) (variable string, _ error) {
	name, _, ok := strings.Cut(s, "=")
	if name == "" {
		return "", fmt.Errorf("%q: not NAME=VALUE or NAME", s)
	}
	if !ok {
		value, _ := os.LookupEnv(name)
		return name + "=" + value, nil
	}
	return s, nil
}

// usualCapabilities are those that podman gives.
var usualCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// ParseCapability reads the name of a capability, with or without CAP_, in letters of
// either case, or all.
func ParseCapability(s string) ([]string, error) {
	var known []string
	for _, c := range capability.ListKnown() {
		known = append(known, "CAP_"+strings.ToUpper(c.String()))
	}
	name := strings.ToUpper(s)
	if name == "ALL" {
		return known, nil
	}
	if !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	if !slices.Contains(known, name) {
		return nil, fmt.Errorf("%q: no capability of Linux (capabilities(7))", s)
	}
	return []string{name}, nil
}
