// SPDX-License-Identifier: Apache-2.0

// Package view shows a closure as a mount. It knows the kernel: mounts by file
// descriptor, overlay, extended attributes. It must not know containers, runtimes or
// annotations, nor the source of a closure.
//
// There are two kinds of view (view.go). overlay.go shows a closure with one mount: an
// overlay over the store directory with a layer that lists the visible store paths
// (layer.go; its cost is in cost.go). bind.go shows it with one mount per store path.
// writable.go adds an upper layer in memory to an overlay. statedir.go makes a Nix state
// directory that is attached beside a view. cover.go covers a volume that a view goes
// into. tree.go makes a view one tree for a directory of the host, and commands.go prints
// the commands that make one by hand. mount.go has the system calls.
package view
