// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
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

// Record is what the host remembers of one container, in
// containers/<id>.json of the runtime directory. It is written before anything
// is attached, so that a hook that is killed leaves nothing unknown.
type Record struct {
	ID string `json:"id"`
	// Kind is what the record is of; empty: a container.
	Kind Kind `json:"kind,omitempty"`
	// Mount is of a view on a directory of the host; nil: a container, or a view that is
	// being made.
	Mount  *HostMount `json:"mount,omitempty"`
	Bundle string     `json:"bundle"`
	// Stated is what the runtime said in place of Bundle, and may say when the container
	// ends; empty: the same. The bundle may be lost to the runtime.
	Stated   string `json:"stated,omitempty"`
	Pid      int    `json:"pid"`
	PidStart uint64 `json:"pidStart"` // clock ticks since boot (proc_pid_stat(5), starttime)
	// SharedPID: the container has no PID namespace of its own, so the end of its
	// first process does not end the others.
	SharedPID    bool               `json:"sharedPID,omitempty"`
	Roots        []closure.BaseName `json:"roots,omitempty"`
	ClosureInfo  closure.BaseName   `json:"closureInfo,omitempty"`
	Mode         spec.Mode          `json:"mode"`
	Writable     bool               `json:"writable,omitempty"`
	Request      string             `json:"request"`                // all that was asked for
	Digest       string             `json:"digest"`                 // empty: not resolved yet
	View         string             `json:"view,omitempty"`         // name in views/; empty: none
	Registration string             `json:"registration,omitempty"` // name in registrations/; empty: none
	GCRoots      string             `json:"gcRoots"`                // directory
	Created      time.Time          `json:"created"`
	Attached     bool               `json:"attached"` // all of it
}

// sameContainer tells whether two records are of one container.
func (r Record) sameContainer(other Record) bool {
	return r.ID == other.ID && r.Bundle == other.Bundle && r.Pid == other.Pid && r.PidStart == other.PidStart
}

func (d *Dir) recordFile(id string) string { return d.containers.Name() + "/" + id + ".json" }

// writeRecord writes a record that a reader sees whole or not at all. Hold the lock
// of its ID. It is not synced: nothing in the runtime directory outlives a boot.
func (d *Dir) writeRecord(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := d.containers.Name() + "/" + temporaryRecord(r.ID)
	return atomicfile.WriteBy(d.recordFile(r.ID), temporary, append(text, '\n'))
}

// temporaryRecord is the name under which a record is written. The lock of the ID
// keeps others from writing it, and from sweeping it.
func temporaryRecord(id string) string { return "." + id + ".json" }

// errDamaged says that a record cannot be understood, so that nobody knows what it
// is of.
var errDamaged = errors.New("damaged record")

// Record returns the record of a container; ok is false where there is none.
// For a damaged one it fails with errDamaged.
func (d *Dir) Record(id string) (_ Record, ok bool, _ error) {
	path := d.recordFile(id)
	text, err := proc.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	var r Record
	err = json.Unmarshal(text, &r)
	if err == nil && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		err = errors.New("not a JSON object") // null is no error for the decoder
	}
	if err != nil {
		return Record{}, false, fmt.Errorf("%w %s: %w", errDamaged, path, err)
	}
	r.ID = id // the file's name is what locks, GC roots and use marks go by
	return r, true, nil
}

// forget removes what is kept for a container: its GC roots first, so that a
// record is there as long as anything else is. What the container used of views
// and registrations counts from now on as unused. Hold the lock of its ID.
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

// live tells whether a container may still run. An error says that nobody can tell:
// then keep what the record is of.
func (r Record) live() (bool, error) {
	if r.Kind == KindView {
		return r.viewLives()
	}
	if r.Pid >= 0 {
		if runs, err := r.ProcessRuns(); runs || err != nil || !r.SharedPID {
			return runs, err
		}
	}
	// gVisor says no process, and without a PID namespace others than the first may
	// run. The bundle goes with the container.
	_, err := os.Stat(r.Bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ProcessRuns tells whether the process of the record is still the same and
// running. An error says that nobody can tell.
func (r Record) ProcessRuns() (bool, error) {
	start, err := proc.StartTime(r.Pid)
	if proc.IsGone(err) {
		return false, nil
	}
	return err == nil && start == r.PidStart, err
}

// IDs are the ids of containers that have a record.
func (d *Dir) IDs() ([]string, error) {
	all, err := names(d.containers)
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
