// SPDX-License-Identifier: Apache-2.0

// Package hook joins what a container asked for (spec), what that is (closure)
// and how it is shown (closure/view), once per stage of a container's life, and
// remembers the container until it is gone.
//
// Read it in this order: hook.go (the stages), create_runtime.go (the main path:
// request, closure, view, attach), pin.go (the closure, kept from the garbage
// collector), registration.go and owner.go (what is the container's own),
// attach.go (inside the container's mount namespace), precreate.go and poststop.go
// (before and after), record.go and runtime_dir.go (what is remembered, and
// where), sweep.go (what goes by itself).
package hook
