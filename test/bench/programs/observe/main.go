// SPDX-License-Identifier: Apache-2.0

// Command observe runs a hook in its own place and notes what the kernel counted:
//
//	observe FILE HOOK [ARGUMENT…] STAGE
//
// It appends one line to FILE: the stage, the hook's page faults, its time on a processor
// in microseconds, and its peak resident memory in KiB. What the hook starts and waits for
// counts too; of the peaks, the largest.
//
// It is a program of its own because the kernel lets a process begin with the peak of the
// one that started it, so that one must be small.
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
	usage := hook.ProcessState.SysUsage().(*syscall.Rusage)
	cpu := hook.ProcessState.SystemTime() + hook.ProcessState.UserTime()
	f, err := os.OpenFile(os.Args[1], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fail(err)
	}
	stage := os.Args[len(os.Args)-1]
	_, err = fmt.Fprintln(f, stage, usage.Minflt, cpu.Microseconds(), usage.Maxrss)
	if err := errors.Join(err, f.Close()); err != nil {
		fail(err)
	}
	os.Exit(hook.ProcessState.ExitCode())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "observe:", err)
	os.Exit(1)
}
