// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// Record is what the host remembers of one container, in containers/<id>.json of the
// runtime directory. It is written before anything is attached, so that a killed hook
// leaves nothing that the host does not know of.
type Record struct {
	ID string `json:"id"`
	// Kind is the kind of the record; empty: a container.
	Kind Kind `json:"kind,omitempty"`
	// Mount is of a view on a directory of the host; nil: a container, or a view that is
	// being made.
	Mount  *HostMount `json:"mount,omitempty"`
	Bundle string     `json:"bundle"`
	// Stated is the bundle that the runtime reported in place of Bundle, because it had
	// lost the real one. The runtime may report it again when the container ends. Empty:
	// the same as Bundle.
	Stated   string `json:"stated,omitempty"`
	Pid      int    `json:"pid"`
	PidStart uint64 `json:"pidStart"` // clock ticks since boot (proc_pid_stat(5), starttime)
	// SharedPID: the container has no PID namespace of its own, so the end of its
	// first process does not end the others.
	SharedPID bool `json:"sharedPID,omitempty"`
	// Engine and Way are who had the hook called, and by what the container asked for its
	// closure: WayAnnotation or WayDevice. Older records have neither.
	Engine       spec.Engine        `json:"engine,omitempty"`
	Way          string             `json:"way,omitempty"`
	Roots        []closure.BaseName `json:"roots,omitempty"`
	ClosureInfo  closure.BaseName   `json:"closureInfo,omitempty"`
	Mode         spec.Mode          `json:"mode"`
	Writable     bool               `json:"writable,omitempty"`
	Request      string             `json:"request"`                // the whole request
	Digest       string             `json:"digest"`                 // empty: not resolved yet
	View         string             `json:"view,omitempty"`         // name in views/; empty: none
	Registration string             `json:"registration,omitempty"` // name in registrations/; empty: none
	GCRoots      string             `json:"gcRoots"`                // directory
	Created      time.Time          `json:"created"`
	Attached     bool               `json:"attached"` // all views are attached
}

// The ways in which a container asks for its closure.
const (
	WayAnnotation = "annotation" // its own
	WayDevice     = "device"     // a CDI device's, whose call of the hook has the annotations
)

// Unlisted reports whether the container may not list the store directory.
func (r Record) Unlisted() bool { return strings.Contains(r.Request, ", listing false") }

// sameContainer reports whether two records belong to one container.
func (r Record) sameContainer(other Record) bool {
	return r.ID == other.ID && r.Bundle == other.Bundle && r.Pid == other.Pid && r.PidStart == other.PidStart
}

func (d *Dir) recordFile(id string) string { return d.containers.Name() + "/" + id + ".json" }

// writeRecord writes a record atomically: a reader sees all of it or nothing. Hold the
// lock of its ID. It is not synced, because nothing in the runtime directory survives a
// reboot.
func (d *Dir) writeRecord(r Record) error {
	text, err := r.text()
	if err != nil {
		return err
	}
	temporary := d.containers.Name() + "/" + temporaryRecord(r.ID)
	return atomicfile.WriteBy(d.recordFile(r.ID), temporary, append(text, '\n'))
}

// temporaryRecord is the temporary name of a record that is being written. The lock of
// the ID protects it from other writers and from sweeps.
func temporaryRecord(id string) string { return "." + id + ".json" }

// errDamaged says that a record cannot be understood, so that nobody knows which
// container it belongs to.
var errDamaged = errors.New("damaged record")

// Record returns the record of a container; ok is false if there is none. For a damaged
// record it fails with errDamaged.
func (d *Dir) Record(id string) (_ Record, ok bool, _ error) {
	path := d.recordFile(id)
	text, err := proc.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	r, err := parseRecord(text)
	if err != nil {
		return Record{}, false, fmt.Errorf("%w %s: %w", errDamaged, path, err)
	}
	r.ID = id // locks, GC roots and use marks are named after the file
	return r, true, nil
}

// forget removes everything that is kept for a container. It removes the record last, so
// that a record exists as long as anything else does. The views and registrations that
// the container used count as unused from now on. Hold the lock of its ID.
func (d *Dir) forget(r Record) error {
	err := errors.Join(
		d.GCRoots().Remove(r.ID),
		d.dropRef(d.Views, r.View, r.ID),
		d.dropRef(d.Registrations, r.Registration, r.ID),
	)
	if err != nil {
		return err
	}
	if err := unix.Unlink(d.recordFile(r.ID)); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: d.recordFile(r.ID), Err: err}
	}
	return nil
}

// live reports whether a container may still run. An error means that it cannot tell: the
// caller must keep what the record protects.
func (r Record) live() (bool, error) {
	if r.Kind == KindView {
		return r.viewLives()
	}
	if r.Pid >= 0 {
		if runs, err := r.ProcessRuns(); runs || err != nil || !r.SharedPID {
			return runs, err
		}
	}
	// gVisor reports no process, and without a PID namespace other processes than the
	// first may run. The bundle exists as long as the container does.
	_, err := os.Stat(r.Bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ProcessRuns reports whether the record's process still runs and is the same process. An
// error means that it cannot tell.
func (r Record) ProcessRuns() (bool, error) {
	start, err := proc.StartTime(r.Pid)
	if proc.IsGone(err) {
		return false, nil
	}
	return err == nil && start == r.PidStart, err
}

// IDs returns the IDs of containers that have a record.
func (d *Dir) IDs() ([]string, error) {
	all, err := d.containers.Names()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range all {
		if id, ok := strings.CutSuffix(name, ".json"); ok && !strings.HasPrefix(name, ".") {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
