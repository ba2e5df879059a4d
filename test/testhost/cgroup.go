// SPDX-License-Identifier: Apache-2.0

package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cgroup is a machine's own in one hierarchy. It has the machine's name.
type cgroup struct {
	point   string // where the hierarchy is mounted
	dir     string
	v2      bool
	enabled []string // what the top of v2 passes down since then
}

// unified is where a v2 hierarchy is mounted beside v1 hierarchies.
const unified = "/sys/fs/cgroup/unified"

// cgroupsOf returns a machine's cgroup in each hierarchy that it is to have; they need
// not exist. In v1 it is below the cgroup of this process, whose limits hold for the
// machine too. In v2, where a cgroup with processes has no controllers for those below
// it, it is at the top.
func cgroupsOf(machine string) (all []*cgroup, _ error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{} // by controllers; v2 has none
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	text, err = os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		mount, super, _ := strings.Cut(line, " - ")
		f, s := strings.Fields(mount), strings.Fields(super)
		if s[0] != "cgroup" && s[0] != "cgroup2" || f[4] == unified {
			continue
		}
		root, c := f[3], &cgroup{point: f[4], v2: s[0] == "cgroup2"}
		options := strings.Split(s[2], ",")
		isIt := func(controllers string) bool {
			if c.v2 || controllers == "" {
				return c.v2 && controllers == ""
			}
			for one := range strings.SplitSeq(controllers, ",") {
				if !slices.Contains(options, one) {
					return false
				}
			}
			return true
		}
		for controllers, path := range own {
			if !isIt(controllers) {
				continue
			}
			below, err := filepath.Rel(root, path)
			if err != nil || below == ".." || strings.HasPrefix(below, "../") {
				continue // a mount of another part of the hierarchy
			}
			if c.v2 {
				below = ""
			}
			c.dir = filepath.Join(c.point, below, filepath.Base(machine))
			all = append(all, c)
		}
	}
	return all, nil
}

// leaf is where in a v2 cgroup the machine's own processes are.
func (c *cgroup) leaf() string { return filepath.Join(c.dir, "init") }

// passDown has a v2 cgroup pass its controllers down, as each runtime does from the top
// on, and returns which it did not before. What is not to be had is not used.
func passDown(dir string) (enabled []string) {
	all, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	before, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	for one := range strings.FieldsSeq(string(all)) {
		if slices.Contains(strings.Fields(string(before)), one) {
			continue
		}
		if os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+one), 0) == nil {
			enabled = append(enabled, one)
		}
	}
	return enabled
}

// make makes the cgroup, for processes to be moved there.
func (c *cgroup) make() error {
	if err := os.Mkdir(c.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if c.v2 {
		c.enabled = passDown(c.point)
		if err := os.Mkdir(c.leaf(), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	}
	// A new cpuset of v1 has neither, and takes no process.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(c.dir), file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, file), text, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enterCgroups moves this process to the machine's cgroups and to a namespace in which
// there are no others: all that the machine's engines make is below its own. Only
// the calling thread is in the namespace.
func enterCgroups(all []*cgroup) error {
	move := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	}
	for _, c := range all {
		if err := move(c.dir); err != nil {
			return err
		}
	}
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("a cgroup namespace: %w", err)
	}
	for _, c := range all {
		if !c.v2 {
			continue
		}
		if err := move(c.leaf()); err != nil {
			return err
		}
		// Now, and not with the first container: then the end of another machine
		// cannot take them away.
		passDown(c.dir)
	}
	return nil
}

// mount puts the cgroup in the place of its hierarchy. work is an empty directory.
func (c *cgroup) mount(work string) error {
	// The hierarchy does not stay below: runtimes would read of both in mountinfo.
	for _, step := range []func() error{
		func() error { return syscall.Mount(c.dir, work, "", syscall.MS_BIND, "") },
		func() error { return syscall.Unmount(c.point, syscall.MNT_DETACH) },
		func() error { return syscall.Mount(work, c.point, "", syscall.MS_MOVE, "") },
	} {
		if err := step(); err != nil {
			return &os.PathError{Op: "mount", Path: c.point, Err: err}
		}
	}
	return nil
}

// remove removes the cgroup and those below it, when none has a process any more.
func (c *cgroup) remove() error {
	var dirs []string
	err := filepath.WalkDir(c.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		err := syscall.Rmdir(dir)
		// A process leaves its cgroup a moment after its end was reported.
		for range 250 {
			if !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(20 * time.Millisecond)
			err = syscall.Rmdir(dir)
		}
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	for _, one := range c.enabled {
		// Refused while another machine uses it.
		_ = os.WriteFile(filepath.Join(c.point, "cgroup.subtree_control"), []byte("-"+one), 0)
	}
	return nil
}
