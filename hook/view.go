// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/idmap"
	"github.com/nix-closure/nix-closure/spec"
)

// built is a container whose view is ready to be attached.
type built struct {
	*pinned
	view     view.View
	stateDir view.View // nil: no registration is asked for
	owner    view.Owner
	why      string // the reason for the mode
}

func (b *built) close() {
	if b.view != nil {
		_ = b.view.Close()
	}
	if b.stateDir != nil {
		_ = b.stateDir.Close()
	}
}

// build makes the view, and the registration if the container asks for one.
func build(ctx context.Context, p *pinned) (_ *built, Err error) {
	b := &built{pinned: p}
	defer func() {
		if Err != nil {
			b.close()
		}
	}()
	p.at("looking at the container's user")
	var err error
	if b.owner, err = containerOwner(p.call.Stage, p.state.Pid, p.bundle); err != nil {
		return nil, err
	}
	size := writableSize(p.config, p.bundle)
	if p.request.Writable && p.request.Registration {
		size /= 2 // half for the store, half for the state directory
	}
	p.at("making the view")
	v := viewBuilder{p, size, b.owner}
	mode, why, made, err := v.make(ctx, modeOf(p.request, p.config))
	if err != nil {
		return nil, err
	}
	b.view, b.why = made, why
	if mode != p.claim.Record().Mode {
		if err := p.setMode(ctx, mode); err != nil {
			return nil, err
		}
	}
	if p.request.Registration {
		p.at("making the registration")
		b.stateDir, err = makeStateDir(ctx, p, size, b.owner)
	}
	return b, err
}

// setMode records that the view has another mode than the record says.
func (c *claimed) setMode(ctx context.Context, mode spec.Mode) error {
	doing := c.doing()
	c.at("writing the record")
	r := c.claim.Record()
	r.Mode, r.View = mode, ""
	if err := c.claim.Update(ctx, r); err != nil {
		return err
	}
	c.at(doing)
	return nil
}

// viewBuilder makes views of one closure.
type viewBuilder struct {
	*pinned
	size  int64 // of what is written, in bytes
	owner view.Owner
}

