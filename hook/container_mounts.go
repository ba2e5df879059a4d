// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
	"github.com/nix-closure/nix-closure/spec"
)

// containerMounts is the mounts of a container before its views are attached.
type containerMounts struct {
	attachment
	root     *os.File
	realRoot string // path of root in the container's mount namespace
	mounts   spec.Mounts
	// mountinfo is the text that mounts was parsed from.
	mountinfo []byte
	// insideIsEnough: only the mounts in the container's root are read. That is enough where
	// none of them propagates or has to be looked into.
	insideIsEnough bool
}

// read reads the mounts again.
func (c *containerMounts) read() (err error) {
	if c.realRoot, err = proc.FileName(int(c.root.Fd())); err != nil {
		return err
	}
	if c.insideIsEnough {
		if ok, err := c.readInside(); ok || errors.Is(err, proc.ErrLost) {
			return err
		}
		c.insideIsEnough = false // what went wrong goes wrong again, or did not matter
	}
	if c.mountinfo, err = proc.ReadMountinfo("/proc/thread-self/mountinfo"); err != nil {
		return err
	}
	c.mounts, err = spec.ParseMounts(c.mountinfo)
	return err
}

// readInside reads the mounts in the container's root. It returns false if they are not
// enough. Mounts that the root itself covers are not among them: no path of the container
// leads to them, and the runtime detaches them with the host's (pivot_root(2)).
func (c *containerMounts) readInside() (bool, error) {
	text, err := proc.ReadMountinfoIn(int(c.root.Fd()))
	if err != nil {
		return false, err
	}
	mounts, err := spec.ParseMountsIn(c.realRoot, text)
	if err != nil || !c.host.Looked(mounts) {
		return false, err
	}
	c.mountinfo, c.mounts = text, mounts
	return !c.isReceiving(), nil
}

// isReceiving reports whether a mount propagates that should not.
func (c *containerMounts) isReceiving() bool { return len(c.receiving()) > 0 }

// prepare detaches the mounts that the views replace, checks the remaining mounts, and
// opens the directories that the views go to. It checks every target before anything is
// attached.
func (c *containerMounts) prepare(targets []*target) error {
	// If nothing is to propagate, this ends it before the mounts are read, and the list stays
	// true. It may fail, for example for a root that is not a mount: isolate looks at what is
	// left, and says what is wrong.
	if !c.bundle.AsksForPropagation() {
		isMount := view.SetPrivate(c.root) == nil
		c.insideIsEnough = isMount && c.joined && c.host.IsLocal(int(c.root.Fd()))
	}
	if err := c.read(); err != nil {
		return err
	}
	// Check this before any path lookup in the container: a file system whose server does
	// not answer would block this process.
	if err := c.host.CheckServers(c.mounts, c.realRoot, c.store.Dir, c.store.StateDir); err != nil {
		return err
	}
	if err := c.bundle.CheckMasks(dirs(targets)...); err != nil {
		return err
	}
	// Check this before anything is detached: a runtime may have files open in the mounts
	// that it made.
	if err := c.checkDescriptors(); err != nil {
		return err
	}
	detached, err := c.detach()
	if err != nil {
		return err
	}
	if detached {
		if err := c.read(); err != nil {
			return err
		}
	}
	if err := c.isolate(); err != nil {
		return err
	}
	shown, err := c.host.CheckMounts(c.mounts, c.realRoot)
	if err != nil {
		return err
	}
	for _, base := range shown {
		if !slices.Contains(c.asked(), base) {
			return fmt.Errorf("a mount shows %s, which no mount of config.json names; take it out", c.store.Path(base))
		}
	}
	return c.openTargets(targets)
}

func dirs(targets []*target) []string {
	var dirs []string
	for _, t := range targets {
		dirs = append(dirs, t.dir)
	}
	return dirs
}

// volumesDeep bounds the nesting of volumes above a view.
const volumesDeep = 4

