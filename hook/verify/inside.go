// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/internal/rootfs"
	"github.com/nix-closure/nix-closure/spec"
)

// inside is what is seen in a container's mount namespace.
type inside struct {
	*look
	process   *process
	guard     *spec.Host
	hostStore *os.File
	// admitted are store paths beside the closure that a mount of config.json names.
	admitted []closure.BaseName
	// infos are what Nix registered, where contents are compared.
	infos []closure.PathInfo
}

// lookInside joins the mount namespace of the container's process, and looks at what is
// mounted there. A process that started at another time is not the container's; 0: it is
// whichever has the number.
func (l *look) lookInside(ctx context.Context, pid int, start uint64) {
	l.inside = true
	in, err := l.openInside(ctx, pid, start)
	if in != nil {
		defer in.close()
	}
	if errors.Is(err, errEnded) {
		l.unknown("%v", err)
		return
	}
	if err == nil && in.process.isOfHost {
		l.wrong(stopNow, "process %d is in the host's mount namespace, and sees all of its store", pid)
		return
	}
	if err == nil && in.process.isGVisors() {
		l.unknown("its process %d is gVisor's: what the container sees is in gVisor's memory, and cannot be looked at",
			pid)
		return
	}
	if err == nil {
		err = mntns.Do(in.process.mounts, func() error { return in.lookAround(ctx) })
	}
	if err == nil {
		err = in.process.check(start)
	}
	if err != nil {
		l.unknown("looking into its mount namespace: %v%s", err, l.whoMay(err))
	}
}

// whoMay says who may look into a container, for an error that says that this user may not.
func (l *look) whoMay(err error) string {
	switch {
	case !errors.Is(err, fs.ErrPermission):
		return ""
	case l.host.Config.Rootless:
		return "; call it in the engine's user namespace, as `podman unshare nix-closure verify`"
	}
	return "; call it as root of the host, with all capabilities"
}

func (l *look) openInside(ctx context.Context, pid int, start uint64) (_ *inside, err error) {
	in := &inside{look: l}
	if in.process, err = openProcess(pid, start); err != nil {
		return in, err
	}
	if in.hostStore, err = os.OpenFile(l.store.Dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return in, err
	}
	mountinfo, err := proc.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return in, err
	}
	if in.guard, err = spec.LookAtHost(l.store, l.host.Config.RuntimeDir, mountinfo); err != nil {
		return in, err
	}
	in.guard.ProcessesAllowed, in.guard.FUSEAllowed = l.host.Config.SharedPID, l.host.Config.FUSE
	in.admitted = l.admitted(in.guard)
	// The host's names lead nowhere in the container's root.
	in.guard.NamesElsewhere, in.guard.OwnPIDs = true, in.process.pidNamespace
	if err := in.guard.Open(); err != nil {
		return in, err
	}
	if l.Contents && l.closure != nil {
		if in.infos, err = l.Nix.Infos(ctx, *l.closure); err != nil {
			return in, err
		}
	}
	return in, nil
}

func (in *inside) close() {
	if in.process != nil {
		in.process.close()
	}
	if in.hostStore != nil {
		in.hostStore.Close()
	}
	if in.guard != nil {
		in.guard.Close()
	}
}

// admitted are the store paths that the mounts and the root of config.json name, which
// the container may have beside its closure, at their own or another place.
func (l *look) admitted(guard *spec.Host) (all []closure.BaseName) {
	file := ""
	switch {
	case l.Running != nil:
		file = l.Running.Config
	case l.record != nil:
		file = l.record.Bundle + "/config.json"
	}
	text, err := readConfig(file)
	if err != nil {
		return nil
	}
	c, err := spec.ParseConfig(text)
	if err != nil {
		return nil
	}
	bundle := filepath.Dir(file)
	if l.record != nil {
		bundle = l.record.Bundle
	}
	for _, m := range c.Mounts {
		if v, err := guard.Classify(bundle, m); err == nil && v.Class != spec.Leaks {
			all = append(all, v.Asked...)
		}
	}
	if layers, err := guard.RootLayers(bundle, c.Root); err == nil {
		all = append(all, layers...)
	}
	return all
}

