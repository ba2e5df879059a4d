// SPDX-License-Identifier: Apache-2.0

package view

import (
	"github.com/nix-closure/nix-closure/closure"
)

// What mountinfo says of a view that is attached.
const (
	// OverlayPath is the part of an overlay that is attached.
	OverlayPath = "/" + shown
	// TmpfsSource is what the tmpfs of a bind view, and of a state directory, is from.
	TmpfsSource = "nix-closure"
	// LinksDir is the one name in a view that is no store path, see Options.Links.
	LinksDir = linksDir
)

// Lower is the value of the option lowerdir of an overlay of a layer in a directory.
func Lower(views, layer string, store closure.Store) string {
	return views + "/" + layer + ":" + store.Dir
}

// StoreMode is the mode of the store directory in a view.
func (o Options) StoreMode(writable bool) uint32 {
	if writable {
		return o.writableMode()
	}
	return o.mode()
}
