// SPDX-License-Identifier: Apache-2.0

// Package roomystack grows the stack of the main goroutine once, while little is on it. A
// goroutine starts with a stack of 2 KiB and doubles it whenever it is full. Each time, the
// runtime reads its tables about every function on the stack, and touches new memory for
// the copy. At a hook's start, that takes more page faults than the hook's own work.
//
// The package imports nothing, so that Go initialises it before most others.
package roomystack

// size is enough for what the hook does at a usual start.
const size = 48 << 10

func init() { needRoom() }

// needRoom needs a stack of the size to be called, and then touches nothing of it.
//
//go:noinline
func needRoom() byte {
	if at < 0 {
		return 0
	}
	var room [size]byte
	return room[at]
}

// at is a variable, so that the compiler keeps the room.
var at = -1
