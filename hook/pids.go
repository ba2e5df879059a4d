// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// A process that sees another of the same user reads that one's file system by
// /proc/PID/root, without any capability (proc_pid_root(5), ptrace(2)). So a container
// in the host's PID namespace sees the host's store, and one in another container's
// sees what that has.

const whoSharesPIDs = "give the container a PID namespace of its own, or set shared-pid = true in the " +
	"configuration if it may see that"

// sharesPIDs tells whether a container has no PID namespace of its own. Where that is
// the host's, it is an error, unless the configuration allows it.
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
		return true, errors.New("the container has the host's PID namespace, and sees the store by the host's " +
			"processes (/proc/PID/root); " + whoSharesPIDs)
	}
	return true, nil
}

// checkNeighbours looks at the processes whose PID namespace a container joins: those
// of containers with the same closure, and of others that see nothing of the store,
// such as a pod's sandbox, may be there.
func (p *pinned) checkNeighbours() error {
	if !p.sharedPID || p.config.SharedPID {
		return nil
	}
	p.at("looking at the container's PID namespace")
	joined, err := os.Stat(p.bundle.PIDs)
	if err != nil {
		return err
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	seen := []string{strconv.Itoa(p.state.Pid)} // a process of each mount namespace
	for _, process := range processes {
		name := process.Name()
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		if in, err := isIn(name, joined); err != nil || !in {
			if err != nil {
				return err
			}
			continue
		}
		known := false
		for _, other := range seen {
			same, err := sameNamespace(other, name)
			if gone(err) {
				continue
			}
			if err != nil {
				return err
			}
			known = known || same
		}
		if known {
			continue
		}
		seen = append(seen, name)
		if err := p.dir.checkNeighbour(p.host, name, p.resolution.Digest); err != nil {
			// One that has ended meanwhile shows nothing.
			if in, other := isIn(name, joined); in || other != nil {
				return err
			}
		}
	}
	return nil
}

// isIn tells whether a process is in a PID namespace. One that has ended is in none, and
// one that this user may not look at is another user's.
func isIn(process string, namespace os.FileInfo) (bool, error) {
	its, err := os.Stat("/proc/" + process + "/ns/pid")
	if gone(err) || errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	return err == nil && os.SameFile(its, namespace), err
}

// checkNeighbour looks at what a process of another container sees.
func (d *RuntimeDir) checkNeighbour(host *spec.Host, process, digest string) error {
	if same, err := sameNamespace("self", process); err != nil || same {
		return errors.Join(err, fmt.Errorf("the container joins a PID namespace with process %s in it, which sees "+
			"the host's store; %s", process, whoSharesPIDs))
	}
	ids, err := d.recordIDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, ok, err := d.readRecord(id)
		if err != nil || !ok || r.Pid <= 0 {
			continue // its mounts are looked at below
		}
		if same, err := sameNamespace(strconv.Itoa(r.Pid), process); err != nil || !same {
			continue
		}
		if r.Digest != digest {
			return fmt.Errorf("the container joins the PID namespace of container %s, which has another closure, and "+
				"each would see the other's by /proc/PID/root; %s", id, whoSharesPIDs)
		}
		return nil
	}
	pid, err := strconv.Atoi(process)
	if err != nil {
		return err
	}
	// Read here: over there, /proc is that of the other's PID namespace, in which this
	// process has no number.
	text, err := readMountinfo("/proc/" + process + "/mountinfo")
	if err != nil {
		return err
	}
	mounts, err := spec.ParseMounts(text)
	if err != nil {
		return err
	}
	err = inMountNamespace(pid, func() error {
		shown, err := host.CheckMounts(mounts, "/")
		if err == nil && len(shown) > 0 {
			err = fmt.Errorf("a mount shows the store path %s", shown[0])
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the container joins a PID namespace with process %s in it, and would see by "+
			"/proc/PID/root what that sees: %w; %s", process, err, whoSharesPIDs)
	}
	return nil
}

// recordIDs are the ids of containers that have a record.
func (d *RuntimeDir) recordIDs() ([]string, error) {
	all, err := names(d.Containers)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range all {
		if id, ok := strings.CutSuffix(name, ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// gone tells whether an error says that a process is not there any more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
