// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/nix-closure/nix-closure/test/bench/programs"
)

const storeDir = "/nix/store"

// bundle is the part of a config.json in which the variants differ.
type bundle struct {
	root        string
	mounts      []mount
	hooks       map[string][]hook
	annotations map[string]string
}

type mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source"`
	Options     []string `json:"options,omitempty"`
}

type hook struct {
	Path string   `json:"path"`
	Args []string `json:"args"`
	// Never empty: with an empty one some runtimes pass the image's on.
	Env []string `json:"env"`
}

// bindStorePath is the mount that shows a store path, or the whole store,
// where it is on the host.
func bindStorePath(path string) mount {
	return mount{Destination: path, Source: path, Type: "none", Options: []string{"rbind", "ro"}}
}

// bothStages runs a program, with the name of the stage as its last argument,
// when the container is made and when it is gone.
func bothStages(path string, args ...string) map[string][]hook {
	stage := func(name string) []hook {
		return []hook{{
			Path: path,
			Args: append(append([]string{path}, args...), name),
			Env:  environment(path),
		}}
	}
	return map[string][]hook{"createRuntime": stage("createRuntime"), "poststop": stage("poststop")}
}

// environment is what a program's hook files have: nix-closure's as it is installed.
func environment(path string) []string {
	if filepath.Base(path) == "nix-closure-hook" {
		return []string{"GOMAXPROCS=1"}
	}
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
}

// write makes the bundle in dir, for a container that runs one program of the
// image.
func (b *bundle) write(dir string, program ...string) error {
	type object = map[string]any
	capabilities := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	config := object{
		"ociVersion": "1.0.2",
		"process": object{
			"terminal": false,
			"user":     object{"uid": 0, "gid": 0},
			"args":     program,
			"env":      []string{"PATH=/bin"},
			"cwd":      "/",
			"capabilities": object{
				"bounding":  capabilities,
				"effective": capabilities,
				"permitted": capabilities,
			},
			"noNewPrivileges": true,
		},
		"root":     object{"path": b.root},
		"hostname": "bench",
		"mounts": append([]mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
				Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
				Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue",
				Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		}, b.mounts...),
		// The network is the host's: making one would cost more than all the
		// rest and says nothing.
		"linux": object{
			"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}},
		},
	}
	if b.hooks != nil {
		config["hooks"] = b.hooks
	}
	if b.annotations != nil {
		config["annotations"] = b.annotations
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644)
}

// makeImage makes the root of an image that holds a few programs and an empty
// store directory.
func makeImage(root string, p smallPrograms) error {
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", storeDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, program := range map[string]string{"true": p.empty, "count": p.count, "idle": p.idle, "walk": p.walk} {
		if err := programs.Copy(program, filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}
