// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// A process that sees another process of the same user can read its file system by
// /proc/PID/root, without any capability (proc_pid_root(5), ptrace(2)). So a container in
// the host's PID namespace sees the host's store. A container in another container's PID
// namespace sees that container's files.

const whoSharesPIDs = "give the container a PID namespace of its own, or set shared-pid = true in the " +
	"configuration if it may see that"

// sharesPIDs reports whether a container has no PID namespace of its own. It fails for
// the host's PID namespace, unless the configuration allows it.
func sharesPIDs(c config.Config, bundle spec.Config) (bool, error) {
	if bundle.PIDs == spec.OwnPIDs {
		return false, nil
	}
	if c.SharedPID {
		return true, nil
	}
	isHosts := bundle.PIDs == spec.HostPIDs
	if !isHosts {
		own, err := os.Stat("/proc/self/ns/pid")
		if err != nil {
			return true, err
		}
		joined, err := os.Stat(bundle.PIDs)
		if err != nil {
			return true, fmt.Errorf("the PID namespace that config.json names: %w", err)
		}
		isHosts = os.SameFile(own, joined)
	}
	if isHosts {
		return true, errors.New("the container has the host's PID namespace, and sees the store through the host's " +
			"processes (/proc/PID/root); " + whoSharesPIDs)
	}
	return true, nil
}

// checkNeighbours checks the processes that a container sees if it joins a PID namespace.
// These are the processes in that namespace and in the PID namespaces below it, as a
// container engine in another container makes them. Allowed are processes of containers
// with the same closure, and processes that see nothing of the store, such as a pod's
// sandbox.
//
// Processes in the namespaces above see this container's processes, but not the other way
// round. What they see is checked when their own container starts, or they are the
// host's.
func (p *pinned) checkNeighbours() error {
	if !p.sharedPID || p.config.SharedPID {
		return nil
	}
	p.at("looking at the container's PID namespace")
	n, err := p.neighbours()
	if err != nil {
		return err
	}
	defer n.close()
	if err := p.host.Open(); err != nil {
		return err
	}
	p.host.NamesElsewhere = true
	defer func() { p.host.NamesElsewhere = false }()
	processes, err := os.ReadDir(proc.Dir)
	if err != nil {
		return err
	}
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil {
			continue // no process
		}
		if err := n.check(process.Name()); err != nil {
			return fmt.Errorf("the container joins a PID namespace with process %s in it, and would see what "+
				"it sees (/proc/PID/root): %w; %s", process.Name(), err, whoSharesPIDs)
		}
	}
	return nil
}

// neighbours checks the processes that a container sees. It holds processes and mount
// namespaces by descriptor: a PID may belong to another process at the next look, and the
// inode number of a namespace to another namespace once the first is gone.
type neighbours struct {
	*pinned
	own, joined os.FileInfo // PID namespaces
	proc        *os.File    // /proc, used from other mount namespaces
	judged      []*os.File  // mount namespaces
}

func (p *pinned) neighbours() (_ *neighbours, Err error) {
	n := &neighbours{pinned: p}
	defer func() {
		if Err != nil {
			n.close()
		}
	}()
	var err error
	if n.own, err = os.Stat("/proc/self/ns/pid"); err != nil {
		return nil, err
	}
	if n.joined, err = os.Stat(p.bundle.PIDs); err != nil {
		return nil, err
	}
	p.host.OwnPIDs = n.joined // a /proc of this namespace shows what is checked here
	if n.proc, err = os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	// The container's own namespace is not checked: what it shows now belongs to the
	// runtime.
	container := strconv.Itoa(p.state.Pid)
	if p.call.Stage == "createContainer" {
		container = "self"
	}
	own, err := mntns.Open(container)
	if err != nil {
		return nil, err
	}
	n.judged = append(n.judged, own)
	return n, nil
}

func (n *neighbours) close() {
	for _, f := range append(n.judged, n.proc) {
		_ = f.Close()
	}
}

// check checks a process if the container sees it. A process that ends meanwhile shows
// nothing.
func (n *neighbours) check(process string) error {
	seen, err := n.sees(process)
	if err != nil || !seen {
		return err
	}
	namespace, err := mntns.Open(process)
	if proc.IsGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	its, err := namespace.Stat()
	if err != nil {
		return errors.Join(err, namespace.Close())
	}
	for _, known := range n.judged {
		st, err := known.Stat()
		if err != nil {
			return errors.Join(err, namespace.Close())
		}
		if os.SameFile(st, its) {
			return namespace.Close()
		}
	}
	n.judged = append(n.judged, namespace)
	return n.judge(namespace, its)
}

