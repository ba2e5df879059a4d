// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/nopoll"
)

// Reasons why the garbage collector cannot be held off.
var (
	// ErrCollecting says that the garbage collector is running.
	ErrCollecting = errors.New("the garbage collector of Nix is running")
	// ErrNotOurs says that users other than the one who runs this program can change Nix's
	// state directory.
	ErrNotOurs = errors.New("a single-user installation of Nix cannot be used by another user")
)

// HoldCollector keeps Nix's garbage collector from starting until the returned file is
// closed. It guarantees that a store path that is found valid and made a GC root in that
// time stays valid.
//
// It does not wait: while the collector runs, it fails with ErrCollecting. Only the owner
// of Nix's state directory can hold the collector off; for others, it fails with
// ErrNotOurs.
//
// The lock is gc.lock in the state directory (flock(2)). Nix holds it exclusively during a
// collection.
func HoldCollector(store Store) (*os.File, error) {
	if err := ownedByUs(store.StateDir); err != nil {
		return nil, err
	}
	path := store.StateDir + "/gc.lock"
	// Nix makes the file when it first opens the store, with the same mode.
	f, err := nopoll.Open(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
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

// Ours reports whether only the user who runs this program can change Nix's state
// directory, so that HoldCollector works.
func (s Store) Ours() bool { return ownedByUs(s.StateDir) == nil }

// ownedByUs refuses a directory that another user can change: this program believes what is
// in it, and writes to it.
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

// GCRoots is a directory with the GC roots of containers, in one directory each.
type GCRoots struct {
	Dir string // absolute path
	// Indirect: the directory belongs to an ordinary user, and Nix has links to what is in
	// it (nix-store --add-root --indirect). Else it is inside Nix's own gcroots directory.
	Indirect bool
}

// GCRoots returns the directory for the owner of Nix's state directory.
func (s Store) GCRoots() GCRoots { return GCRoots{Dir: s.StateDir + "/gcroots/nix-closure"} }

// Of returns the directory of a container's GC roots.
func (g GCRoots) Of(container string) string { return g.Dir + "/" + container }

// Add makes the pins GC roots of a container, and removes its earlier ones. The container's
// ID must be a plain file name. For indirect roots, Add makes the directory only, and
// NixStore.Realise makes the roots.
//
// The roots count from the next collection on. To be sure that the running one does not
// take the pins, call Add while HoldCollector's file is open, or call NixStore.Realise
// afterwards.
func (g GCRoots) Add(store Store, container string, pins []BaseName) error {
	dir, err := g.open()
	if errors.Is(err, unix.ENOENT) {
		// The first container makes this program's directory in Nix's gcroots.
		if err := unix.Mkdir(g.Dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: g.Dir, Err: err}
		}
		dir, err = g.open()
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	mode := uint32(0o755) // Nix's own mode for such directories
	if g.Indirect {
		mode = 0o700
	}
	err = unix.Mkdirat(dir, container, mode)
	if errors.Is(err, unix.EEXIST) && g.Indirect {
		return nil // the old roots stay until Nix has made the new ones
	}
	if errors.Is(err, unix.EEXIST) {
		if err := g.removeAll(container); err != nil {
			return err
		}
		err = unix.Mkdirat(dir, container, mode)
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: g.Of(container), Err: err}
	}
	if g.Indirect {
		return nil
	}
	made := boot()
	if made == "" {
		made = unknownBoot
	}
	if err := g.symlink(made, dir, container+"/"+BootLink); err != nil {
		return err
	}
	for _, p := range pins {
		if err := g.symlink(store.Path(p), dir, container+"/"+string(p)); err != nil {
			return err
		}
	}
	return nil
}

// open opens the directory, which must not be a symbolic link.
func (g GCRoots) open() (int, error) {
	dir, err := unix.Open(g.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: g.Dir, Err: err}
	}
	return dir, nil
}

func (g GCRoots) symlink(target string, dir int, name string) error {
	if err := unix.Symlinkat(target, dir, name); err != nil {
		return &os.LinkError{Op: "symlink", Old: target, New: g.Dir + "/" + name, Err: err}
	}
	return nil
}

// BootLink is a dangling link beside a container's GC roots. It names the boot of the host
// in which they were made. Nix ignores it.
const BootLink = ".boot"

// unknownBoot stands for a boot whose ID could not be read. Nothing follows from it.
const unknownBoot = "unknown"

// bootFile has the ID of the boot (random(4)).
var bootFile = "/proc/sys/kernel/random/boot_id"

// boot returns the ID of this boot; empty: it cannot be read, so nobody knows which GC
// roots are from an earlier boot.
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

// Boot returns the ID of this boot, or "" if it cannot be read.
func Boot() string { return boot() }

// OfEarlierBoot reports whether a container's GC roots were made before the host's last
// start, so that they belong to no running container. It does not depend on the clock. If
// the answer is unknown, it is false.
func (g GCRoots) OfEarlierBoot(container string) bool {
	made, err := os.Readlink(g.Of(container) + "/" + BootLink)
	if err != nil || made == unknownBoot {
		return false
	}
	now := boot()
	return now != "" && made != now
}

// Remove removes what Add made, and what Realise made in it. It is no error if nothing is
// there.
func (g GCRoots) Remove(container string) error {
	dir, err := g.open()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = removeLinks(dir, container)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return g.removeAll(container)
}

// removeLinks removes a directory that has files or links only.
func removeLinks(dir int, container string) error {
	fd, err := unix.Openat(dir, container, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := nopoll.NamesIn(fd, container)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, container, unix.AT_REMOVEDIR)
}

// removeAll removes whatever is in the place of a container's GC roots.
func (g GCRoots) removeAll(container string) error {
	dir, err := os.OpenRoot(g.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.RemoveAll(container)
}
