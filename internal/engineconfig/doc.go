// SPDX-License-Identifier: Apache-2.0

// Package engineconfig knows the configurations of container engines: which files each
// reads (podman.go, containerd.go, crio.go, docker.go), which of them call nix-closure
// (hookfile.go), and how nix-closure is put into them and taken out again (plan.go,
// record.go).
//
// It does not judge what it reads: that is package doctor's work.
package engineconfig

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// The programs by which containers come to the hook.
const (
	HookProgram    = "nix-closure-hook"
	RuntimeProgram = "nix-closure-runtime"
	PluginProgram  = "nix-closure-nri"
)

// Handler is the name under which install makes the wrapper known to engines.
const Handler = "nix-closure"

// Process is a running process of an engine.
type Process struct {
	PID  int
	Args []string
}

// Processes finds the running processes of a program, in the PID namespace of this one.
func Processes(program string) (found []Process) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", d.Name(), "comm"))
		// The kernel cuts the name after 15 bytes.
		if err != nil || string(bytes.TrimSpace(comm)) != program[:min(len(program), 15)] {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		var args []string
		for a := range bytes.SplitSeq(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
			args = append(args, string(a))
		}
		found = append(found, Process{pid, args})
	}
	return found
}

// Executable is the program of the process, which this user may start too.
func (p Process) Executable() (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
}

// Option is the value of an option on the process's command line, by any of its names.
func (p Process) Option(names ...string) (value string, ok bool) {
	for i, arg := range p.Args {
		for _, name := range names {
			if arg == name && i+1 < len(p.Args) {
				value, ok = p.Args[i+1], true
			} else if len(arg) > len(name) && arg[:len(name)+1] == name+"=" {
				value, ok = arg[len(name)+1:], true
			}
		}
	}
	return value, ok
}

// FindProgram finds an engine's program, by its path or at the usual places. PATH may be another
// user's (sudo -E), and what is found is started.
func FindProgram(name string) string {
	if filepath.IsAbs(name) {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return name
		}
		return ""
	}
	for _, dir := range []string{
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
		"/run/current-system/sw/bin", "/opt/bin",
	} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}
