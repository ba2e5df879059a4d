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
	// calling thread.
	//
	// It guarantees that the view is nosuid, nodev and, unless it is a writable one,
	// read-only, and that no mount propagates into it or out of it. After an error,
	// something other than the whole closure may be attached: the container must not start.
	Attach(target *os.File) error
	// Shows reports whether an open directory is the root of the view, as Attach attached
	// it.
	Shows(dir *os.File) (bool, error)
	// Check reports whether the view shows what the closure has, for views for which the
	// kernel may do less than it was asked. It fails with ErrUnsupported.
	Check(store closure.Store, c closure.Closure) error
	// Close closes what was opened to make the view. What is attached stays.
	Close() error
}

// Options say how a view looks.
type Options struct {
	// Label is the SELinux label of everything in the view, for a confined container;
	// empty: the labels of the store. Only an overlay can have one.
	Label string
	// Listed: the store directory can be listed. Otherwise it can only be entered. This
	// restricts only processes without CAP_DAC_OVERRIDE over the host's root.
	Listed bool
	// Links: the view has an empty directory .links, which is no store path. Nix cannot
	// open a read-only store without it.
	Links bool
}

// labelled adds the label to the options of a mount.
func (o Options) labelled(options ...option) []option {
	if o.Label != "" {
		options = append(options, option{"context", o.Label})
	}
	return options
}

// Owner is a user and a group, as the calling thread's user namespace numbers them.
type Owner struct{ UID, GID int }

// mode returns the mode of a view's store directory.
func (o Options) mode() uint32 {
	if o.Listed {
		return 0o555
	}
	return 0o111
}

// ErrUnsupported is wrapped by errors that say that an overlay view is impossible with this
// kernel, these privileges or this store. A bind view may work.
var ErrUnsupported = errors.New("an overlay cannot show the closure here")
