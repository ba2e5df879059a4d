// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// create gives a container its closure: the stages createRuntime, prestart and
// createContainer. On an error it has removed what it made on the host; what it
// attached goes with the container.
func create(ctx context.Context, c config.Config, configPath, stage string, state spec.State, log *slog.Logger) (Err error) {
	began := time.Now()
	fail := func(doing string, err error) error { return &failure{state.ID, doing, err} }
	store := c.Store()

	request, err := spec.ParseAnnotations(store, state.Annotations)
	if err != nil {
		return fail("reading the annotations", err)
	}
	if request == nil {
		return nil
	}
	bundle, err := spec.ReadConfig(state.Bundle)
	if err != nil {
		return fail("reading the container's config.json", err)
	}
	host, err := lookAtHost(c)
	if err != nil {
		return fail("looking at the host's store", err)
	}
	replaced, err := classify(host, state.Bundle, bundle.Mounts)
	if err != nil {
		return fail("looking at the container's mounts", err)
	}

	dir, err := openRuntimeDir(c.RuntimeDir)
	if err != nil {
		return fail("opening the runtime directory", err)
	}
	// Not before this container is known to be the only one of its name may
	// anything of that name be removed.
	if r, ok, err := dir.readRecord(state.ID); err != nil {
		return fail("reading the record", err)
	} else if ok && r.live() && (r.Bundle != state.Bundle || r.Pid != state.Pid) {
		return fail("reading the record", fmt.Errorf("process %d of another container with this id is running (bundle %s); give one of them another name", r.Pid, r.Bundle))
	}
	defer func() {
		if Err != nil {
			if err := dir.forget(store, state.ID); err != nil {
				logError(log, fail("cleaning up", err))
			}
		}
	}()

	record := Record{
		ID: state.ID, Bundle: state.Bundle, Pid: state.Pid,
		Roots: request.Roots, ClosureInfo: request.ClosureInfo, Mode: modeOf(request, c),
		GCRoots: store.GCRootsDir(state.ID), Created: began.UTC(),
	}
	if record.Mode == spec.ModeAuto {
		record.Mode = spec.ModeOverlay // what it mostly is; written again if not
	}
	if state.Pid > 0 {
		if record.PidStart, err = startTime(state.Pid); err != nil {
			return fail("looking at the container's process", err)
		}
	}
	memo := closure.Memo{Dir: dir.closures, Store: store}
	p := pinner{c, configPath, memo, closure.Query{Roots: request.Roots, Info: request.ClosureInfo}, log}
	resolution, err := p.pin(ctx, state.ID, func(digest string) error {
		record.Digest = digest
		return dir.writeRecord(record)
	})
	if err != nil {
		return fail("resolving "+asked(store, request), err)
	}

	v := viewer{dir, store, host, memo, p, resolution, view.Options{Label: bundle.MountLabel, Listed: request.Listing}, log}
	mode, why, made, err := v.make(ctx, modeOf(request, c))
	if err != nil {
		return fail("making the view", err)
	}
	defer func() { _ = made.Close() }()
	if mode != record.Mode {
		record.Mode = mode
		if err := dir.writeRecord(record); err != nil {
			return fail("writing the record", err)
		}
	}
	a := attachment{state, bundle, store, host, replaced, made}
	if err := a.attach(stage); err != nil {
		return fail("attaching the view", err)
	}
	log.Info("attached", "mode", mode, "why", why, "digest", resolution.Digest, "paths", resolution.Paths, "took", time.Since(began).String())
	return nil
}

// asked says what a container asked for, for a message.
func asked(store closure.Store, r *spec.Request) string {
	if r.ClosureInfo != "" {
		return "closure-info " + store.Path(r.ClosureInfo)
	}
	if more := len(r.Roots) - 1; more > 0 {
		return fmt.Sprintf("%s and %d more", store.Path(r.Roots[0]), more)
	}
	return store.Path(r.Roots[0])
}

func modeOf(r *spec.Request, c config.Config) spec.Mode {
	if r.Mode != "" {
		return r.Mode
	}
	return spec.Mode(c.Mode)
}

// lookAtHost finds out what the host's mount namespace has, once for all mounts.
func lookAtHost(c config.Config) (*spec.Host, error) {
	mountinfo, err := readMountinfo("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return spec.LookAtHost(c.Store(), c.RuntimeDir, mountinfo)
}

// readMountinfo reads a mountinfo file, in few and large parts: the kernel makes
// each anew.
func readMountinfo(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 64<<10)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		text = slices.Grow(text[:len(text)+n], 32<<10)
	}
}

// viewer makes views of one closure.
type viewer struct {
	dir        *runtimeDir
	store      closure.Store
	host       *spec.Host
	memo       closure.Memo
	pinner     pinner
	resolution closure.Resolution
	options    view.Options
	log        *slog.Logger
}

// make makes a view in the mode asked for. For auto it tries the overlay first;
// why says what decided.
func (v viewer) make(ctx context.Context, asked spec.Mode) (mode spec.Mode, why string, _ view.View, _ error) {
	if asked == spec.ModeBind {
		made, err := v.bind(ctx)
		return spec.ModeBind, "asked for", made, err
	}
	made, err := v.overlay(ctx)
	switch {
	case err == nil && asked == spec.ModeAuto:
		return spec.ModeOverlay, "auto: this kernel and these privileges allow it", made, nil
	case err == nil:
		return spec.ModeOverlay, "asked for", made, nil
	case asked == spec.ModeAuto && errors.Is(err, view.ErrUnsupported):
		why = "auto: " + err.Error()
		made, err := v.bind(ctx)
		return spec.ModeBind, why, made, err
	case errors.Is(err, view.ErrUnsupported):
		return "", "", nil, fmt.Errorf("%w; ask for mode bind or auto", err)
	}
	return "", "", nil, err
}

// overlay makes an overlay view. Where the closure is known and its layer is
// there, nothing of this depends on the closure's size.
func (v viewer) overlay(ctx context.Context) (view.View, error) {
	if inside := v.host.MountsInStore(); len(inside) > 0 {
		return nil, fmt.Errorf("%w: %s is a mount inside the store, and an overlay would show what is underneath", view.ErrUnsupported, inside[0])
	}
	if layer, ok := view.OpenLayer(v.dir.views, v.resolution.Digest, v.options, v.resolution.Since); ok {
		return view.NewOverlay(v.store, layer, v.options)
	}
	c, err := v.pinner.load(ctx, v.resolution)
	if err != nil {
		return nil, err
	}
	layer, err := view.EnsureLayer(v.dir.views, v.store, c, v.options)
	if err != nil {
		return nil, err
	}
	made, err := view.NewOverlay(v.store, layer, v.options)
	if err != nil {
		return nil, err
	}
	if err := view.Check(made, v.store, c); err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return made, nil
}

func (v viewer) bind(ctx context.Context) (view.View, error) {
	c, err := v.pinner.load(ctx, v.resolution)
	if err != nil {
		return nil, err
	}
	if v.options.Label != "" {
		v.log.Warn("bind mode cannot give files the label that the container asks for; a confined container may not read them", "label", v.options.Label)
	}
	return view.NewBind(v.store, c, v.options)
}