// sees reports whether a process is in the PID namespace that the container joins, or in
// one below it.
func (n *neighbours) sees(process string) (bool, error) {
	path := "/proc/" + process + "/ns/pid"
	its, err := os.Stat(path)
	switch {
	case proc.IsGone(err):
		return false, nil
	case errors.Is(err, fs.ErrPermission):
		return n.seesHidden(process)
	case err != nil:
		return false, err
	case os.SameFile(its, n.own): // the case of nearly all processes
		return false, nil
	}
	namespace, err := os.Open(path)
	if proc.IsGone(err) {
		return false, nil
	}
	for err == nil {
		if its, err = namespace.Stat(); err != nil {
			break
		}
		if os.SameFile(its, n.joined) || os.SameFile(its, n.own) {
			return os.SameFile(its, n.joined), namespace.Close()
		}
		namespace, err = parentNamespace(namespace)
	}
	return false, errors.Join(err, namespace.Close())
}

// seesHidden is sees for a process whose namespaces this process may not inspect.
//
// In the user namespace of a rootless engine, this is a process of another user, or of
// this user outside that namespace. The container's processes may not inspect it either:
// they are in this user namespace or in one below it. This process has CAP_SYS_PTRACE
// there, so it may inspect everything that they may inspect.
//
// Root of the host may inspect every process, unless a security module denies it. The
// module need not deny it to the container.
func (n *neighbours) seesHidden(process string) (bool, error) {
	text, err := proc.ReadFile("/proc/" + process + "/status")
	if proc.IsGone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// NSpid has one number for each PID namespace, from that of /proc down
	// (proc_pid_status(5)).
	_, numbers, ok := strings.Cut(string(text), "\nNSpid:")
	numbers, _, _ = strings.Cut(numbers, "\n")
	if ok && len(strings.Fields(numbers)) == 1 {
		return false, nil // in this process's own PID namespace
	}
	may, err := mayLookAtProcesses()
	if err != nil {
		return false, err
	}
	if n.config.Rootless && may {
		return false, nil
	}
	return false, fmt.Errorf("/proc/%s/ns/pid: %w: cannot tell whether the container sees the process",
		process, fs.ErrPermission)
}

// mayLookAtProcesses reports whether this process has CAP_SYS_PTRACE.
func mayLookAtProcesses() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, os.NewSyscallError("capget", err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0, nil
}

// parentNamespace closes a PID namespace and opens the one above it (ioctl_ns(2), Linux
// 4.9).
func parentNamespace(namespace *os.File) (*os.File, error) {
	defer namespace.Close()
	fd, err := unix.IoctlRetInt(int(namespace.Fd()), unix.NS_GET_PARENT)
	if err != nil {
		return nil, fmt.Errorf("the PID namespace above %s: %w", namespace.Name(), os.NewSyscallError("ioctl", err))
	}
	return os.NewFile(uintptr(fd), namespace.Name()), nil
}

// judge refuses a mount namespace that shows more of the store than the container's
// closure.
func (n *neighbours) judge(namespace *os.File, its os.FileInfo) error {
	self, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if os.SameFile(self, its) {
		return errors.New("the host's store")
	}
	if id, r, err := n.recordOf(its); err != nil {
		return err
	} else if id != "" {
		if r.Digest != n.resolution.Digest {
			return fmt.Errorf("it belongs to container %s, which has another closure and would see this one", id)
		}
		return nil
	}
	return mntns.Do(namespace, func() error {
		// Use this namespace's /proc. In the other mount namespace, /proc belongs to
		// another PID namespace or does not exist. The calling thread is at the root of
		// the mount namespace, wherever the root directories of its processes are.
		mounts, err := n.threadMounts()
		if err != nil {
			return err
		}
		shown, err := n.host.CheckMounts(mounts, "/")
		if err == nil && len(shown) > 0 {
			err = fmt.Errorf("a mount shows the store path %s", shown[0])
		}
		return err
	})
}

// threadMounts returns the mounts of the calling thread's mount namespace.
func (n *neighbours) threadMounts() (spec.Mounts, error) {
	fd, err := unix.Openat(int(n.proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: "thread-self/mountinfo", Err: err}
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return spec.ParseMounts(text)
}

// recordOf returns the record of the container whose first process is in a mount
// namespace. id is empty if there is none. A damaged record, or one whose process cannot
// be identified, does not count as a container with a closure. The caller then checks the
// mounts, and refuses a view, because a container with another closure must not see it.
func (n *neighbours) recordOf(namespace os.FileInfo) (id string, _ state.Record, _ error) {
	ids, err := n.dir.IDs()
	if err != nil {
		return "", state.Record{}, err
	}
	for _, id := range ids {
		r, ok, err := n.dir.Record(id)
		if err != nil || !ok || r.Kind != "" || r.Pid <= 0 {
			continue
		}
		its, err := os.Stat("/proc/" + strconv.Itoa(r.Pid) + "/ns/mnt")
		if err != nil || !os.SameFile(its, namespace) {
			continue
		}
		// Check this after the namespace: it shows that the PID belonged to the process
		// all the time.
		if runs, err := r.ProcessRuns(); err == nil && runs {
			return id, r, nil
		}
	}
	return "", state.Record{}, nil
}
