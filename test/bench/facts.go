// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/test/speed"
)

// facts are what the reader of the figures must know: the machine, and the versions of
// what is compared. What is missing is named too.
func facts(bin string) []speed.Fact {
	all := []speed.Fact{{Name: "machine", Value: machineFact()}, {Name: "kernel", Value: kernelFact()}}
	stack := filepath.Join(bin, "stack")
	for _, program := range []struct {
		name string
		args []string
	}{
		{"crun", []string{"crun", "--version"}}, {"runc", []string{"runc", "--version"}},
		{"podman", []string{"podman", "--version"}}, {"bwrap", []string{"bwrap", "--version"}},
		{"nix", []string{"nix", "--version"}},
		{"containerd", []string{filepath.Join(stack, "containerd"), "--version"}},
		{"runc under containerd", []string{filepath.Join(stack, "runc"), "--version"}},
		{"perf", []string{"perf", "--version"}},
	} {
		value := "missing"
		if out, err := exec.Command(program.args[0], program.args[1:]...).Output(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			fields := strings.Fields(line)
			value = "unknown"
			// The version is the first word that begins with a digit or with v and a digit.
			for _, f := range fields {
				if v := strings.TrimPrefix(f, "v"); v != "" && v[0] >= '0' && v[0] <= '9' {
					value = strings.TrimSuffix(v, "+unknown")
					break
				}
			}
		}
		all = append(all, speed.Fact{Name: program.name, Value: value})
	}
	snapshotter := "missing"
	if _, err := os.Stat(filepath.Join(stack, "nix-snapshotter")); err == nil {
		// It prints another version than its own.
		snapshotter = snapshotterVersion(stack)
	}
	return append(all, speed.Fact{Name: "nix-snapshotter", Value: snapshotter},
		speed.Fact{Name: "nix-closure", Value: ownVersion(bin) + ", built by " + runtime.Version()})
}

// ownVersion is the program's, with the commit where there is one.
func ownVersion(bin string) string {
	out, err := exec.Command(filepath.Join(bin, "nix-closure"), "--version").Output()
	if err != nil {
		return "missing"
	}
	fields := strings.Fields(string(out))
	version := fields[len(fields)-1]
	if commit, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		version += " at " + strings.TrimSpace(string(commit))
	}
	return version
}

// snapshotterVersion is in the program, because Go's builds note it.
func snapshotterVersion(stack string) string {
	out, err := exec.Command("go", "version", "-m", filepath.Join(stack, "nix-snapshotter")).Output()
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "mod" {
			return strings.TrimPrefix(fields[2], "v")
		}
	}
	return "unknown"
}

func machineFact() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	memory := "unknown"
	if unix.Sysinfo(&info) == nil {
		memory = fmt.Sprintf("%d", (info.Totalram*uint64(info.Unit)+(1<<29))>>30)
	}
	return fmt.Sprintf("%d cores of %s, %s GiB of memory", runtime.NumCPU(), model, memory)
}

func kernelFact() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
