// SPDX-License-Identifier: Apache-2.0

// Command empty does nothing: what a container runs here, and the hook that the others
// are compared with.
package main

func main() {}
