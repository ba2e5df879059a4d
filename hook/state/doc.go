// SPDX-License-Identifier: Apache-2.0

// Package state is the host's memory of containers. It keeps what belongs to a container
// in the runtime directory while the container lives, and removes it afterwards. It knows
// nothing of stages, mounts in containers or logs. It returns what it did, and the caller
// logs it.
//
// Read the files in this order: dir.go (the directory), record.go (the record of one
// container), lock.go (one process at a time for a container ID), claim.go (a start),
// refs.go (the marks of what a container uses), end.go (an end), hostview.go (views on
// directories of the host, which are remembered as containers are), sweep.go and unused.go
// (removal of what nothing uses), budget.go (the limits of the directory) and cache.go
// (the cache of Nix while it fetches).
package state
