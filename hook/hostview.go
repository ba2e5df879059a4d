// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// HostView is a closure that is to be mounted on a directory of the host.
type HostView struct {
	Roots []closure.BaseName
	Mode  spec.Mode // empty: as the configuration says
	Dir   string
}

// hostViewStage is what the log has for a stage.
const hostViewStage = "view"

// Mount mounts the view: the same steps as of a container's start, but that nothing is
// joined, and that the record lives as long as the mount. The policy of the
// configuration is for containers, and has no say here.
func (v HostView) Mount(ctx context.Context, c config.Config, configPath string) (_ state.Record, Err error) {
	target, in, err := v.target(c)
	if err != nil {
		return state.Record{}, err
	}
	c.Allow = nil
	id := state.HostViewID(target, in)
	s := &start{
		progress: &progress{}, config: c, call: Call{Stage: hostViewStage, Config: configPath},
		state: spec.State{ID: id}, log: logOf(c, hostViewStage, id), began: time.Now(),
	}
	defer func() {
		if Err == nil {
			return
		}
		Err = fmt.Errorf("%s: %w", s.doing(), Err)
		logError(s.log, Err)
		if own := s.owned.Load(); own != nil {
			Err = errors.Join(Err, own.Undo(ctx))
		}
	}()
	s.at("looking at the host's store")
	host, err := lookAtHost(c)
	if err != nil {
		return state.Record{}, err
	}
	defer host.Close()
	request := &spec.Request{Roots: v.Roots, Mode: v.Mode, Listing: true}
	checked := &checked{start: s, inspected: &inspected{request: request, host: host}, store: c.Store()}
	s.at("opening the runtime directory")
	dir, err := state.Open(c)
	if err != nil {
		return state.Record{}, err
	}
	defer dir.Close()
	claimed, err := checked.claimHostView(ctx, dir)
	if err != nil {
		return state.Record{}, err
	}
	return claimed.mountOnHost(ctx, target, in)
}

// claimHostView makes the first record of a view on the host.
func (c *checked) claimHostView(ctx context.Context, dir *state.Dir) (*claimed, error) {
	swept, err := dir.SweepBeforeStart(ctx)
	logSweep(c.log, swept, err)
	c.at("looking at this process")
	pid := os.Getpid()
	started, err := proc.StartTime(pid)
	if err != nil {
		return nil, err
	}
	record := state.Record{
		ID: c.state.ID, Kind: state.KindView, Pid: pid, PidStart: started,
		Roots: c.request.Roots, Mode: modeOf(c.request, c.config), Request: c.requestText(),
		GCRoots: dir.GCRoots().Of(c.state.ID), Created: c.began.UTC(),
	}
	if record.Mode == spec.ModeAuto {
		record.Mode = spec.ModeOverlay // what it mostly is; written again if not
	}
	c.at("claiming the directory")
	own, _, err := dir.Claim(ctx, record, nil)
	if err != nil {
		return nil, err
	}
	c.owned.Store(own)
	return &claimed{checked: c, dir: dir, claim: own, options: view.Options{Listed: true}}, nil
}

// mountOnHost pins, makes and attaches the view.
func (c *claimed) mountOnHost(ctx context.Context, target string, in state.Namespaces) (state.Record, error) {
	pinned, err := pin(ctx, c)
	if err != nil {
		return state.Record{}, err
	}
	c.at("making the view")
	mode, _, made, err := viewBuilder{pinned: pinned}.make(ctx, modeOf(c.request, c.config))
	if err != nil {
		return state.Record{}, err
	}
	defer func() { _ = made.Close() }()
	if mode != c.claim.Record().Mode {
		if err := c.setMode(ctx, mode); err != nil {
			return state.Record{}, err
		}
	}
	c.at("mounting the view")
	tree, err := view.NewTree(made, c.config.RuntimeDir)
	if err != nil {
		return state.Record{}, err
	}
	defer func() { _ = tree.Close() }()
	// The record knows the mount before it is there: what is killed in between leaves no
	// mount that is not pinned.
	r := c.claim.Record()
	r.Mount = &state.HostMount{Target: target, Namespaces: in}
	if r.Mount.ID, r.Mount.Device, err = tree.Mount(); err != nil {
		return r, err
	}
	if err := c.claim.Update(ctx, r); err != nil {
		return r, err
	}
	dir, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return r, err
	}
	defer dir.Close()
	if err := tree.Attach(dir); err != nil {
		return r, err
	}
	r.Attached = true
	if err := c.claim.Update(ctx, r); err != nil {
		return r, errors.Join(err, unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	c.log.WithField("target", target).WithField("mode", r.Mode).WithField("digest", r.Digest).Info("view mounted")
	return r, nil
}

// target is the directory by its real name. One that the store, Nix's state or the
// runtime directory are in, or that is in one of them, is refused: the view would cover
// what it is made from.
func (v HostView) target(c config.Config) (string, state.Namespaces, error) {
	in, err := state.OwnNamespaces()
	if err != nil {
		return "", in, err
	}
	target, err := realPath(v.Dir)
	if err != nil {
		return "", in, err
	}
	st, err := os.Stat(target)
	if err != nil {
		return "", in, err
	}
	if !st.IsDir() {
		return "", in, fmt.Errorf("%s: not a directory", target)
	}
	for _, own := range []string{c.StoreDir, c.StateDir, c.RuntimeDir} {
		if real, err := filepath.EvalSymlinks(own); err == nil {
			own = real
		}
		if within(target, own) || within(own, target) {
			return "", in, fmt.Errorf("%s: is a part of %s, or has that in it; take a directory elsewhere", target, own)
		}
	}
	return target, in, nil
}

// realPath is a path as the kernel lists it among mount points.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// UnmountHostView takes a view off a directory of the host, and forgets it: its record
// and its GC root. Of one that is gone, it forgets what is left. In mode overlay it
// fails where something is open in the view; in mode bind, which is many mounts, what is
// open stays open.
func UnmountHostView(ctx context.Context, c config.Config, dir string) error {
	target, err := realPath(dir)
	if err != nil {
		return err
	}
	in, err := state.OwnNamespaces()
	if err != nil {
		return err
	}
	memory, err := state.Open(c)
	if err != nil {
		return fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer memory.Close()
	id := state.HostViewID(target, in)
	r, ok, err := memory.Record(id)
	if err != nil {
		return err
	}
	if !ok || r.Mount == nil {
		return fmt.Errorf("%s: no view was mounted here since the host was started", target)
	}
	there, err := r.Mount.There()
	if err != nil {
		return err
	}
	if there {
		if err := unmount(r); err != nil {
			return err
		}
	}
	if err := memory.EndView(ctx, id); err != nil {
		return err
	}
	logOf(c, hostViewStage, id).WithField("target", target).Info("view unmounted")
	return nil
}

// unmount takes a view off its directory, where it is the uppermost mount of that.
func unmount(r state.Record) error {
	target := r.Mount.Target
	top, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	id, device, err := view.MountOf(top)
	_ = top.Close() // an open file would keep it from being taken off
	if err != nil {
		return err
	}
	if id != r.Mount.ID || device != r.Mount.Device {
		return fmt.Errorf("%s: another mount covers the view, or the view was moved; take that mount off, or the view "+
			"where it is now", target)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if r.Mode == spec.ModeBind {
		flags |= unix.MNT_DETACH // with the mounts of the store paths
	}
	err = unix.Unmount(target, flags)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: something uses the view, such as virtiofsd or a shell in it; end that first", target)
	}
	if err != nil {
		return &os.PathError{Op: "umount", Path: target, Err: err}
	}
	return nil
}
