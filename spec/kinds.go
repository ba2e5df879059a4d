// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strings"
)

// plainKinds are the types of file systems that share their files with no other: a mount
// with another device number shows other files.
var plainKinds = []string{
	"ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "minix", "vfat", "msdos", "exfat", "ntfs3", "tmpfs", "ramfs",
	"devtmpfs", "hugetlbfs", "rootfs", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf",
}

// memoryKinds are the plain kinds that have no source.
var memoryKinds = []string{"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"}

// kernelKinds are the types of file systems that show no file of the host.
var kernelKinds = []string{
	"proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf", "pstore",
	"efivarfs", "configfs", "fusectl", "binfmt_misc", "nsfs", "rpc_pipefs", "selinuxfs", "autofs",
}

// localKinds are further types whose files no other machine and no program can rename
// behind the kernel's back.
var localKinds = []string{"overlay", "btrfs", "zfs", "bcachefs", "nilfs2", "ubifs", "jffs2", "reiserfs", "hfsplus"}

// isMovable reports whether another machine or a program can rename files of this type of
// file system at any time. The kernel then removes what was mounted on them. An unknown
// type counts as movable.
func isMovable(kind string) bool {
	return !slices.Contains(plainKinds, kind) && !slices.Contains(kernelKinds, kind) &&
		!slices.Contains(localKinds, kind)
}

// isFUSE reports whether a program of this host decides what a file system shows. virtiofs
// is not FUSE in this sense: its server is the machine that this one runs on.
func isFUSE(kind string) bool {
	return kind == "fuse" || kind == "fuseblk" || strings.HasPrefix(kind, "fuse.")
}

// ownsItsFiles reports whether no mount with another device number shows the files of this
// one. A plain file system without a disk is made from a file, as erofs can be, and that
// file may be mounted twice.
func (m mountPoint) ownsItsFiles() bool {
	isOfFile := strings.HasPrefix(m.device, "0:") && !slices.Contains(memoryKinds, m.kind)
	return slices.Contains(plainKinds, m.kind) && !isOfFile
}

// isLayered reports whether a mount can be made of files that other mounts of the host show
// too, under another device number.
func (m mountPoint) isLayered() bool {
	single := []string{"btrfs", "zfs", "bcachefs", "nfs", "nfs4", "9p", "virtiofs", "cifs", "smb3", "ceph"}
	return !m.ownsItsFiles() && !slices.Contains(single, m.kind)
}
