// SPDX-License-Identifier: Apache-2.0

// Package view makes a closure a mount. It knows the kernel: mounts by file descriptor,
// overlay, extended attributes. It must not know containers, runtimes or annotations, nor
// where a closure comes from.
//
// There are two kinds of View (view.go). overlay.go shows a closure by one mount: an
// overlay over the store directory, with a layer (layer.go; its cost is in cost.go) that
// lists the store paths. bind.go shows it by one mount for each store path. Three more
// files belong to these: writable.go is an overlay with an upper layer in memory,
// statedir.go is a Nix state directory beside a view, and cover.go covers a volume that a
// view goes into. mount.go has the system calls.
package view
