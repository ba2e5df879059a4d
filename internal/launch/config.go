// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nix-closure/nix-closure/spec"
)

// version is of the runtime specification: older than what is used of it, because crun
// before 1.9 refuses those that came after it.
const version = "1.0.2"

// config is the config.json of the container, whose root is rootfs. rootless: the runtime
// is an ordinary user's, in a user namespace.
func (c Container) config(rootfs string, rootless bool) *specs.Spec {
	return &specs.Spec{
		Version:     version,
		Process:     c.process(),
		Root:        &specs.Root{Path: rootfs, Readonly: c.ReadOnly},
		Hostname:    "nix-closure",
		Mounts:      c.mounts(rootless),
		Hooks:       c.hooks(),
		Annotations: c.Annotations,
		Linux:       c.linux(rootless),
	}
}

func (c Container) process() *specs.Process {
	bounding := slices.Concat(usualCapabilities, c.Capabilities)
	slices.Sort(bounding)
	bounding = slices.Compact(bounding)
	caps := &specs.LinuxCapabilities{Bounding: bounding, Effective: bounding, Permitted: bounding}
	if c.User.UID != 0 {
		// As podman has it: another user than root has what was asked for by name.
		own := c.Capabilities
		caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient = own, own, own, own
	}
	var size *specs.Box
	if c.size != nil {
		size = &specs.Box{Height: uint(c.size.Row), Width: uint(c.size.Col)}
	}
	return &specs.Process{
		Terminal:     c.Terminal,
		ConsoleSize:  size,
		User:         specs.User{UID: c.User.UID, GID: c.User.GID},
		Args:         c.Args,
		Env:          c.Env,
		Cwd:          c.Dir,
		Capabilities: caps,
		// Nothing in an empty root has more rights than who starts it: the view is nosuid.
		NoNewPrivileges: true,
	}
}

func (c Container) mounts(rootless bool) []specs.Mount {
	devpts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if !rootless {
		devpts = append(devpts, "gid=5") // where there is a group tty
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: devpts},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}},
	}
	if rootless && c.HostNetwork {
		// The kernel makes a sysfs for who owns the network namespace only.
		for i := range mounts {
			if mounts[i].Destination == "/sys" {
				mounts[i] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys",
					Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
			}
		}
	}
	for _, v := range c.Volumes {
		options := []string{"rbind", "rprivate", "nosuid", "nodev", "rw"}
		if v.ReadOnly {
			options[4] = "ro"
		}
		mounts = append(mounts, specs.Mount{
			Destination: v.Destination, Type: "bind", Source: v.Source, Options: options,
		})
	}
	return mounts
}

func (c Container) hooks() *specs.Hooks {
	call := func(stage string) []specs.Hook {
		args := slices.Concat([]string{"nix-closure-hook"}, c.HookArgs, []string{stage})
		return []specs.Hook{{Path: c.Hook, Args: args, Env: spec.HookEnv()}}
	}
	return &specs.Hooks{CreateRuntime: call("createRuntime"), Poststop: call("poststop")}
}

func (c Container) linux(rootless bool) *specs.Linux {
	linux := &specs.Linux{
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
		},
		// As runc and podman have them.
		MaskedPaths: []string{
			"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	if !c.HostNetwork {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if !rootless {
		linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	}
	return linux
}
