// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Why the garbage collector cannot be held off.
var (
	// ErrCollecting says that it is running.
	ErrCollecting = errors.New("the garbage collector of Nix is running")
	// ErrNotOurs says that Nix's state directory can be changed by others than
	// the user who runs this program.
	ErrNotOurs = errors.New("a single-user installation of Nix cannot be used by another user")
)

// HoldCollector keeps Nix's garbage collector from starting until the file is
// closed. What is found valid and made a GC root in between stays. It does not
// wait: where the collector runs, it fails with ErrCollecting. Only who owns Nix's
// state directory can do it; for others, it fails with ErrNotOurs.
//
// Nix takes the same lock, gc.lock, exclusively for a whole collection (flock).
func HoldCollector(store Store) (*os.File, error) {
	if err := ownedByUs(store.StateDir); err != nil {
		return nil, err
	}
	path := store.StateDir + "/gc.lock"
	// Nix makes the file when it first opens the store, with the same mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrCollecting
	} else if err != nil {
		err = &os.PathError{Op: "flock", Path: path, Err: err}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Ours tells whether nobody but the user who runs this program can change Nix's
// state directory, and so whether HoldCollector works.
func (s Store) Ours() bool { return ownedByUs(s.StateDir) == nil }

// ownedByUs refuses a directory that another user can change: what is in it is
// believed, and written to.
func ownedByUs(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s belongs to user %d and has mode %04o, and so can be changed by others than user %d "+
			"who runs the hook; %w", dir, st.Uid, st.Mode&0o7777, os.Geteuid(), ErrNotOurs)
	}
	return nil
}

// GCRoots is a directory with the GC roots of containers, in a directory each.
type GCRoots struct {
	Dir string // absolute path
	// Indirect: the directory is an ordinary user's, and Nix has links to what is
	// in it (nix-store --add-root --indirect). Else it is one of Nix's own.
	Indirect bool
}

// GCRoots is the directory for who owns Nix's state directory.
func (s Store) GCRoots() GCRoots { return GCRoots{Dir: s.StateDir + "/gcroots/nix-closure"} }

// Of is the directory of a container's GC roots.
func (g GCRoots) Of(container string) string { return g.Dir + "/" + container }

// Add makes the pins GC roots of a container, in place of any that it has. The
// container's id must be a plain file name. Of indirect roots it makes the
// directory only; NixStore.Realise makes the roots.
//
// They hold from the next collection on. To be sure of the present, do it while
// HoldCollector's file is open, or follow it with NixStore.Realise.
func (g GCRoots) Add(store Store, container string, pins []BaseName) error {
	// In Nix's gcroots, this program's own directory is made by the first.
	top, below := filepath.Split(g.Dir)
	dir, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer dir.Close()
	own, mode := below+"/"+container, fs.FileMode(0o755) // as Nix's own
	if g.Indirect {
		mode = 0o700
	}
	err = dir.Mkdir(own, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := dir.Mkdir(below, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = dir.Mkdir(own, mode)
	}
	if errors.Is(err, fs.ErrExist) && g.Indirect {
		return nil // what is there stays until Nix has made the new ones
	}
	if errors.Is(err, fs.ErrExist) {
		if err = dir.RemoveAll(own); err == nil {
			err = dir.Mkdir(own, mode)
		}
	}
	if err != nil || g.Indirect {
		return err
	}
	made := boot()
	if made == "" {
		made = unknownBoot
	}
	if err := dir.Symlink(made, own+"/"+bootLink); err != nil {
		return err
	}
	for _, p := range pins {
		if err := dir.Symlink(store.Path(p), own+"/"+string(p)); err != nil {
			return err
		}
	}
	return nil
}

// bootLink is a link, beside a container's GC roots, that leads nowhere and says in
// which boot of the host they were made. Nix does not mind it.
const bootLink = ".boot"

// unknownBoot is the boot of GC roots that were made where the boot's ID could not
// be read. Nothing follows from it.
const unknownBoot = "unknown"

// bootFile has the ID of the boot (random(4)).
var bootFile = "/proc/sys/kernel/random/boot_id"

// boot returns the ID of this boot, or "" where that cannot be read: then nobody
// knows which GC roots are from an earlier one.
func boot() string {
	fd, err := unix.Open(bootFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	text := make([]byte, 64)
	n, err := unix.Read(fd, text)
	if err != nil {
		return ""
	}
	id := strings.TrimSpace(string(text[:n]))
	if len(id) != len("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") || strings.Trim(id, "0123456789abcdef-") != "" {
		return "" // something else is mounted there
	}
	return id
}

// Boot is the ID of this boot, or "" where that cannot be read.
func Boot() string { return boot() }

// OfEarlierBoot tells whether a container's GC roots are from before the host was
// last started, and so of no container that runs. The clock has no say in it. Where
// it cannot be told, it says no.
func (g GCRoots) OfEarlierBoot(container string) bool {
	made, err := os.Readlink(g.Of(container) + "/" + bootLink)
	if err != nil || made == unknownBoot {
		return false
	}
	now := boot()
	return now != "" && made != now
}

// Remove removes what Add made, and Realise in it. That nothing is there is no
// error.
func (g GCRoots) Remove(container string) error {
	top, below := filepath.Split(g.Dir)
	dir, err := os.OpenRoot(top)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	return dir.RemoveAll(below + "/" + container)
}
