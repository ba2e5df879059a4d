// SPDX-License-Identifier: Apache-2.0

// Package spec knows what a container asked for: its annotations, the OCI state
// and config.json that a runtime hands to a hook, and the mount list.
//
// It knows the OCI runtime specification. It looks at the host's files to tell
// what a mount would show, and it mounts, changes and runs nothing.
//
// Read it in this order: engine.go (whose word counts), annotations.go (what is asked
// for), state.go and config.go (what the runtime says), mountinfo.go (what is mounted),
// kinds.go (types of file systems), guard.go and disks.go (what must not show),
// classify.go (what each mount of config.json means), look.go, compare.go, handles.go and
// layers.go (what a file system shows that is made of others), processes.go (mounts of
// /proc), check.go and propagation.go (what is really mounted in a container, and what
// it would receive later), rewrite.go (a config.json without the mounts that a view
// replaces).
package spec
