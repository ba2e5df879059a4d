// SPDX-License-Identifier: Apache-2.0

// Package hook gives containers their closures. It joins the annotations and mounts of a
// container (spec), the closure that they name (closure) and the mount that shows it
// (closure/view). The runtime calls it once for each stage of a container's life. It
// remembers the container until the container is gone.
//
// Read the files in this order: run.go has the stages and their deadlines. create.go has
// the main path, in six steps. The steps are in locate.go (finds the container's
// config.json), check.go and pids.go (what the container asks for, and what else it would
// see), claim.go (claims the container ID), pin.go (resolves the closure and pins it
// against the garbage collector), view.go (makes the view), and attach.go,
// container_mounts.go and descriptors.go (work inside the container's mount namespace).
// precreate.go, bundle.go and poststop.go are the stages before and after. report.go has
// the form of errors and the log. hostview.go takes the same steps for a directory of the
// host, for the operator. The host's memory of containers is in hook/state.
package hook
