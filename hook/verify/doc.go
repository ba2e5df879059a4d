// SPDX-License-Identifier: Apache-2.0

// Package verify looks at containers that run: which there are, what the host remembers
// of each, and whether each sees what it asked for and no more. It changes nothing.
//
// Read it in this order: inventory.go (records, and containers that a runtime knows),
// verify.go (one container, and what is said of it), inside.go (its mount namespace),
// storedir.go and contents.go (the store directory there), pinned.go (GC roots), asked.go
// (annotations).
//
// It knows nothing of output and of flags: those are the command line's. The hook must not
// import it.
package verify
