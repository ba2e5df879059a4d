// SPDX-License-Identifier: Apache-2.0

// Package spec knows what a container asks for: its annotations, the OCI state and the
// config.json that a runtime gives to a hook, and the mount list. It follows the OCI
// runtime specification
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/spec.md).
//
// It looks at the host's files, to find out what a mount would show. It mounts, changes and
// runs nothing.
//
// Read it in this order: engine.go and pod.go (which annotations are believed), annotations.go (what
// is asked for), state.go and config.go (what the runtime says), mountinfo.go (what is
// mounted), kinds.go (types of file systems), guard.go and disks.go (what must not show),
// classify.go (judging the mounts of config.json), look.go, compare.go, handles.go,
// layers.go and trust.go (looking into file systems that are made of others), processes.go
// (mounts of /proc), check.go and propagation.go (judging what is mounted in a container,
// and what it would receive later), rewrite.go (changing config.json).
package spec
