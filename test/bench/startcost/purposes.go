// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// What is counted besides the purposes.
const (
	allCalls   = "system calls, all"
	pageFaults = "page faults"
	cpuTime    = "time on a processor, µs"
)

// rules say what a system call is for. The first that matches counts; the first of all is of
// what happens before main, whatever it is.
var rules = []struct {
	purpose string
	calls   *regexp.Regexp
}{
	{"Go's runtime: start, memory, threads, timers", regexp.MustCompile(`^(rt_\w+|sigaltstack|mmap|munmap|madvise|` +
		`clone3?|futex|gettid|getpid|tgkill|nanosleep|sched_\w+|arch_prctl|prctl|prlimit64|epoll_\w+|exit_group|` +
		`execve|eventfd2|restart_syscall)\(|<anon_inode:\[eventfd\]>`)},
	{"the OCI state", regexp.MustCompile(`^read\(0<`)},
	{"the configuration", regexp.MustCompile(`\.toml|"/run", |^geteuid`)},
	{"config.json", regexp.MustCompile(`/config\.json|^umask`)},
	{"the log", regexp.MustCompile(`/nix-closure\.log`)},
	{"the collector's lock, and GC roots", regexp.MustCompile(`gc\.lock|gcroots|boot_id`)},
	{"what is remembered of the closure", regexp.MustCompile(`/closures/|db\.sqlite`)},
	{"the lock of the ID", regexp.MustCompile(`/locks`)},
	{"the record", regexp.MustCompile(`/containers/[^">]*json`)},
	{"the use mark, and the layer", regexp.MustCompile(`/views/|^utimensat`)},
	{"sweeping, and the runtime directory", regexp.MustCompile(`"?/run/nix-closure-\w+(/(containers|closures|views|` +
		`registrations|swept|cache))?["/>]`)},
	{"the overlay", regexp.MustCompile(`^(fsopen|fsconfig|fsmount|open_tree|move_mount|mount_setattr)\(|` +
		`fscontext|</>`)},
	{"namespaces", regexp.MustCompile(`/ns/(mnt|user|pid)|^setns|^unshare|<mnt:`)},
	{"the container's mounts, descriptors and target", regexp.MustCompile(`thread-self|/cmdline|/environ|` +
		`/proc/\d+/fd|"/proc/\d+"|^openat2|/image|/layers|</proc/\d+>|^getppid`)},
	{"the container's process", regexp.MustCompile(`/proc/\d+/stat`)},
	{"what is guarded on the host", regexp.MustCompile(`mountinfo|"/nix|"/"|/sys/dev/block|/block/|"/tmp|/sys/`)},
	{"other", regexp.MustCompile(``)},
}

// purposesOf counts the system calls of each stage in what strace wrote of a container's
// hooks, one after the other.
func purposesOf(trace string) map[string]map[string]int {
	all := map[string]map[string]int{}
	stage, inMain := "", false
	for line := range strings.Lines(trace) {
		_, call, _ := strings.Cut(line, " ")
		call = strings.TrimLeft(call, " ")
		if !strings.Contains(call, "(") || strings.HasPrefix(call, "<...") || strings.HasPrefix(call, "---") {
			continue // the rest of a call, or a signal
		}
		if strings.HasPrefix(call, "execve(") {
			for _, s := range stages {
				if strings.Contains(call, `"`+s+`"`) {
					stage, inMain = s, false
					all[stage] = map[string]int{}
				}
			}
		}
		inMain = inMain || strings.HasPrefix(call, "read(0<")
		for i, rule := range rules {
			if i == 0 && !inMain || rule.calls.MatchString(call) {
				all[stage][rule.purpose]++
				break
			}
		}
	}
	return all
}
