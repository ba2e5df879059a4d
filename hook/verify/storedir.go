// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/rootfs"
	"github.com/nix-closure/nix-closure/spec"
)

const (
	// mostMore bounds how many names a view is read with that are not the closure's.
	mostMore = 1000
	// mostAdded bounds the names that a container may have added to its store.
	mostAdded = 10_000_000
)

// checkNames compares the names in the container's store directory with the closure, and
// each path with the host's. dir may be open with O_PATH: where the directory may be
// entered and not listed, this process has CAP_DAC_OVERRIDE.
func (in *inside) checkNames(dir *os.File) error {
	most := len(in.closure.Names) + mostMore
	if in.record.Writable {
		most = mostAdded
	}
	names, err := rootfs.Names(int(dir.Fd()), most)
	if errors.Is(err, rootfs.ErrTooMany) {
		in.wrong(stopNow, "%s shows more than %d names, and the closure has %d",
			in.store.Dir, most, len(in.closure.Names))
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing %s: %w", in.store.Dir, err)
	}
	slices.Sort(names)
	var missing, more []closure.BaseName
	for _, name := range in.closure.Names {
		if _, there := slices.BinarySearch(names, string(name)); !there {
			missing = append(missing, name)
		}
	}
	for _, name := range names {
		isLinks := name == view.LinksDir && in.options().Links
		if !in.record.Writable && !isLinks && !in.has(closure.BaseName(name)) {
			more = append(more, closure.BaseName(name))
		}
	}
	if len(missing) > 0 {
		in.wrong(startAgain, "%s lacks %d of the closure's paths: %s", in.store.Dir, len(missing), in.names(missing))
	}
	if len(more) > 0 {
		in.wrong(stopNow, "%s shows %d names that are not in the closure: %s", in.store.Dir, len(more), in.names(more))
	}
	if err := in.checkStoreMode(dir); err != nil {
		return err
	}
	return in.checkPaths(dir, missing)
}

// checkStoreMode looks at whether the directory can be listed.
func (in *inside) checkStoreMode(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	// Who owns a writable store may change the mode.
	if want := in.options().StoreMode(in.record.Writable); st.Mode&0o7777 != want && !in.record.Writable {
		in.wrong(startAgain, "%s has mode %04o, not %04o", in.store.Dir, st.Mode&0o7777, want)
	}
	return nil
}

// mostDifferent bounds how many paths are named that are not as they must be.
const mostDifferent = 5

func (in *inside) checkPaths(dir *os.File, missing []closure.BaseName) error {
	different := 0
	for _, name := range in.closure.Names {
		if _, gone := slices.BinarySearch(missing, name); gone {
			continue
		}
		difference, err := in.compare(dir, string(name))
		if err != nil {
			return fmt.Errorf("%s: %w", in.store.Path(name), err)
		}
		if difference == "" {
			continue
		}
		if different++; different <= mostDifferent {
			in.wrong(stopNow, "%s is not the host's: %s", in.store.Path(name), difference)
		}
	}
	if different > mostDifferent {
		in.wrong(stopNow, "%d more paths are not the host's", different-mostDifferent)
	}
	return nil
}

// compare compares a store path in the container with the host's, and says in what they
// differ.
func (in *inside) compare(dir *os.File, name string) (string, error) {
	var have, want unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &have, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", os.NewSyscallError("fstatat", err)
	}
	if err := unix.Fstatat(int(in.hostStore.Fd()), name, &want, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", fmt.Errorf("on the host: %w", os.NewSyscallError("fstatat", err))
	}
	kind := want.Mode & unix.S_IFMT
	isCopy := kind == unix.S_IFLNK && in.record.Mode == spec.ModeBind
	// A copy in a user namespace has an owner that has a number there.
	isOwned := have.Uid == want.Uid && have.Gid == want.Gid || isCopy && in.host.Config.Rootless
	switch {
	case have.Mode != want.Mode:
		return fmt.Sprintf("type and mode %07o, not %07o", have.Mode, want.Mode), nil
	case !isOwned:
		return fmt.Sprintf("owner %d:%d, not %d:%d", have.Uid, have.Gid, want.Uid, want.Gid), nil
	case kind == unix.S_IFREG && have.Size != want.Size:
		return fmt.Sprintf("%d bytes, not %d", have.Size, want.Size), nil
	case have.Mtim != want.Mtim:
		return fmt.Sprintf("changed at %d, not %d (seconds since 1970)", have.Mtim.Sec, want.Mtim.Sec), nil
	case in.record.Mode == spec.ModeBind && !isCopy && (have.Dev != want.Dev || have.Ino != want.Ino):
		return fmt.Sprintf("another file (device %x, inode %d, not %x, %d)",
			have.Dev, have.Ino, want.Dev, want.Ino), nil
	case kind != unix.S_IFLNK:
		return "", nil
	}
	a, err := readlink(int(dir.Fd()), name)
	if err != nil {
		return "", err
	}
	b, err := readlink(int(in.hostStore.Fd()), name)
	if err == nil && a != b {
		return fmt.Sprintf("leads to %q, not %q", a, b), nil
	}
	return "", err
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}
