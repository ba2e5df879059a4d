// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

// Record is what the host remembers of one container, in
// containers/<id>.json of the runtime directory. It is written before anything
// is attached, so that a hook that is killed leaves nothing unknown.
type Record struct {
	ID          string             `json:"id"`
	Bundle      string             `json:"bundle"`
	Pid         int                `json:"pid"`
	PidStart    uint64             `json:"pidStart"` // clock ticks since boot (proc_pid_stat(5), starttime)
	Roots       []closure.BaseName `json:"roots,omitempty"`
	ClosureInfo closure.BaseName   `json:"closureInfo,omitempty"`
	Mode        spec.Mode          `json:"mode"`
	Writable    bool               `json:"writable,omitempty"`
	Digest      string             `json:"digest"`                 // empty: not resolved yet
	View        string             `json:"view,omitempty"`         // name in views/; empty: none
	Database    string             `json:"registration,omitempty"` // name in registrations/; empty: none
	GCRoots     string             `json:"gcRoots"`                // directory
	Created     time.Time          `json:"created"`
	Attached    bool               `json:"attached"` // all of it
}

func (d *RuntimeDir) writeRecord(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return closure.WriteFile(d.Containers, r.ID+".json", append(text, '\n'))
}

// claim makes the first record of a container. Of two containers with the same id
// that start at the same time, of two engines, one fails.
func (d *RuntimeDir) claim(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := "." + r.ID + "." + rand.Text()
	if err := d.Containers.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return err
	}
	// Unlike a rename, it fails where there is one.
	err = d.Containers.Link(temporary, r.ID+".json")
	if errors.Is(err, fs.ErrExist) {
		err = errors.New("another container with this id is being started at this moment; give one of them another name")
	}
	return errors.Join(err, d.Containers.Remove(temporary))
}

// readRecord returns the record of a container; ok is false where there is none.
// One that is damaged is of nobody.
func (d *RuntimeDir) readRecord(id string) (_ Record, ok bool, _ error) {
	text, err := d.Containers.ReadFile(id + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	var r Record
	if json.Unmarshal(text, &r) != nil {
		r = Record{}
	}
	return r, true, nil
}

// forget removes what is kept for a container: its GC roots first, so that a
// record is there as long as anything else is. What the container used of views
// and registrations counts from now on as unused.
func (d *RuntimeDir) forget(store closure.Store, r Record) error {
	if err := errors.Join(d.gcRoots(store).Remove(r.ID), d.release(d.Views, r.View, r.ID), d.release(d.Registrations, r.Database, r.ID)); err != nil {
		return err
	}
	if err := d.Containers.Remove(r.ID + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// live tells whether the process of the record is still the same and running.
func (r Record) live() bool {
	if r.Pid < 0 {
		// gVisor does not say; its bundle goes with the container.
		_, err := os.Stat(r.Bundle)
		return !errors.Is(err, fs.ErrNotExist)
	}
	start, err := startTime(r.Pid)
	return err == nil && start == r.PidStart
}

// initProcess is the container's process, found from inside its mount namespace,
// where /proc is still the host's: of the processes that this one descends from,
// the oldest in that namespace. It is -1 where that cannot be seen.
func initProcess() int {
	pid, process := -1, "self"
	for {
		fields, err := statFields(process)
		if err != nil || fields[1] == "0" {
			return pid
		}
		process = fields[1]
		if same, err := sameNamespace("self", process); err != nil || !same {
			return pid
		}
		if pid, err = strconv.Atoi(process); err != nil {
			return -1
		}
	}
}

// startTime tells a process from a later one with the same number. Of one that
// ended, and is there only for its parent to see how, it says so.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(strconv.Itoa(pid))
	if err != nil {
		return 0, err
	}
	// Where only the first thread has ended, the others are the process.
	if fields[0] == "X" || fields[0] == "Z" && fields[17] == "1" {
		return 0, fmt.Errorf("process %d: %w: it has ended", pid, fs.ErrNotExist)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// statFields are the fields of a process's stat (proc_pid_stat(5)) from the third
// on: state is 0, ppid 1, num_threads 17, starttime 19.
func statFields(process string) ([]string, error) {
	path := "/proc/" + process + "/stat"
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	// The second is the program's name in parentheses, which may have anything
	// in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("%s: not understood", path)
	}
	return fields, nil
}
