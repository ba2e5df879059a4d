// SPDX-License-Identifier: Apache-2.0

// Package state is the host's memory of containers: what it keeps of each while it
// lives, in the runtime directory, and what goes when it is gone. It knows nothing of
// stages, mounts in containers or logs; what it did it returns.
//
// Read it in this order: dir.go (the directory), record.go (what is remembered of one
// container), lock.go (one process at a time for a container ID), claim.go (a start),
// refs.go (the marks of what a container uses), end.go (an end), hostview.go (views on
// directories of the host, which are remembered as containers are), sweep.go and unused.go
// (what goes by itself), budget.go (how much there may be) and cache.go (what Nix notes
// while it fetches).
package state
