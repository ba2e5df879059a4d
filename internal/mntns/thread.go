// SPDX-License-Identifier: Apache-2.0

package mntns

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnOwnThread calls f on a thread that ends with f, so f may leave it in any namespace. It is
// never the process's first thread: that one does not end before the process, and /proc/self
// and its mountinfo are what this thread sees (proc(5)).
func OnOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		// If it stays locked, Go ends the thread together with the goroutine.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// While this goroutine keeps the first thread, another cannot get it.
		err := OnOwnThread(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
