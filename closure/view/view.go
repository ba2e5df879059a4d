// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"os"

	"github.com/nix-closure/nix-closure/closure"
)

// View is a closure that can be attached to a directory.
type View interface {
	// Attach mounts the view on target, an open directory in the mount
	// namespace of the calling thread. It is nosuid and nodev and, unless it is
	// said to be writable, read-only, and mounts do not propagate into it or out
	// of it. After an error something
	// may be attached that is not the whole closure: the container must not
	// start.
	Attach(target *os.File) error
	// Shows tells whether an open directory is the root of the view as Attach
	// attached it.
	Shows(dir *os.File) (bool, error)
	// Check looks whether the view shows what the closure has, where the kernel may not
	// do what it was asked for: then it fails with ErrUnsupported.
	Check(store closure.Store, c closure.Closure) error
	// Close releases what was opened to make the view. What is attached stays.
	Close() error
}

// Options say how a view looks.
type Options struct {
	// Label is the SELinux label of everything in the view, for a confined
	// container; empty: as the store has it. Only an overlay can.
	Label string
	// Listed: whether the store directory can be listed, and not only entered.
	// It holds against processes without CAP_DAC_OVERRIDE over the host's root.
	Listed bool
	// Links: whether there is an empty directory .links, which is no store path.
	// Nix cannot open a read-only store without it.
	Links bool
}

// labelled adds the label to the options of a mount.
func (o Options) labelled(options ...option) []option {
	if o.Label != "" {
		options = append(options, option{"context", o.Label})
	}
	return options
}

// Owner is a user and a group, as the user namespace of the calling thread
// numbers them.
type Owner struct{ UID, GID int }

// mode is the mode of a view's store directory.
func (o Options) mode() uint32 {
	if o.Listed {
		return 0o555
	}
	return 0o111
}

// ErrUnsupported is wrapped by errors that say that this kernel, these
// privileges or this store cannot have an overlay view; a bind view may work.
var ErrUnsupported = errors.New("an overlay cannot show the closure here")
