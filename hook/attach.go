// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/nopoll"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
	"github.com/nix-closure/nix-closure/spec"
)

// attachment is a view and its place in the container.
type attachment struct {
	state  spec.State
	bundle spec.Config
	store  closure.Store
	*inspected
	view     view.View // nil: none, see spec.Request.Sandbox
	pidStart uint64    // see Record
	// stateDir is attached to the state directory and has the registration; nil: the
	// container asks for none.
	stateDir view.View
	// owner owns the directories that the hook makes in the container's root; nil: this
	// process. Nix makes further directories beside its state directory, so it needs
	// write access.
	owner *view.Owner
	// coverSize bounds the container's writes beside the view in a covered volume, in
	// bytes.
	coverSize int64
	log       *logrus.Entry
	// joined: the calling thread has joined the container's mount namespace, and shares its
	// root directory with no other thread.
	joined bool
}

// attach attaches the view to the container's store directory, in the container's mount
// namespace. createRuntime joins that namespace; createContainer already runs in it. No
// process of the container's image runs yet, and the runtime has not changed the root
// directory, so the host's files are still reachable.
func (a attachment) attach(stage string) error {
	if stage == "createContainer" {
		// If the hook may not look at process 1, it is in the container's user namespace.
		// Root there can mount nothing in the host's mount namespace.
		same, err := mntns.Same("self", "1")
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		if same {
			return errors.New("the hook was called in the host's mount namespace, as createContainer hooks never " +
				"are; call it as createRuntime")
		}
		return a.attachHere("self")
	}
	if a.state.Pid <= 0 {
		return fmt.Errorf("the OCI state has pid %d: no process whose mount namespace could be joined; call the "+
			"hook as createContainer", a.state.Pid)
	}
	same, err := mntns.Same("self", strconv.Itoa(a.state.Pid))
	if err != nil {
		return err
	}
	if same {
		return errors.New("the container has no mount namespace of its own (linux.namespaces of config.json); " +
			"give it one")
	}
	return mntns.DoInProcess(a.state.Pid, func() error {
		// The process was found by its PID. Make sure that it is still the same process.
		if now, err := proc.StartTime(a.state.Pid); err != nil || now != a.pidStart {
			return errors.Join(fmt.Errorf("process %d has ended meanwhile", a.state.Pid), err)
		}
		a.joined = true
		return a.attachHere(strconv.Itoa(a.state.Pid))
	})
}

// attachHere attaches in the mount namespace of the calling thread. The image is hostile:
// every path is resolved by descriptor inside the container's root, and the result is
// used by descriptor. process is a process in the container's PID namespace.
func (a attachment) attachHere(process string) error {
	pids, err := os.Stat("/proc/" + process + "/ns/pid")
	if err != nil {
		return fmt.Errorf("the container's PID namespace: %w", err)
	}
	a.host.OwnPIDs = pids
	path := a.bundle.Root
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.state.Bundle, path)
	}
	root, err := nopoll.Open(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("opening the container's root: %w", err)
	}
	defer root.Close()
	var targets []*target
	if a.view != nil {
		targets = append(targets, &target{dir: a.store.Dir, view: a.view})
	}
	if a.stateDir != nil {
		targets = append(targets, &target{dir: a.store.StateDir, view: a.stateDir})
	}
	defer func() {
		for _, t := range targets {
			_ = t.file.Close()
		}
	}()
	c := containerMounts{attachment: a, root: root}
	if err := c.prepare(targets); err != nil {
		return err
	}
	for _, t := range targets {
		if err := t.view.Attach(t.file); err != nil {
			return err
		}
	}
	// Check only after everything is attached: links of an image may lead from one target
	// into another.
	for _, t := range targets {
		if err := t.check(root); err != nil {
			return err
		}
	}
	return nil
}

// target is a directory of the container that gets a view.
type target struct {
	dir  string // path in the container
	file *os.File
	view view.View
}

// check resolves the container's path again, and verifies that it leads to the view. It
// does not trust the directory that the view was attached to.
func (t *target) check(root *os.File) error {
	now, err := rootfs.Open(root, t.dir)
	if err != nil {
		return fmt.Errorf("%s in the container: %w", t.dir, err)
	}
	defer now.Close()
	if ok, err := t.view.Shows(now); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("%s in the container does not lead to what was attached there; symbolic links in "+
			"the image put it inside another attached directory, or another process changes the "+
			"container's root while it starts", t.dir)
	}
	return nil
}
