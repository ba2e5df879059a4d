// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
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
	Digest      string             `json:"digest"`
	GCRoots     string             `json:"gcRoots"` // directory
	Created     time.Time          `json:"created"`
}

// runtimeDir is the runtime directory with what is in it.
type runtimeDir struct{ containers, closures, views *os.Root }

// openRuntimeDir makes the runtime directory, and refuses one that another user
// could change: what is in it decides what containers see.
func openRuntimeDir(path string) (*runtimeDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	self, err := dir.Stat(".")
	if err != nil {
		return nil, err
	}
	if err := private(path, self); err != nil {
		return nil, err
	}
	var d runtimeDir
	for name, to := range map[string]**os.Root{"containers": &d.containers, "closures": &d.closures, "views": &d.views} {
		sub, err := dir.OpenRoot(name)
		if errors.Is(err, fs.ErrNotExist) {
			if err := dir.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			sub, err = dir.OpenRoot(name)
		}
		if err != nil {
			return nil, err
		}
		*to = sub
	}
	return &d, nil
}

func private(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner cannot be found out", path)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to user %d who runs the hook; remove it", path, st.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be entered or written by others (mode %04o); `chmod 0700 %s`, after a look at who wrote in it", path, info.Mode().Perm(), path)
	}
	return nil
}

func (d *runtimeDir) writeRecord(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return closure.WriteFile(d.containers, r.ID+".json", append(text, '\n'))
}

// readRecord returns the record of a container; ok is false where there is none.
// One that is damaged is of nobody.
func (d *runtimeDir) readRecord(id string) (_ Record, ok bool, _ error) {
	text, err := d.containers.ReadFile(id + ".json")
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
// record is there as long as anything else is.
func (d *runtimeDir) forget(store closure.Store, id string) error {
	if err := closure.RemoveGCRoots(store, id); err != nil {
		return err
	}
	if err := d.containers.Remove(id + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// live tells whether the process of the record is still the same and running.
func (r Record) live() bool {
	if r.Pid < 0 {
		// gVisor does not say; its bundle goes with the container.
		_, err := os.Stat(r.Bundle)
		return err == nil
	}
	start, err := startTime(r.Pid)
	return err == nil && start == r.PidStart
}

// startTime tells a process from a later one with the same number.
func startTime(pid int) (uint64, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, which may have
	// anything in it; starttime is the 22nd.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("%s: not understood", path)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
