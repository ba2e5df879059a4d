// SPDX-License-Identifier: Apache-2.0

// Package view makes a closure a mount. It knows the kernel: mounts by file
// descriptor, overlay, extended attributes. It must not know containers,
// runtimes or annotations, nor where a closure came from.
//
// There are two views (view.go). overlay.go shows a closure by one mount: an overlay of
// a layer (layer.go, and what it costs in cost.go) that says which store paths there
// are, over the store directory. bind.go shows it by a mount per store path.
// writable.go is an overlay with an upper layer in memory, statedir.go a Nix state
// directory that goes beside a view, and cover.go covers a volume that a view goes
// into. tree.go makes a view one tree, for a directory of the host, and commands.go says
// how to make one by hand. mount.go has the system calls.
package view
