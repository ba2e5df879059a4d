// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// mostCovered bounds the names of a volume that a cover mounts.
const mostCovered = 10_000

// Cover mounts a tmpfs over a volume, in the mount namespace of the calling thread, in
// which everything of the volume is mounted in its place. ways are paths, relative to
// the volume, of directories that views go to: these and the directories on the way to
// them are the tmpfs's own.
//
// It guarantees, against everybody who can write to the volume by another mount of it,
// that what is attached to these directories stays there: a mount goes with the
// directory that it is on, and whoever renames that takes the mount away in every mount
// namespace (rename(2) refuses mount points of the caller's own only, since Linux 3.19).
//
// volume is an open directory, the root of the mount that is covered. What the container
// makes beside the volume's own names, from then on, is in memory and not in the volume:
// size bytes at most.
func Cover(volume *os.File, ways []string, size int64, o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(volume.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: volume.Name(), Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(volume.Fd()), &fs); err != nil {
		return &os.PathError{Op: "fstatfs", Path: volume.Name(), Err: err}
	}
	tmpfs, err := newSizedTmpfs(size, 2*mostCovered, st.Mode&0o7777, o)
	if err != nil {
		return err
	}
	defer tmpfs.Close()
	if err := unix.Fchownat(int(tmpfs.Fd()), "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if err := moveMount(int(tmpfs.Fd()), volume, ""); err != nil {
		return err
	}
	if err := setPrivate(tmpfs); err != nil {
		return err
	}
	c := cover{left: mostCovered}
	if err := c.fill(int(tmpfs.Fd()), int(volume.Fd()), ways); err != nil {
		return err
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(int(tmpfs.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return os.NewSyscallError("mount_setattr", err)
		}
	}
	return nil
}

// cover counts the names that it has mounted.
type cover struct{ left int }

// fill mounts what is in the directory from onto the same names in to. Directories on
// the ways are made, and filled in turn.
func (c *cover) fill(to, from int, ways []string) error {
	inside := map[string][]string{}
	for _, way := range ways {
		first, rest, _ := strings.Cut(way, "/")
		inside[first] = append(inside[first], rest)
	}
	names, err := rootfs.Names(from, c.left)
	if err != nil && !errors.Is(err, rootfs.ErrTooMany) {
		return err
	}
	if c.left -= len(names); err != nil || c.left < 0 {
		return fmt.Errorf("a volume that the view goes to has more than %d names beside it; "+
			"mount it elsewhere", mostCovered)
	}
	for _, name := range names {
		if _, onTheWay := inside[name]; onTheWay {
			continue
		}
		if err := c.mount(to, from, name); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("covering %s: %w", name, err)
		}
	}
	for name, rest := range inside {
		if err := c.descend(to, from, name, rest); err != nil {
			return fmt.Errorf("covering %s: %w", name, err)
		}
	}
	return nil
}

// descend makes a directory that is on the way, like the volume's.
func (c *cover) descend(to, from int, name string, ways []string) error {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	in, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(in)
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
		return os.NewSyscallError("fchmodat", err)
	}
	if slices.Contains(ways, "") {
		return nil // the view goes here, and what is here is not seen
	}
	out, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(out)
	return c.fill(out, in, ways)
}

// mount mounts one name of the volume, with what is mounted below it. A symbolic link
// is copied.
func (c *cover) mount(to, from int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return copySymlink(to, from, name, &st)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o500); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
	default:
		if err := unix.Mknodat(to, name, unix.S_IFREG|0o400, 0); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_RECURSIVE
	tree, err := unix.OpenTree(from, name, flags)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", to, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	return nil
}
