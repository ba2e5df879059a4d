// SPDX-License-Identifier: Apache-2.0

// Package testhost gives a test, the demo and the benchmark a Nix host of their
// own: a private mount namespace in which /nix, /run, /etc, /var/log, /usr/local/bin,
// /usr/local/share and /usr/share/containers may be changed at will, and after which
// nothing of the real host has changed. It also has what tests of every engine look at there: the
// store, the configuration, and what containers leave.
package testhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/nix-closure/nix-closure/internal/settle"
)

// inside tells the child of Run that it is the child; its value is the
// machine's directory.
const inside = "NIX_CLOSURE_TEST_MACHINE"

// entering is in its place while that child is not yet in its cgroups.
const entering = inside + "_ENTERING"

// Dir is the directory of this machine, on the real host's file system. It is
// removed when the machine ends. Empty outside Run.
func Dir() string { return os.Getenv(inside) }

// The first thread is what /proc/self shows, and does not end before the process. No test
// gets it: one that stays in another mount namespace would put those after it there too.
func init() { runtime.LockOSThread() }

// Run runs this program once more inside a machine, there calls main, and
// returns its exit status outside. The machine has:
//
//   - /nix: empty, writable, on the file system of the temporary directory;
//   - /run: an empty tmpfs;
//   - /etc, /var/log, /usr/local/bin, /usr/local/share and /usr/share/containers, where
//     programs, their manual and podman's hook files are installed: the host's, and what
//     is written stays in the machine. No hook file of the host is there;
//   - /etc/nix/nix.conf, /etc/containers/*: for offline builds as root, and for
//     podman with storage of its own and limits that need no privilege;
//   - /sys/fs/cgroup: the machine's own cgroups, of which the host sees one in each
//     hierarchy, named as Dir; one version and not two, which crun 1.8 needs;
//   - processes of its own: none outlives it, and no cgroup;
//   - signals, a umask, limits and an environment that do not depend on who
//     runs it, see package settle.
func Run(main func() int) int { return run(main, func(string) error { return nil }) }

// RunOnDisk is Run with all of the machine's files on a disk of its own, an ext4
// with a journal as hosts have it. Without one, as on some virtual machines, ext4
// looks at each inode that was deleted in the last minute before it makes a file: a
// benchmark that starts containers without a pause would measure that.
func RunOnDisk(main func() int) int { return run(main, mountDisk) }

func run(main func() int, prepare func(dir string) error) int {
	if Dir() != "" {
		if err := errors.Join(prepare(Dir()), furnish(Dir())); err != nil {
			fmt.Fprintf(os.Stderr, "test machine: %v\n", err)
			return 1
		}
		return main()
	}
	var status int
	var err error
	if dir := os.Getenv(entering); dir != "" {
		err = enterFurther(dir)
	} else {
		status, err = enter()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "test machine: %v\n", err)
		return 1
	}
	return status
}

// enter starts this program again in a mount namespace of its own.
func enter() (status int, Err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("must be root: mounts, Nix builds and containers are real here")
	}
	deaf := signal.Ignored(syscall.SIGHUP)
	if err := settle.Settle(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "nix-closure-machine-")
	if err != nil {
		return 0, err
	}
	defer func() {
		// Nix makes its store read-only; root removes it all the same.
		if err := os.RemoveAll(dir); err != nil && Err == nil {
			Err = err
		}
	}()
	// A mount point only: the machine's own directory covers it. It stays, for
	// removing it here would unmount it in every other machine that runs now.
	if err := os.Mkdir("/nix", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return 0, err
	}

	cgroups, err := cgroupsOf(dir)
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, c := range cgroups {
			if err := c.remove(); err != nil && Err == nil {
				Err = err
			}
		}
	}()
	for _, c := range cgroups {
		if err := c.make(); err != nil {
			return 0, err
		}
	}

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), entering+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Go makes every mount of the new namespace private.
		Unshareflags: syscall.CLONE_NEWNS,
		Cloneflags:   syscall.CLONE_NEWPID,
		Pdeathsig:    syscall.SIGKILL,
		// What ends with the terminal is not what was started with nohup.
		Setpgid: deaf,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// enterFurther does what a process does for itself: it enters the machine's cgroups,
// and starts this program for the last time, in which all threads are there.
func enterFurther(dir string) error {
	cgroups, err := cgroupsOf(dir)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := enterCgroups(cgroups); err != nil {
		return err
	}
	work := filepath.Join(dir, "cgroup")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	for _, c := range cgroups {
		if err := c.mount(work); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Remove(work), os.Unsetenv(entering), os.Setenv(inside, dir)); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// diskSize is enough for a store of a hundred thousand small paths, in bytes.
// The file is sparse.
const diskSize = 8 << 30

// mountDisk makes a disk in a directory, and mounts it there.
func mountDisk(dir string) error {
	image := filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-N", "500000", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", command, err, out)
		}
	}
	return nil
}

// furnish makes the mounts and files that Run promises.
func furnish(dir string) error {
	mkdir := func(elem ...string) string {
		p := filepath.Join(append([]string{dir}, elem...)...)
		_ = os.MkdirAll(p, 0o755)
		return p
	}
	mount := func(source, target, kind string, flags uintptr, data string) error {
		if err := syscall.Mount(source, target, kind, flags, data); err != nil {
			return &os.PathError{Op: "mount", Path: target, Err: err}
		}
		return nil
	}
	steps := []func() error{
		func() error { return mount("proc", "/proc", "proc", 0, "") },
		func() error { return mount(mkdir("nix"), "/nix", "", syscall.MS_BIND, "") },
		func() error { return mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755") },
		func() error { return mountCopy("/etc", mkdir("etc", "upper"), mkdir("etc", "work")) },
		func() error { return mountCopy("/var/log", mkdir("log", "upper"), mkdir("log", "work")) },
		func() error { return mountCopy("/usr/local/bin", mkdir("bin", "upper"), mkdir("bin", "work")) },
		func() error { return mountCopy("/usr/local/share", mkdir("manual", "upper"), mkdir("manual", "work")) },
		func() error {
			return mountCopy("/usr/share/containers", mkdir("share", "upper"), mkdir("share", "work"))
		},
		func() error { return os.RemoveAll("/usr/share/containers/oci") },
		oneCgroupVersion,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	storage := mkdir("containers")
	for path, text := range map[string]string{
		"/etc/nix/nix.conf": "build-users-group =\nsandbox = false\nsubstituters =\n",
		"/etc/containers/storage.conf": fmt.Sprintf(
			"[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = \"/run/containers/storage\"\n", storage),
		"/etc/containers/containers.conf": "[containers]\n" +
			"default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n" +
			"netns = \"none\"\n" +
			"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
		"/etc/containers/policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}` + "\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// mountCopy covers a directory with an overlay of itself, so that writing to it
// leaves the original alone.
func mountCopy(target, upper, work string) error {
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", target, upper, work)
	if err := syscall.Mount("overlay", target, "overlay", 0, data); err != nil {
		return &os.PathError{Op: "mount overlay", Path: target, Err: err}
	}
	return nil
}

// oneCgroupVersion takes a v2 hierarchy beside v1 hierarchies away. crun before
// 1.9 refuses to run with both.
func oneCgroupVersion() error {
	err := syscall.Unmount(unified, 0)
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return &os.PathError{Op: "unmount", Path: unified, Err: err}
	}
	return nil
}
