// SPDX-License-Identifier: Apache-2.0

// Command walk does one thing after the other with each file of a list, and prints how
// many nanoseconds each took, a line for each:
//
//	walk {stat|read|exec|mountinfo LIST}…
//
// LIST has an absolute path on each line. To exec is to run it and to wait for its end.
// mountinfo reads the process's own, and LIST is then how often.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	for i := 1; i+1 < len(os.Args); i += 2 {
		if err := run(os.Args[i], os.Args[i+1]); err != nil {
			fmt.Fprintln(os.Stderr, "walk:", err)
			os.Exit(1)
		}
	}
}

func run(what, list string) error {
	var files []string
	if what == "mountinfo" {
		n, err := strconv.Atoi(list)
		if err != nil {
			return err
		}
		files = make([]string, n)
	} else {
		text, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		files = strings.Fields(string(text))
	}
	do := map[string]func(string) error{
		"stat": stat, "read": read, "exec": execute,
		"mountinfo": func(string) error { return read("/proc/self/mountinfo") },
	}[what]
	began := time.Now()
	for _, f := range files {
		if err := do(f); err != nil {
			return fmt.Errorf("%s %s: %w", what, f, err)
		}
	}
	fmt.Println(time.Since(began).Nanoseconds())
	return nil
}

func stat(path string) error {
	var s syscall.Stat_t
	return syscall.Lstat(path, &s)
}

var buffer = make([]byte, 1<<16)

// read is without package os, which asks the poller about every file.
func read(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for {
		n, err := syscall.Read(fd, buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			return syscall.Close(fd)
		}
	}
}

func execute(path string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	fd := null.Fd()
	pid, err := syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{Files: []uintptr{fd, fd, fd}})
	if err != nil {
		return err
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return nil
}
