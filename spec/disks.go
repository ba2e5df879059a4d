// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/nopoll"
)

// guardDisks guards the files that hold the disks of guarded directories, because a process
// that reads such a file reads the directory. It does not know the disks of a ZFS pool, nor
// any but the first disk of btrfs.
func (h *Host) guardDisks() error {
	done := map[string]bool{}
	for _, g := range slices.Clone(h.guarded) {
		if done[g.device] {
			continue
		}
		done[g.device] = true
		files, err := h.filesOf(g.device)
		if err != nil {
			return fmt.Errorf("the disk that %s is on: %w", g.name, err)
		}
		for _, file := range files {
			real, err := filepath.EvalSymlinks(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the name from when the device was set up; it proves nothing now
			}
			if err == nil {
				err = h.guardFile(real)
			}
			if err != nil {
				return fmt.Errorf("the file of the disk that %s is on: %w", g.name, err)
			}
		}
	}
	return nil
}

// filesOf returns the files that hold a device, of those that mounts of the host show.
func (h *Host) filesOf(device string) ([]string, error) {
	if !strings.HasPrefix(device, "0:") {
		return backingFiles(device)
	}
	// btrfs, or erofs on a file: the device number is made up, and the mount's source names
	// the device or file.
	i := slices.IndexFunc(h.mounts, func(m mountPoint) bool { return m.device == device })
	if i < 0 || !filepath.IsAbs(h.mounts[i].source) || slices.Contains(memoryKinds, h.mounts[i].kind) {
		return nil, nil
	}
	var st unix.Stat_t
	err := unix.Stat(h.mounts[i].source, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: h.mounts[i].source, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return []string{h.mounts[i].source}, nil
	case unix.S_IFBLK:
		return backingFiles(fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	}
	return nil, nil
}

// guardFile guards a file by its place, by its device and inode, and where a file system
// that is made of others shows it.
func (h *Host) guardFile(real string) error {
	id, err := identify(real)
	if err != nil {
		return err
	}
	if _, known := h.ids[id]; known {
		return nil
	}
	h.ids[id] = real
	p := placeOf(h.mounts, real)
	if p.device == "" {
		return fmt.Errorf("%s: %w", real, ErrNoMount)
	}
	h.guarded = append(h.guarded, guard{p, real, false})
	dir, err := unix.Open(path.Dir(real), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path.Dir(real), Err: err}
	}
	h.files = append(h.files, guardedFile{
		name: real, dir: dir, base: path.Base(real), positions: positionsOf(real, p.path),
	})
	return nil
}

// mostDevices bounds how many devices are looked at below one.
const mostDevices = 64

// backingFiles returns the names of the files that hold a block device (major:minor), and
// the devices that it is made of: the disk of a partition, device mapper, loop devices.
func backingFiles(device string) ([]string, error) {
	dirs := []string{"/sys/dev/block/" + device}
	link, err := os.Readlink(dirs[0])
	if errors.Is(err, fs.ErrNotExist) {
		// Engines mask this directory in containers, so it is masked where an engine runs
		// in a container.
		if dirs[0], err = classOf(device); err != nil || dirs[0] == "" {
			return nil, err
		}
		link, err = os.Readlink(dirs[0])
	}
	if err != nil {
		return nil, err
	}
	if !strings.Contains(link, "/virtual/") {
		return nil, nil // hardware
	}
	var files []string
	for i := 0; i < len(dirs); i++ {
		if len(dirs) > mostDevices {
			return nil, fmt.Errorf("it is made of more than %d devices", mostDevices)
		}
		for _, of := range []string{dirs[i], dirs[i] + "/.."} { // a partition's directory is in that of its disk
			text, err := nopoll.ReadFile(of+"/loop/backing_file", 0)
			if err == nil {
				files = append(files, strings.TrimSuffix(string(text), "\n"))
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		below, err := os.ReadDir(dirs[i] + "/slaves")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range below {
			dirs = append(dirs, dirs[i]+"/slaves/"+e.Name())
		}
	}
	return files, nil
}

// classOf returns the directory of a block device, from the list of all block devices;
// empty: the kernel does not show it here.
func classOf(device string) (string, error) {
	const class = "/sys/class/block/"
	all, err := os.ReadDir(class)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range all {
		number, err := os.ReadFile(class + e.Name() + "/dev")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if strings.TrimSuffix(string(number), "\n") == device {
			return class + e.Name(), nil
		}
	}
	return "", nil
}