// lookAround is called in the container's mount namespace. The calling thread is at its
// root, wherever the root directories of processes in it are. Every path there is
// resolved by descriptor: the image and the container are hostile.
func (in *inside) lookAround(ctx context.Context) error {
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	text, err := in.process.threadMounts()
	if err != nil {
		return err
	}
	mounts, err := spec.ParseMounts(text)
	if err != nil {
		return err
	}
	if in.record == nil {
		in.checkOthers(mounts)
		return nil
	}
	// Before anything is looked up in the container: a server that does not answer would
	// hold this thread.
	if err := in.guard.CheckServers(mounts, "/", in.store.Dir, in.store.StateDir); err != nil {
		in.wrong(stopNow, "what is above its store: %v", err)
		return nil
	}
	if in.record.Registration != "" {
		if err := in.checkStateDir(root, mounts); err != nil {
			return err
		}
	}
	at, on, others, dir, err := in.viewMount(root, mounts)
	if dir != nil {
		defer dir.Close()
	}
	if err != nil {
		return err
	}
	isView := dir != nil && in.checkView(at)
	if !isView {
		in.checkOthers(mounts)
		return nil
	}
	in.checkOn(at, on)
	in.checkOthers(others)
	if in.closure == nil {
		return nil
	}
	if err := in.checkNames(dir); err != nil {
		return err
	}
	return in.checkContents(ctx, dir)
}

// viewMount finds the mount that the container's store directory is on. Without dir there
// is none.
func (in *inside) viewMount(root *os.File, mounts spec.Mounts) (
	at spec.Mount, on []spec.Mount, others spec.Mounts, dir *os.File, _ error,
) {
	dir, at, on, others, err := in.mountAt(root, in.store.Dir, mounts)
	if errors.Is(err, errNoMountThere) {
		in.wrong(startAgain, "nothing is attached to %s: the view was unmounted, or the directory moved", in.store.Dir)
		return at, nil, mounts, nil, nil
	}
	return at, on, others, dir, err
}

var errNoMountThere = errors.New("not the root of a mount")

// mountAt opens a directory of the container, and finds the mount that it is the root of.
func (in *inside) mountAt(root *os.File, name string, mounts spec.Mounts) (
	dir *os.File, at spec.Mount, on []spec.Mount, others spec.Mounts, _ error,
) {
	dir, err := rootfs.Open(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, at, nil, nil, errNoMountThere
	}
	if err != nil {
		return nil, at, nil, nil, err
	}
	real, err := in.process.fileName(dir)
	if err != nil {
		return dir, at, nil, nil, err
	}
	// STATX_MNT_ID: Linux 5.8.
	var st unix.Statx_t
	err = unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil {
		return dir, at, nil, nil, os.NewSyscallError("statx", err)
	}
	at, on, others, ok := mounts.Attached(st.Mnt_id)
	if !ok {
		return dir, at, nil, nil, fmt.Errorf("%s: its mounts change while they are looked at; try again", name)
	}
	if at.Point != real {
		return dir, at, nil, nil, errNoMountThere
	}
	return dir, at, on, others, nil
}

// describe is a mount, for a message.
func describe(m spec.Mount) string {
	what := m.Kind
	if m.Source != "" && m.Source != m.Kind {
		what += " of " + m.Source
	}
	if m.Path != "/" {
		what += ", its " + m.Path + ","
	}
	return what
}

