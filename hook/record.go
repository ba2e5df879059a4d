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
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

// Record is what the host remembers of one container, in
// containers/<id>.json of the runtime directory. It is written before anything
// is attached, so that a hook that is killed leaves nothing unknown.
type Record struct {
	ID     string `json:"id"`
	Bundle string `json:"bundle"`
	// Stated is what the runtime said in place of Bundle, and may say when the container
	// ends; empty: the same. See locate.
	Stated   string `json:"stated,omitempty"`
	Pid      int    `json:"pid"`
	PidStart uint64 `json:"pidStart"` // clock ticks since boot (proc_pid_stat(5), starttime)
	// SharedPID: the container has no PID namespace of its own, so the end of its
	// first process does not end the others.
	SharedPID   bool               `json:"sharedPID,omitempty"`
	Roots       []closure.BaseName `json:"roots,omitempty"`
	ClosureInfo closure.BaseName   `json:"closureInfo,omitempty"`
	Mode        spec.Mode          `json:"mode"`
	Writable    bool               `json:"writable,omitempty"`
	Request     string             `json:"request"`                // all that was asked for, see requestText
	Digest      string             `json:"digest"`                 // empty: not resolved yet
	View        string             `json:"view,omitempty"`         // name in views/; empty: none
	Database    string             `json:"registration,omitempty"` // name in registrations/; empty: none
	GCRoots     string             `json:"gcRoots"`                // directory
	Created     time.Time          `json:"created"`
	Attached    bool               `json:"attached"` // all of it
}

// sameContainer tells whether two records are of one container.
func (r Record) sameContainer(other Record) bool {
	return r.ID == other.ID && r.Bundle == other.Bundle && r.Pid == other.Pid && r.PidStart == other.PidStart
}

func (d *RuntimeDir) recordFile(id string) string { return d.Containers.Name() + "/" + id + ".json" }

// writeRecord writes a record that a reader sees whole or not at all. Hold the lock
// of its ID. It is not synced: nothing in the runtime directory outlives a boot.
func (d *RuntimeDir) writeRecord(r Record) (Err error) {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// Without package os, whose files ask the poller first: that is six more
	// system calls for each file. Nobody but this user can change the directory.
	temporary := d.Containers.Name() + "/" + temporaryRecord(r.ID)
	fd, err := unix.Open(temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: temporary, Err: err}
	}
	defer func() {
		if Err != nil {
			_ = unix.Unlink(temporary)
		}
	}()
	text = append(text, '\n')
	n, err := unix.Write(fd, text)
	if err == nil && n < len(text) {
		err = unix.ENOSPC
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: temporary, Err: err}
	}
	err = unix.Renameat(unix.AT_FDCWD, temporary, unix.AT_FDCWD, d.recordFile(r.ID))
	return os.NewSyscallError("renameat "+temporary, err)
}

// temporaryRecord is the name under which a record is written. The lock of the ID
// keeps others from writing it, and from sweeping it.
func temporaryRecord(id string) string { return "." + id + ".json" }

// errDamaged says that a record cannot be understood, so that nobody knows what it
// is of.
var errDamaged = errors.New("damaged record")

// readRecord returns the record of a container; ok is false where there is none.
// For a damaged one it fails with errDamaged.
func (d *RuntimeDir) readRecord(id string) (_ Record, ok bool, _ error) {
	path := d.recordFile(id)
	text, err := readFile(path)
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

// readFile reads a small file with three system calls, see writeRecord.
func readFile(path string) ([]byte, error) { return readFileAt(unix.AT_FDCWD, path) }

// readFileAt is readFile for a path relative to an open directory.
func readFileAt(dir int, path string) ([]byte, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if text = text[:len(text)+n]; n == 0 || len(text) < cap(text) {
			// What is not full is the end: the files are regular ones, or of
			// /proc and smaller than a page.
			return text, nil
		}
		text = append(text, make([]byte, len(text))...)[:len(text)]
	}
}

// forget removes what is kept for a container: its GC roots first, so that a
// record is there as long as anything else is. What the container used of views
// and registrations counts from now on as unused. Hold the lock of its ID.
func (d *RuntimeDir) forget(store closure.Store, r Record) error {
	err := errors.Join(
		d.gcRoots(store).Remove(r.ID),
		d.release(d.Views, r.View, r.ID),
		d.release(d.Registrations, r.Database, r.ID),
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
	if r.Pid >= 0 {
		if runs, err := r.processRuns(); runs || err != nil || !r.SharedPID {
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

// processRuns tells whether the process of the record is still the same and
// running. An error says that nobody can tell.
func (r Record) processRuns() (bool, error) {
	start, err := startTime(r.Pid)
	if isGone(err) {
		return false, nil
	}
	return err == nil && start == r.PidStart, err
}

// isGone tells whether an error of startTime says that the process has ended: it is
// not there, or it ended between opening and reading.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// initProcess is the container's process, found from inside its mount namespace,
// where /proc is still the host's: of the processes that this one descends from,
// the oldest in that namespace. It is -1 where that cannot be seen: a record with
// another process of the namespace would end with that process.
func initProcess() int {
	pid, process := -1, "self"
	for {
		fields, err := statFields(process)
		if err != nil {
			return -1
		}
		if fields[1] == "0" {
			return pid
		}
		process = fields[1]
		same, err := sameNamespace("self", process)
		if errors.Is(err, fs.ErrPermission) {
			// It has more privileges than this process, which no process of
			// the container has.
			return pid
		}
		if err != nil {
			return -1
		}
		if !same {
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

// procDir is where the processes are.
var procDir = "/proc"

// statFields are the fields of a process's stat (proc_pid_stat(5)) from the third
// on: state is 0, ppid 1, num_threads 17, starttime 19.
func statFields(process string) ([]string, error) {
	path := procDir + "/" + process + "/stat"
	text, err := readFile(path)
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
