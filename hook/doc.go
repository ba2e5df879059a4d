// SPDX-License-Identifier: Apache-2.0

// Package hook joins what a container asked for (spec), what that is (closure)
// and how it is shown (closure/view), once per stage of a container's life, and
// remembers the container until it is gone.
//
// Read it in this order: run.go (the stages, and how long each may take), create.go (the
// main path, six steps), and the steps: locate.go (where the container's config.json is),
// check.go and pids.go (what is asked for, and what the container would see besides),
// claim.go (whose the container's ID is), pin.go (the closure, kept from the garbage
// collector), view.go (what is made for it), attach.go, container_mounts.go and
// descriptors.go (inside the container's mount namespace). Then precreate.go, bundle.go
// and poststop.go (before and after) and report.go (how errors are said). hostview.go
// takes the same steps for a directory of the host, which the operator asks for. What the host
// remembers is in hook/state.
package hook
