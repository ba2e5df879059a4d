// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"os"

	"github.com/nix-closure/nix-closure/closure"
)

// View is a closure that can be attached to a directory.
type View interface {
	// Attach mounts the view on target, an open directory in the mount namespace of the
	// calling thread. The mount is nosuid and nodev, and read-only unless the view is
	// documented as writable. Mounts do not propagate into it or out of it. After an
	// error, a part of the closure may be attached: the container must not start.
	Attach(target *os.File) error
	// Shows reports whether an open directory is the root of the view as Attach attached
	// it.
	Shows(dir *os.File) (bool, error)
	// Check verifies that the view shows what the closure has, in case the kernel ignored
	// what it was asked for. It fails with ErrUnsupported then.
	Check(store closure.Store, c closure.Closure) error
	// Close closes the files that were opened to make the view. Attached mounts stay.
	Close() error
}

// Options describe the appearance of a view.
type Options struct {
	// Label is the SELinux label of everything in the view, for a confined container;
	// empty: the labels of the store. Only an overlay can set it.
	Label string
	// Listed: whether the store directory can be listed, and not only entered. The
	// restriction holds against processes without CAP_DAC_OVERRIDE over the host's root.
	Listed bool
	// Links: whether the view has an empty directory .links, which is not a store path.
	// Without it Nix cannot open a read-only store.
	Links bool
}

// labelled adds the label to the options of a mount.
func (o Options) labelled(options ...option) []option {
	if o.Label != "" {
		options = append(options, option{"context", o.Label})
	}
	return options
}

// Owner is a user and a group, in the numbers of the calling thread's user namespace.
type Owner struct{ UID, GID int }

// mode returns the mode of a view's store directory.
func (o Options) mode() uint32 {
	if o.Listed {
		return 0o555
	}
	return 0o111
}

// ErrUnsupported is wrapped by errors that mean that an overlay view is impossible with
// this kernel, these privileges or this store. A bind view may work.
var ErrUnsupported = errors.New("an overlay cannot show the closure here")