// make makes a view in the mode asked for. For auto it tries the overlay first;
// why says what decided.
func (v viewBuilder) make(ctx context.Context, asked spec.Mode) (mode spec.Mode, why string, _ view.View, _ error) {
	writable := v.request.Writable
	if asked == spec.ModeBind && writable {
		return "", "", nil, fmt.Errorf("a writable store needs an overlay, and the configuration says mode %s; "+
			"ask for mode overlay with an annotation", spec.ModeBind)
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
	case writable && errors.Is(err, view.ErrUnsupported):
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

// layerAttempts bounds the lookups of a layer that sweeps remove. Each sweep can remove
// it once, if it listed the use marks before this container's mark existed.
const layerAttempts = 5

// overlay makes an overlay view. If the closure is known and its layer exists, the time
// does not depend on the closure's size.
func (v viewBuilder) overlay(ctx context.Context) (view.View, error) {
	if inside := v.host.MountsInStore(); len(inside) > 0 {
		return nil, fmt.Errorf("%w: %s is a mount inside the store, "+
			"and an overlay would show what is underneath", view.ErrUnsupported, inside[0])
	}
	layer, ok := view.OpenLayer(v.dir.Views, v.resolution.Digest, v.options, v.resolution.Since)
	if ok && !v.request.Writable {
		made, err := view.NewOverlay(v.store, layer, v.options)
		if !errors.Is(err, fs.ErrNotExist) {
			return made, err
		}
	}
	c, err := v.pinner.load(ctx, v.resolution)
	if err != nil {
		return nil, err
	}
	for range layerAttempts {
		var made view.View
		if made, err = v.overlayOf(ctx, c); !errors.Is(err, fs.ErrNotExist) {
			return made, err
		}
	}
	return nil, err
}

// overlayOf makes an overlay view with an existing layer, or with a new one.
func (v viewBuilder) overlayOf(ctx context.Context, c closure.Closure) (view.View, error) {
	layer, ok := view.OpenLayer(v.dir.Views, v.resolution.Digest, v.options, v.resolution.Since)
	var err error
	if !ok {
		if layer, err = v.layer(ctx, c); err != nil {
			return nil, err
		}
	}
	if v.request.Writable {
		return view.NewWritable(v.store, c, layer, v.options, v.size, v.owner), nil
	}
	made, err := view.NewOverlay(v.store, layer, v.options)
	if err != nil {
		return nil, err
	}
	if err := made.Check(v.store, c); err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return made, nil
}

// layer returns the existing layer if it still shows the store paths as they are.
// Otherwise it makes the layer, if there is room for it.
func (v viewBuilder) layer(ctx context.Context, c closure.Closure) (view.Layer, error) {
	layer, ok, err := view.FindLayer(v.dir.Views, v.store, c, v.options)
	if ok || err != nil {
		return layer, err
	}
	need, err := view.LayerCost(v.dir.Views, c, v.options)
	if err != nil {
		return layer, err
	}
	if err := v.makeRoom(ctx, need); err != nil {
		return layer, fmt.Errorf("%w: %w", view.ErrUnsupported, err)
	}
	return view.EnsureLayer(ctx, v.dir.Views, v.store, c, v.options)
}

// makeRoom makes room for a layer and logs what it removed.
func (v viewBuilder) makeRoom(ctx context.Context, need view.Cost) error {
	swept, err := v.dir.MakeRoom(ctx, need)
	logSwept(v.log, "removed to make room", swept)
	return err
}

func (v viewBuilder) bind(ctx context.Context) (view.View, error) {
	c, err := v.pinner.load(ctx, v.resolution)
	if err != nil {
		return nil, err
	}
	if v.options.Label != "" {
		v.log.WithField("label", v.options.Label).
			Warn("bind mode cannot give files the label that the container asks for; " +
				"a confined container may not read them")
	}
	return view.NewBind(v.store, c, v.options)
}

// makeStateDir makes a state directory with a copy of the closure's database. The program
// that reads the host's database makes the closure's database, once per closure.
func makeStateDir(ctx context.Context, p *pinned, size int64, owner view.Owner) (view.View, error) {
	db, err := openRegistration(ctx, p)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return view.NewStateDir(p.store, db, p.options, size, owner)
}

// openRegistration opens the database, and has it made if it does not exist. An open file
// survives a sweep. If a sweep removes the database before it is opened, it is made
// again.
func openRegistration(ctx context.Context, p *pinned) (*os.File, error) {
	name := closure.RegistrationName(p.resolution.Digest, p.query().Info)
	db, err := p.dir.OpenRegistration(name, p.resolution.Since)
	for attempt := 0; err != nil && attempt < layerAttempts; attempt++ {
		program, err2 := p.pinner.resolver()
		if err2 != nil {
			return nil, err2
		}
		program.Args = append(program.Args, "--registration")
		made, err2 := program.Resolve(ctx, p.store, p.query())
		if err2 != nil {
			return nil, err2
		}
		if made.Digest != p.resolution.Digest {
			return nil, fmt.Errorf("the closure differs from the cache; start the container again")
		}
		if db, err = p.dir.OpenRegistration(name, made.Since); !errors.Is(err, fs.ErrNotExist) {
			return db, err
		}
	}
	return db, err
}

func (p *pinned) query() closure.Query { return p.pinner.query }

// containerOwner is the user that the container runs as, in the numbers of this process's
// user namespace. This user owns what is writable in the container.
func containerOwner(stage string, pid int, bundle spec.Config) (view.Owner, error) {
	inside := view.Owner{UID: int(bundle.UID), GID: int(bundle.GID)}
	if stage == "createContainer" || pid <= 0 {
		return inside, nil // the hook is in the container's user namespace, or refuses
	}
	process := "/proc/" + strconv.Itoa(pid)
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return inside, err
	}
	its, err := os.Stat(process + "/ns/user")
	if err != nil || os.SameFile(own, its) {
		return inside, err
	}
	uid, err := outside(process+"/uid_map", inside.UID)
	if err != nil {
		return inside, err
	}
	gid, err := outside(process+"/gid_map", inside.GID)
	return view.Owner{UID: uid, GID: gid}, err
}

// outside maps an ID of another user namespace to its number here.
func outside(idMap string, id int) (int, error) {
	n, ok, err := idmap.Outside(idMap, id)
	if err == nil && !ok {
		err = fmt.Errorf("id %d is not in %s: the container's user has no number outside of its user namespace",
			id, idMap)
	}
	return n, err
}

// defaultWritableSize bounds the writes of a container without a memory limit, in bytes.
// noLimit is the smallest limit that means no limit, however a runtime writes it.
const (
	defaultWritableSize = 1 << 30
	noLimit             = 1 << 60
)

// writableSize bounds the container's writes to its store, in bytes.
func writableSize(c config.Config, bundle spec.Config) int64 {
	switch {
	case c.WritableSize > 0:
		return int64(c.WritableSize)
	case bundle.Memory > 0 && bundle.Memory < noLimit:
		return bundle.Memory / 2
	}
	return defaultWritableSize
}
