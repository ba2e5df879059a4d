// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// Cost is the part of a file system that something takes.
type Cost struct{ Inodes, Bytes int64 }

// InodeBytes is the least cost of an inode, in bytes. On a tmpfs this is the memory of
// the kernel's structures, which the file system's size does not count.
const InodeBytes = 1024

// Add returns the sum of two costs.
func (c Cost) Add(other Cost) Cost { return Cost{c.Inodes + other.Inodes, c.Bytes + other.Bytes} }

// Sub returns the difference of two costs.
func (c Cost) Sub(other Cost) Cost { return Cost{c.Inodes - other.Inodes, c.Bytes - other.Bytes} }

func (c Cost) String() string { return fmt.Sprintf("%d %d", c.Inodes, c.Bytes) }

// sizeLink is a symbolic link in a layer's directory, beside shown. Its target is the
// layer's Cost. Reading it takes one system call, however large the layer is.
const sizeLink = "size"

// ownInodes is the number of inodes that a layer has in addition to one for each store
// path: its directory, shown, the directory for links, and sizeLink.
const ownInodes = 4

// attributeBytes is the space that the extended attributes of one entry take on a tmpfs,
// without the name that the redirect leads to.
const attributeBytes = 160

// layerCost returns the cost of a closure's layer in the file system of dir.
func layerCost(dir int, c closure.Closure) (Cost, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return Cost{}, os.NewSyscallError("fstat", err)
	}
	// Since Linux 6.6 a tmpfs counts extended attributes as parts of inodes.
	attributes := int64(0)
	for _, name := range c.Names {
		attributes += attributeBytes + int64(len(name))
	}
	inodes := int64(len(c.Names)) + ownInodes + (attributes+InodeBytes-1)/InodeBytes
	cost := Cost{inodes, inodes * InodeBytes}
	// Most store paths are directories. A directory takes a block on a disk and nothing
	// on a tmpfs. Files are sparse and take nothing.
	if st.Blocks > 0 {
		cost.Bytes += inodes * int64(st.Blksize) //nolint:unconvert // another type on arm64
	}
	return cost, nil
}

// LayerCost returns what EnsureLayer is going to add to views. It is zero if another
// process is making the same layer, because that process has already counted it.
func LayerCost(views *owndir.Dir, c closure.Closure, o Options) (Cost, error) {
	if _, err := views.Readlink(LayerName(c.Digest(), o) + half + "/" + sizeLink); err == nil {
		return Cost{}, nil
	}
	dir, err := views.Open(".")
	if err != nil {
		return Cost{}, err
	}
	defer dir.Close()
	return layerCost(int(dir.Fd()), c)
}

// CostOf returns the cost of an entry of views: a layer, whether in use, stale or half
// made, or something else.
func CostOf(views *owndir.Dir, name string) Cost {
	if target, err := views.Readlink(name + "/" + sizeLink); err == nil {
		var c Cost
		if _, err := fmt.Sscanf(target, "%d %d", &c.Inodes, &c.Bytes); err == nil && c.Inodes > 0 && c.Bytes > 0 {
			return c
		}
	}
	// This is a use mark, or a layer of an earlier version without sizeLink.
	c := Cost{1, InodeBytes}
	dir, err := views.Open(name + "/" + shown)
	if err != nil {
		return c
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // names that cannot be read are not counted
	inodes := int64(len(names)) + ownInodes
	return Cost{inodes, inodes * InodeBytes}
}
