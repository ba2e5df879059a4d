// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// plugin serves the named closures of a node, each on a socket of its own: to the kubelet,
// each resource is a plugin.
type plugin struct {
	source source
	units  int
	dir    string   // of the sockets
	lock   *os.File // that directory, locked
	log    *logrus.Logger

	mutex     sync.Mutex           // of these, and of source
	sure      time.Time            // when the roots were last known
	resources map[string]*resource // all that there were since the start, by closure
	said      map[string]string    // what was logged last, by subject
}

// pause is the time between two looks at the files, which cost some calls of stat(2). To
// wait for events of the file system would save these, and would need a second way for
// directories that are not there yet.
const pause = time.Second

// stay serves until ctx ends.
func (p *plugin) stay(ctx context.Context) error {
	defer p.stop()
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	ready := false
	for {
		p.refresh(ctx)
		served := p.serve(ctx)
		if errors.Is(served, errTaken) {
			return served
		}
		if served == nil && !ready {
			ready = true
			// Notify the service manager, if there is one (sd_notify(3)).
			if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
				p.log.WithField("error", err.Error()).Warn("cannot notify the service manager")
			}
		}
		select {
		case <-ctx.Done():
			p.log.Info("plugin stopped")
			return nil
		case <-ticker.C:
		}
	}
}

// say logs an error when it first occurs.
func (p *plugin) say(subject string, err error, message string) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err != nil && text != p.said[subject] {
		p.log.WithField("error", text).Error(message)
	}
	p.said[subject] = text
}

// patience is how long what was last found out counts, while Nix's database is written to
// and not to be read by a user who may not write beside it.
const patience = 10 * time.Second

// refresh looks at the named closures, if they may have changed.
func (p *plugin) refresh(ctx context.Context) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	now := time.Now()
	if !p.source.changed(now) {
		return
	}
	// SQLite waits five seconds at most.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	all, sure, err := p.source.look(ctx)
	if ctx.Err() != nil || !sure {
		p.source.read = time.Time{}
	}
	if errors.Is(ctx.Err(), context.Canceled) || !sure && now.Sub(p.sure) < patience {
		return
	}
	if sure {
		p.sure = now
	}
	p.say("file", err, "named closures not known: the node takes no new pods with one")
	there := map[string]bool{}
	for _, n := range all {
		reason := checkName(n.Name)
		if n.Trouble != nil {
			reason = fmt.Errorf("%w; generate it with nix-closure cdi generate", n.Trouble)
		}
		p.say("device "+n.Name, reason, "device not advertised: "+n.FullName())
		if reason == nil {
			there[n.Name] = true
			p.resource(n).set(state{unfit: n.unfit})
		}
	}
	for name, r := range p.resources {
		switch {
		case err != nil:
			r.set(state{unfit: err})
		case !there[name]:
			r.set(state{gone: true})
		}
	}
}

// resource returns the resource of a named closure.
func (p *plugin) resource(n named) *resource {
	r := p.resources[n.Name]
	if r == nil {
		r = &resource{
			name: resourcePrefix + n.Name, cdiName: n.FullName(), units: p.units, refresh: p.refresh,
			log: p.log.WithField("resource", resourcePrefix+n.Name),
		}
		p.resources[n.Name] = r
	}
	return r
}

// errTaken is an error that time does not mend.
var errTaken = errors.New("another nix-closure-device-plugin serves there; end it first")

// serve makes the sockets that are missing: of new closures, and all of them after somebody
// removed them. When the kubelet starts, it finds the sockets that are there.
func (p *plugin) serve(ctx context.Context) error {
	err := p.takeDirectory()
	for _, r := range p.all() {
		if err == nil && !r.listens(p.dir) {
			r.stop()
			err = r.listen(ctx, p.dir)
		}
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.say("sockets", err, "cannot serve the kubelet yet")
	return err
}

// all returns the resources. Their sockets are not guarded by the mutex, which a request that
// is being answered may need: only stay changes them.
func (p *plugin) all() []*resource {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return slices.Collect(maps.Values(p.resources))
}

// takeDirectory makes the directory of the sockets, but not what it is in, which is the
// kubelet's. It locks the directory, for one plugin at a time, and removes the sockets of a
// plugin that was killed.
func (p *plugin) takeDirectory() error {
	if p.lock != nil {
		now, err1 := os.Stat(p.dir)
		own, err2 := p.lock.Stat()
		if err1 == nil && err2 == nil && os.SameFile(now, own) {
			return nil
		}
		_ = p.lock.Close()
		p.lock = nil
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	dir, err := os.Open(p.dir)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("--sockets %s: %w", p.dir, errTaken)
		}
		return &os.PathError{Op: "flock", Path: p.dir, Err: err}
	}
	left, err := filepath.Glob(filepath.Join(p.dir, "nix-closure-*.sock"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		_ = dir.Close()
		return err
	}
	p.lock = dir
	return nil
}

// stop ends serving, and removes the sockets.
func (p *plugin) stop() {
	for _, r := range p.all() {
		r.stop()
	}
}
