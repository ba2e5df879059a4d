// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Settle takes from this process what it was started with and what tests must not
// depend on: the processes that it starts have the same signals, file mode mask,
// limits and environment whoever starts it, and room for temporary files.
//
// In a program that is started with an ignored SIGHUP, by nohup, SIGHUP stays ignored
// for the program itself.
func Settle() error {
	settleSignals()
	syscall.Umask(0o022)
	if err := settleLimits(); err != nil {
		return err
	}
	return settleEnvironment()
}

// settleSignals has started processes handle signals as processes do. Of those that are
// ignored from the start, Go keeps SIGHUP and SIGINT so for a new process; every other
// signal it sets to the default there.
func settleSignals() {
	ignored := []os.Signal{}
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			ignored = append(ignored, s)
		}
	}
	if len(ignored) > 0 {
		signal.Notify(make(chan os.Signal, 1), ignored...)
	}
}

// limits are the soft limits that tests have, where the hard limit allows it.
var limits = []struct {
	name     string
	resource int
	soft     uint64
	least    uint64 // with less, tests fail
}{
	{"open files", unix.RLIMIT_NOFILE, 1024, 1024},
	{"processes", unix.RLIMIT_NPROC, unix.RLIM_INFINITY, 2048},
	{"the size of a file", unix.RLIMIT_FSIZE, unix.RLIM_INFINITY, 16 << 30},
	{"the address space", unix.RLIMIT_AS, unix.RLIM_INFINITY, 64 << 30},
	{"data", unix.RLIMIT_DATA, unix.RLIM_INFINITY, 8 << 30},
	{"the stack", unix.RLIMIT_STACK, 8 << 20, 8 << 20},
	{"CPU time", unix.RLIMIT_CPU, unix.RLIM_INFINITY, 24 * 3600},
	{"a core file", unix.RLIMIT_CORE, 0, 0},
}

func settleLimits() error {
	for _, l := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		if now.Max < l.least {
			return fmt.Errorf("the hard limit on %s is %d, and tests need %d; raise it (ulimit -H)", l.name, now.Max, l.least)
		}
		// By package syscall, so that Go does not restore what it found for a new process.
		limit := syscall.Rlimit{Cur: min(l.soft, now.Max), Max: now.Max}
		if err := syscall.Setrlimit(l.resource, &limit); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// programs is where they are found, after the directories of the PATH that this
// process was started with.
var programs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// kept are the variables that stay: what says where Go, its caches and its proxy are,
// and what tests say to themselves.
func kept(name string) bool {
	return slices.Contains([]string{"HOME", "TERM", "CI", "CC"}, name) ||
		strings.HasPrefix(name, "GO") || strings.HasPrefix(name, "CGO_") || strings.HasPrefix(name, "NIX_CLOSURE_TEST_") ||
		slices.Contains([]string{"http_proxy", "https_proxy", "no_proxy"}, strings.ToLower(name))
}

func settleEnvironment() error {
	path := os.Getenv("PATH")
	for _, dir := range programs {
		if !slices.Contains(strings.Split(path, ":"), dir) {
			path = strings.TrimPrefix(path+":"+dir, ":")
		}
	}
	before := os.Environ()
	os.Clearenv()
	set := map[string]string{"PATH": path, "LC_ALL": "C.UTF-8", "TMPDIR": roomy(), "HOME": "/root", "USER": "root"}
	for _, variable := range before {
		if name, value, ok := strings.Cut(variable, "="); ok && kept(name) && value != "" {
			set[name] = value
		}
	}
	var errs []error
	for name, value := range set {
		errs = append(errs, os.Setenv(name, value))
	}
	return errors.Join(errs...)
}

// room is what tests take of the disk, in bytes and in files.
const (
	roomBytes = 2 << 30
	roomFiles = 100_000
)

// roomy is a directory for temporary files that has room. /tmp has the shorter name,
// which is good for sockets.
func roomy() string {
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Bavail*uint64(st.Bsize) < roomBytes {
			continue
		}
		// Some file systems do not count files.
		if st.Files == 0 || st.Ffree >= roomFiles {
			return dir
		}
	}
	return "/tmp"
}
