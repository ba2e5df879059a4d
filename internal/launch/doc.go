// SPDX-License-Identifier: Apache-2.0

// Package launch runs a command in a container of its own, without an engine: an empty
// root in memory, what every container has mounted, and a closure by this program's own
// hook. It knows config.json and the command lines of runc and crun; it must not know
// stores or views: those are the hook's.
//
// Read it in this order: options.go (what can be asked for), config.go (config.json of
// it), scratch.go (where the bundle is, and how an ordinary user gets to make mounts),
// run.go (the runtime, signals and the exit status).
package launch