// checkView tells whether a mount is the view that the record is of. What is wrong with
// the view itself is said, and does not make it another.
func (in *inside) checkView(at spec.Mount) bool {
	r := in.record
	var isView bool
	kept := []string{"ro", "nosuid", "nodev"}
	switch r.Mode {
	case spec.ModeOverlay:
		options := strings.Split(at.Options, ",")
		lower := "lowerdir=" + view.Lower(in.host.Dir.Views.Name(), r.View, in.store)
		upper := slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "upperdir") })
		isView = at.Kind == "overlay" && at.Path == view.OverlayPath && slices.Contains(options, lower) &&
			upper == r.Writable
		if r.Writable {
			kept = kept[1:]
		}
	case spec.ModeBind:
		isView = at.Kind == "tmpfs" && at.Source == view.TmpfsSource && at.Path == "/"
	}
	if !isView {
		in.wrong(stopNow, "on %s is %s and not the view of the record (mode %s, %s)",
			in.store.Dir, describe(at), r.Mode, r.Digest)
		return false
	}
	in.checkAttributes(at, kept)
	if at.Propagates {
		in.wrong(startAgain, "the view on %s propagates: what is mounted elsewhere may show in it", in.store.Dir)
	}
	return true
}

func (in *inside) checkAttributes(m spec.Mount, kept []string) {
	for _, attribute := range kept {
		if !m.Has(attribute) {
			in.wrong(stopNow, "the mount on %s is not %s: somebody has mounted it again with other attributes (%s)",
				m.Point, attribute, m.Attributes)
		}
	}
}

// checkOn looks at what is mounted on the view: in mode bind each path of the closure, with
// what is mounted in it on the host; else nothing.
func (in *inside) checkOn(at spec.Mount, on []spec.Mount) {
	seen := map[string]bool{}
	for _, m := range on {
		name := strings.TrimPrefix(m.Point, strings.TrimSuffix(at.Point, "/")+"/")
		first, _, deeper := strings.Cut(name, "/")
		isPath := in.record.Mode == spec.ModeBind && in.has(closure.BaseName(first)) &&
			(!deeper || in.guard.HasInStore(name))
		if !isPath || seen[name] {
			in.wrong(stopNow, "%s is mounted on %s, over or inside what the view shows", describe(m),
				path.Join(in.store.Dir, name))
		}
		seen[name] = true
		if isPath {
			in.checkAttributes(m, []string{"ro", "nosuid", "nodev"})
		}
	}
}

// has tells whether a store path is in the closure. Where that is not known, it says yes.
func (in *inside) has(name closure.BaseName) bool {
	if in.closure == nil {
		return true
	}
	_, found := slices.BinarySearch(in.closure.Names, name)
	return found
}

// checkOthers looks at what all other mounts show.
func (in *inside) checkOthers(mounts spec.Mounts) {
	shown, err := in.guard.CheckMounts(mounts, "/")
	var leak *spec.LeakError
	switch {
	case errors.As(err, &leak):
		in.wrong(stopNow, "%v", err)
	case err != nil:
		in.unknown("a mount of the container cannot be judged: %v", err)
	}
	var more []closure.BaseName
	for _, base := range shown {
		isAdmitted := in.record != nil && in.closure != nil && in.has(base) || slices.Contains(in.admitted, base)
		if !isAdmitted && !slices.Contains(more, base) {
			more = append(more, base)
		}
	}
	if len(more) > 0 {
		in.wrong(stopNow, "a mount shows what is neither in its closure nor named by a mount of config.json: %s",
			in.names(more))
	}
}

// checkStateDir looks at the mount with the registration.
func (in *inside) checkStateDir(root *os.File, mounts spec.Mounts) error {
	dir, at, _, _, err := in.mountAt(root, in.store.StateDir, mounts)
	if dir != nil {
		defer dir.Close()
	}
	if errors.Is(err, errNoMountThere) {
		in.wrong(startAgain, "nothing is attached to %s: the registration was unmounted", in.store.StateDir)
		return nil
	}
	if err != nil {
		return err
	}
	if at.Kind != "tmpfs" || at.Source != view.TmpfsSource || at.Path != "/" {
		in.wrong(stopNow, "on %s is %s and not the registration", in.store.StateDir, describe(at))
	}
	return nil
}
