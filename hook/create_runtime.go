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
func create(ctx context.Context, c config.Config, call Call, state spec.State, log *slog.Logger) (Err error) {
	configPath, stage := call.Config, call.Stage
	began := time.Now()
	fail := func(doing string, err error) error { return &failure{state.ID, doing, err} }
	store := c.Store()

	// What the annotations say is said first.
	if _, err := spec.ParseAnnotations(store, call.Engine, state.ID, state.Annotations); err != nil {
		return fail("reading the annotations", err)
	}
	bundle, err := spec.ReadConfig(state.Bundle)
	if err != nil {
		return fail("reading the container's config.json", err)
	}
	checked, err := check(c, Container{state.ID, call.Engine, state.Bundle, bundle.Root, state.Annotations, bundle.Mounts})
	if err != nil || checked.request == nil {
		return err
	}
	request, host := checked.request, checked.host
	defer host.Close()
	allowed := func(paths []closure.BaseName) error {
		if err := allow(c, request, paths); err != nil {
			return fail("checking what is allowed here", err)
		}
		return nil
	}
	if err := allowed(checked.asked()); err != nil {
		return err
	}
	shared, err := sharesPIDs(c, bundle)
	if err != nil && !request.Sandbox {
		return fail("looking at the container's PID namespace", err)
	}
	if request.Sandbox {
		a := attachment{state: state, bundle: bundle, store: store, host: host, checked: checked}
		if err := a.attach(stage); err != nil {
			return fail("looking at what is mounted in the pod's sandbox", err)
		}
		return nil
	}

	dir, err := OpenRuntimeDir(c)
	if err != nil {
		return fail("opening the runtime directory", err)
	}
	if stage == "createContainer" {
		// What the runtime says may be of the container's PID namespace.
		state.Pid = initProcess()
	}
	if lock, err := dir.lock(unix.LOCK_EX | unix.LOCK_NB); err == nil {
		dir.sweepSome(lock, true, store, log)
	}
	// Not before this container is known to be the only one of its name may
	// anything of that name be removed.
	old, ok, err := dir.readRecord(state.ID)
	if err != nil {
		return fail("reading the record", err)
	}
	if ok && old.live() {
		if old.Bundle != state.Bundle || old.Pid != state.Pid {
			return fail("reading the record", fmt.Errorf("process %d of another container with this id is running (bundle %s); give one of them another name", old.Pid, old.Bundle))
		}
		if old.Attached && old.Pid > 0 {
			log.Info("attached already: the hook is called twice, by two engines' or two stages' entries")
			return nil
		}
	}

	if ok {
		old.ID = state.ID // of a damaged one, too
		if err := dir.forget(store, old); err != nil {
			return fail("cleaning up", err)
		}
	}

	record := Record{
		ID: state.ID, Bundle: state.Bundle, Pid: state.Pid,
		Roots: checked.roots(), ClosureInfo: request.ClosureInfo, Mode: modeOf(request, c), Writable: request.Writable,
		GCRoots: dir.gcRoots(store).Of(state.ID), Created: began.UTC(),
	}
	claimed := false
	defer func() {
		if Err != nil && claimed {
			if err := dir.forget(store, record); err != nil {
				logError(log, fail("cleaning up", err))
			}
		}
	}()
	if record.Mode == spec.ModeAuto {
		record.Mode = spec.ModeOverlay // what it mostly is; written again if not
	}
	if state.Pid > 0 {
		if record.PidStart, err = startTime(state.Pid); err != nil {
			return fail("looking at the container's process", err)
		}
	}
	options := view.Options{
		Label: bundle.MountLabel, Listed: request.Listing,
		// Who may write to the store makes it; it is not in the closure.
		Links: request.Registration && !request.Writable,
	}
	memo := closure.Memo{Dir: dir.Closures, Store: store}
	query := closure.Query{Roots: checked.roots(), Info: request.ClosureInfo}
	p := pinner{c, configPath, memo, dir.gcRoots(store), allowed, query, log}
	var preparing *os.File
	defer func() { _ = preparing.Close() }()
	resolution, err := p.pin(ctx, state.ID, func(digest string) error {
		if preparing == nil {
			lock, err := dir.Preparing()
			if err != nil {
				return err
			}
			if digest == "" {
				defer lock.Close() // to fetch takes long
			} else {
				preparing = lock // nobody sweeps until the view is attached
			}
		}
		record.Digest = digest
		write := dir.writeRecord
		if !claimed {
			write = dir.claim
		}
		return dir.begin(&record, request, options, func(r Record) error {
			err := write(r)
			claimed = claimed || err == nil
			return err
		})
	})
	if f := (*failure)(nil); errors.As(err, &f) {
		return f // not allowed
	}
	if err != nil {
		return fail("resolving "+asked(store, request), err)
	}

	if shared && !c.SharedPID {
		if err := checkSharedPIDs(dir, host, bundle.PIDs, state.Pid, resolution.Digest); err != nil {
			return fail("looking at the container's PID namespace", err)
		}
	}
	owner, err := ownerOf(stage, state.Pid, bundle)
	if err != nil {
		return fail("looking at the container's user", err)
	}
	size := writableSize(c, bundle)
	if request.Writable && request.Registration {
		size /= 2 // for each
	}
	v := viewer{dir, store, host, memo, p, resolution, options, request.Writable, size, owner, log}
	mode, why, made, err := v.make(ctx, modeOf(request, c))
	if err != nil {
		return fail("making the view", err)
	}
	defer func() { _ = made.Close() }()
	if mode != record.Mode {
		unused := record.View
		record.Mode, record.View = mode, ""
		if err := errors.Join(dir.writeRecord(record), dir.release(dir.Views, unused, record.ID)); err != nil {
			return fail("writing the record", err)
		}
	}
	a := attachment{state: state, bundle: bundle, store: store, host: host, checked: checked, view: made, pidStart: record.PidStart}
	if request.Registration || request.Writable {
		a.owner = &owner
	}
	if request.Registration {
		a.registration, err = registration(ctx, dir, p, resolution, options, size, owner)
		if err != nil {
			return fail("making the registration", err)
		}
		defer func() { _ = a.registration.Close() }()
	}
	if err := a.attach(stage); err != nil {
		return fail("attaching the view", err)
	}
	record.Attached = true
	if err := dir.writeRecord(record); err != nil {
		return fail("writing the record", err)
	}
	log.Info("attached", "mode", mode, "why", why, "digest", resolution.Digest, "paths", resolution.Paths, "took", time.Since(began).String())
	return nil
}

