// SPDX-License-Identifier: Apache-2.0

// Package closure knows what a container may see: store paths, closures, the memory of
// resolved closures, and the GC roots that keep a closure from Nix's garbage collector.
//
// It knows Nix's store, state directory and programs. It must not know containers, runtimes
// or mounts. It links no SQLite, so that the hook stays small, which every container
// starts. Package nixdb reads Nix's database, and only the program that resolves imports
// it.
//
// Read it in this order: path.go (store paths), closure.go (a closure and its digest),
// closureinfo.go (closure-info, read with lines.go), cache.go (resolved closures that are
// remembered) and stamp.go (how long they count), resolve.go (finding a closure) and
// resolver.go (the same from the hook), nixstore.go (Nix's own program), gcroots.go (GC
// roots), fetch.go (substituters), registration.go (what a database of a closure has) and
// dump.go (the same as a text).
package closure
