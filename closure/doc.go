// SPDX-License-Identifier: Apache-2.0

// Package closure knows what a container may see: store paths, the closures
// that they span, what remembers a closure, and what keeps Nix's garbage
// collector off it.
//
// It knows Nix's store, state directory and programs. It must not know
// containers, runtimes or mounts. It links no SQLite: reading Nix's database is
// package nixdb, which only the program that resolves imports, so that the hook
// that every container starts stays small.
//
// Read it in this order: path.go (store paths), closure.go (a closure and its
// digest), closureinfo.go (closure-info, read with lines.go), memo.go (resolved
// closures that are remembered) and stamp.go (for how long), resolve.go (who is asked)
// and resolver.go (from the hook), nixstore.go (Nix's own program), gcroots.go (GC
// roots), fetch.go (substituters), registration.go (what a database of a closure says)
// and dump.go (the same as a text).
package closure
