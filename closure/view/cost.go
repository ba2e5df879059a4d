// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// Cost is what something takes of a file system.
type Cost struct{ Inodes, Bytes int64 }

// InodeBytes is what an inode costs at least, in bytes: on a tmpfs, the memory of
// the kernel's structures, which the file system's size does not count.
const InodeBytes = 1024

// Add returns the sum of two costs.
func (c Cost) Add(other Cost) Cost { return Cost{c.Inodes + other.Inodes, c.Bytes + other.Bytes} }

// Sub returns the difference of two costs.
func (c Cost) Sub(other Cost) Cost { return Cost{c.Inodes - other.Inodes, c.Bytes - other.Bytes} }

func (c Cost) String() string { return fmt.Sprintf("%d %d", c.Inodes, c.Bytes) }

// sizeLink is a symbolic link in a layer's directory, beside what is shown, whose
// target is the layer's Cost. To read it takes one system call, however large the
// layer is.
const sizeLink = "size"

// ownInodes are those that a layer has in addition to one for each store path: its
// directory, what is shown, the directory for links, and sizeLink.
const ownInodes = 4

// attributeBytes is what the extended attributes of one entry take of a tmpfs, but
// for the name that the redirect leads to.
const attributeBytes = 160

// layerCost is the cost of a closure's layer in the file system of a directory.
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
	// Most store paths are directories, which take a block each on a disk, and
	// nothing on a tmpfs. Files are all hole.
	if st.Blocks > 0 {
		cost.Bytes += inodes * int64(st.Blksize) //nolint:unconvert // another type on arm64
	}
	return cost, nil
}

// LayerCost is what EnsureLayer is going to add to the views: nothing where another
// process makes the same layer at this moment, for that counts already.
func LayerCost(views *os.Root, c closure.Closure, o Options) (Cost, error) {
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

// CostOf is the cost of what is in views under a name: a layer, be it in use, stale
// or half made, or something else.
func CostOf(views *os.Root, name string) Cost {
	if target, err := views.Readlink(name + "/" + sizeLink); err == nil {
		var c Cost
		if _, err := fmt.Sscanf(target, "%d %d", &c.Inodes, &c.Bytes); err == nil && c.Inodes > 0 && c.Bytes > 0 {
			return c
		}
	}
	// A use mark, or a layer of an earlier version that does not say.
	c := Cost{1, InodeBytes}
	dir, err := views.Open(name + "/" + shown)
	if err != nil {
		return c
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what cannot be read is not counted
	inodes := int64(len(names)) + ownInodes
	return Cost{inodes, inodes * InodeBytes}
}