// openTargets opens the directories that the views go to. If a target lies in a volume,
// openTargets covers the volume and the target is in the cover. Otherwise another user of
// the volume could rename the target.
func (c *containerMounts) openTargets(targets []*target) error {
	for range volumesDeep {
		volume := ""
		for _, t := range targets {
			if t.file != nil {
				_ = t.file.Close()
			}
			at, err := c.openTarget(t)
			if err != nil {
				return err
			}
			// The shorter path is the outer volume.
			if at != "" && (volume == "" || len(at) < len(volume)) {
				volume = at
			}
		}
		if volume == "" {
			return nil
		}
		if err := c.cover(volume, targets); err != nil {
			return err
		}
		if err := c.read(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s in the container is in more than %d volumes mounted inside each other; mount "+
		"fewer", c.store.Dir, volumesDeep)
}

// openTarget opens the directory of one target, and returns the volume that it is in.
func (c *containerMounts) openTarget(t *target) (volume string, err error) {
	if t.file, err = rootfs.Directory(c.root, t.dir, (*rootfs.Owner)(c.owner)); err != nil {
		return "", fmt.Errorf("%s in the container: %w; the image must have a directory there, or nothing", t.dir, err)
	}
	real, err := proc.FileName(int(t.file.Fd()))
	if err != nil {
		return "", err
	}
	return c.host.CheckTarget(c.mounts, c.realRoot, t.dir, real)
}

// cover covers a volume that views go into.
func (c *containerMounts) cover(volume string, targets []*target) error {
	inside, _ := strings.CutPrefix(volume, strings.TrimSuffix(c.realRoot, "/"))
	var ways []string
	for _, t := range targets {
		// Others who have the volume could change a link in it.
		direct, err := rootfs.OpenResolving(c.root, t.dir, unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(err, unix.ELOOP) {
			return fmt.Errorf("%s in the container leads through a symbolic link into the volume on %s, where others "+
				"may change it; mount the volume elsewhere, or use an image without the link", t.dir, inside)
		}
		if err != nil {
			return err
		}
		_ = direct.Close()
		if way, ok := strings.CutPrefix(t.dir, inside+"/"); ok {
			ways = append(ways, way)
		}
	}
	dir, err := rootfs.OpenResolving(c.root, inside, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := view.Cover(dir, ways, c.coverSize, view.Options{Label: c.bundle.MountLabel}); err != nil {
		return fmt.Errorf("covering the volume on %s: %w", inside, err)
	}
	c.log.WithFields(logrus.Fields{
		"volume": inside, "size": c.coverSize,
	}).Info("volume covered: files that the container adds beside the existing ones stay in memory and end with it")
	return nil
}

// isolate makes mounts private that config.json does not ask to propagate. Otherwise they
// would show what the host mounts later.
func (c *containerMounts) isolate() error {
	receiving := c.receiving()
	if len(receiving) == 0 {
		return nil
	}
	if !c.bundle.AsksForPropagation() {
		if err := view.SetPrivate(c.root); err != nil { // also mounts under other mounts
			return fmt.Errorf("ending the propagation of the container's mounts: %w", err)
		}
		receiving = nil
	}
	for _, point := range receiving {
		dir, err := rootfs.OpenResolving(c.root, "/"+strings.TrimPrefix(point, c.realRoot), unix.RESOLVE_NO_SYMLINKS)
		if err == nil {
			err = view.SetPrivateAlone(dir)
			_ = dir.Close()
		}
		if err != nil {
			return fmt.Errorf("ending the propagation of the mount on %s: %w", point, err)
		}
	}
	if err := c.read(); err != nil {
		return err
	}
	if left := c.receiving(); len(left) > 0 {
		return fmt.Errorf("the mount on %s receives what the host mounts later, and another mount covers it; "+
			"remove one of them", left[0])
	}
	return nil
}

func (c *containerMounts) receiving() []string {
	return c.host.Receiving(c.bundle, c.state.Bundle, c.mountinfo, c.mounts, c.realRoot)
}

// detach detaches the mounts that the view replaces and the mounts inside the store
// directory. It is not enough to cover them: a process with CAP_SYS_ADMIN could remove
// the cover.
func (c *containerMounts) detach() (detached bool, _ error) {
	// Detach in reverse order of mounting. Detach each mount once, so that only the
	// mounts of config.json go.
	positions := slices.Sorted(slices.Values(slices.Concat(c.inspected.mounts.replaced, c.inspected.mounts.admitted)))
	for _, i := range slices.Backward(positions) {
		m := c.bundle.Mounts[i]
		f, err := rootfs.Open(c.root, m.Destination)
		if errors.Is(err, os.ErrNotExist) {
			continue // detached together with its parent mount
		}
		if err == nil {
			err = view.Detach(f)
			f.Close()
		}
		// CheckTarget finds a mount that another mount covers.
		if err != nil && !errors.Is(err, view.ErrNotMounted) {
			return false, fmt.Errorf("taking the mount off %s: %w", m.Destination, err)
		}
	}
	return len(positions) > 0, nil
}
