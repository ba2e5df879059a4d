// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strings"
)

// plainKinds are the types of file systems that have their files to themselves: one
// with another device number shows other files.
var plainKinds = []string{
	"ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "minix", "vfat", "msdos", "exfat", "ntfs3", "tmpfs", "ramfs",
	"devtmpfs", "hugetlbfs", "rootfs", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf",
}

// memoryKinds are those of them that have no source.
var memoryKinds = []string{"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"}

// kernelKinds are the types of file systems that show no file of the host.
var kernelKinds = []string{
	"proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf", "pstore",
	"efivarfs", "configfs", "fusectl", "binfmt_misc", "nsfs", "rpc_pipefs", "selinuxfs", "autofs",
}

// localKinds are further types whose files no other machine or program can rename
// beneath the kernel.
var localKinds = []string{"overlay", "btrfs", "zfs", "bcachefs", "nilfs2", "ubifs", "jffs2", "reiserfs", "hfsplus"}

// isMovable tells whether another machine or program can rename files of a file system
// of this type at any time, after which the kernel takes off what was mounted on them.
// A type that is not known may be one.
func isMovable(kind string) bool {
	return !slices.Contains(plainKinds, kind) && !slices.Contains(kernelKinds, kind) &&
		!slices.Contains(localKinds, kind)
}

// isFUSE tells whether a program of this host makes up what a file system shows.
// virtiofs is none: its server is the machine that this one runs on.
func isFUSE(kind string) bool {
	return kind == "fuse" || kind == "fuseblk" || strings.HasPrefix(kind, "fuse.")
}

// ownsItsFiles tells whether no mount with another device number shows the files of
// this one. A file system of a plain type without a disk is made of a file, as erofs
// can be, and that may be mounted twice.
func (m mountPoint) ownsItsFiles() bool {
	isOfFile := strings.HasPrefix(m.device, "0:") && !slices.Contains(memoryKinds, m.kind)
	return slices.Contains(plainKinds, m.kind) && !isOfFile
}

// isLayered tells whether a mount can be made of files that show at other mounts of the
// host too, by another device number.
func (m mountPoint) isLayered() bool {
	single := []string{"btrfs", "zfs", "bcachefs", "nfs", "nfs4", "9p", "virtiofs", "cifs", "smb3", "ceph"}
	return !m.ownsItsFiles() && !slices.Contains(single, m.kind)
}