// begin has the record written, and then says what the container is going to use.
func (d *RuntimeDir) begin(r *Record, request *spec.Request, o view.Options, write func(Record) error) error {
	if r.Digest != "" && r.Mode == spec.ModeOverlay {
		r.View = view.LayerName(r.Digest, o)
	}
	if r.Digest != "" && request.Registration {
		r.Database = closure.RegistrationName(r.Digest, request.ClosureInfo)
	}
	if err := write(*r); err != nil {
		return err
	}
	if r.View != "" {
		if err := d.use(d.Views, r.View, r.ID); err != nil {
			return err
		}
	}
	if r.Database != "" {
		return d.use(d.Registrations, r.Database, r.ID)
	}
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
	host, err := spec.LookAtHost(c.Store(), c.RuntimeDir, mountinfo)
	if err == nil {
		host.ProcessesShown = c.SharedPID
	}
	return host, err
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
	dir        *RuntimeDir
	store      closure.Store
	host       *spec.Host
	memo       closure.Memo
	pinner     pinner
	resolution closure.Resolution
	options    view.Options
	writable   bool
	size       int64 // of what is written, in bytes
	owner      view.Owner
	log        *slog.Logger
}

// make makes a view in the mode asked for. For auto it tries the overlay first;
// why says what decided.
func (v viewer) make(ctx context.Context, asked spec.Mode) (mode spec.Mode, why string, _ view.View, _ error) {
	if asked == spec.ModeBind && v.writable {
		return "", "", nil, fmt.Errorf("a writable store needs an overlay, and the configuration says mode %s; ask for mode overlay with an annotation", spec.ModeBind)
	}
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
	case v.writable && errors.Is(err, view.ErrUnsupported):
		return "", "", nil, fmt.Errorf("a writable store needs an overlay: %w", err)
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
	layer, ok := view.OpenLayer(v.dir.Views, v.resolution.Digest, v.options, v.resolution.Since)
	if ok && !v.writable {
		return view.NewOverlay(v.store, layer, v.options)
	}
	c, err := v.pinner.load(ctx, v.resolution)
	if err != nil {
		return nil, err
	}
	if !ok {
		if layer, err = view.EnsureLayer(v.dir.Views, v.store, c, v.options); err != nil {
			return nil, err
		}
	}
	if v.writable {
		return view.NewWritable(v.store, c, layer, v.options, v.size, v.owner), nil
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
