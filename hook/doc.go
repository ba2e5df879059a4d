// SPDX-License-Identifier: Apache-2.0

// Package hook joins what a container asked for (spec), what that is (closure)
// and how it is shown (closure/view), once per stage of a container's life, and
// remembers the container until it is gone.
//
// Read it in this order: hook.go (the stages), create_runtime.go (the main path, six
// steps), and the steps: check.go and pids.go (what is asked for, and what the
// container would see besides), claim.go (whose the container's ID is), pin.go (the
// closure, kept from the garbage collector), view.go, registration.go and owner.go
// (what is made for it), attach.go, container_mounts.go and descriptors.go (inside the
// container's mount namespace). Then watchdog.go (a start that hangs), precreate.go, install.go and
// poststop.go (before and after), record.go, lock.go and runtime_dir.go (what is
// remembered, and where), sweep.go and budget.go (what goes by itself), log.go.
package hook
