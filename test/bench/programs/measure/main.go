// SPDX-License-Identifier: Apache-2.0

// Command measure runs a hook in its own place and notes how much memory it
// needed:
//
//	measure FILE HOOK [ARGUMENT…]
//
// It appends one line to FILE, the hook's peak resident memory in KiB. What
// the hook starts and waits for counts too: the kernel gives the largest of
// all of them.
//
// It is a program of its own because the kernel lets a process begin with the
// peak of the one that started it, so that one must be small.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

func main() {
	hook := exec.Command(os.Args[2], os.Args[3:]...)
	hook.Stdin, hook.Stdout, hook.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := hook.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fail(err)
	}
	if err := note(os.Args[1], hook.ProcessState.SysUsage().(*syscall.Rusage).Maxrss); err != nil {
		fail(err)
	}
	os.Exit(hook.ProcessState.ExitCode())
}

func note(path string, kib int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, kib); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "measure:", err)
	os.Exit(1)
}
