// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/proc"
)

// Kind is what a record is of.
type Kind string

// KindView is the kind of a view on a directory of the host. It lives as long as its
// mount, and not as long as a process.
const KindView Kind = "view"

// HostMount is the mount of a view on a directory of the host: how to find it again
// among all mounts, and how to see that it is gone.
type HostMount struct {
	Target string `json:"target"` // absolute, without symbolic links
	ID     int    `json:"id"`     // proc_pid_mountinfo(5), mount ID
	Device string `json:"device"` // major:minor
	Namespaces
}

// Namespaces are where a mount is, and where the processes are seen that may have it.
type Namespaces struct {
	Mount string `json:"mountNamespace"` // as namespaces(7) has the links in /proc/PID/ns
	PID   string `json:"pidNamespace"`
	Boot  string `json:"boot"`
}

// OwnNamespaces are those of this process.
func OwnNamespaces() (n Namespaces, err error) {
	n.Boot = closure.Boot()
	if n.Mount, err = os.Readlink(proc.Dir + "/self/ns/mnt"); err == nil {
		n.PID, err = os.Readlink(proc.Dir + "/self/ns/pid")
	}
	return n, err
}

// viewPrefix begins the ID of each view on the host. No container of runc has a colon in
// its ID.
const viewPrefix = "view:"

// HostViewID is the ID of the view on a directory: the same directory in another mount
// namespace is another.
func HostViewID(target string, in Namespaces) string {
	sum := sha256.Sum256([]byte(in.Mount + "\x00" + target))
	return viewPrefix + hex.EncodeToString(sum[:8])
}

// viewLives tells whether a view of the host is being made or is mounted. An error says
// that nobody can tell.
func (r Record) viewLives() (bool, error) {
	if runs, err := r.ProcessRuns(); runs && !r.Attached || err != nil {
		return true, err
	}
	if r.Mount == nil {
		return false, nil
	}
	return r.Mount.There()
}

// checkGone refuses to take the place of what a record is of, while that lives.
func (r Record) checkGone(file string) error {
	live, err := r.live()
	switch {
	case err != nil:
		return fmt.Errorf("cannot tell whether the view of an earlier call is still mounted: %w; remove %s when it "+
			"is not", err, file)
	case live && r.Mount != nil:
		return fmt.Errorf("a view is mounted on %s; take it off first, with `nix-closure view umount %[1]s`",
			r.Mount.Target)
	case live:
		return fmt.Errorf("process %d has this ID and is being prepared", r.Pid)
	}
	return nil
}

// There tells whether the mount is still there, on whatever directory. An error says
// that nobody can tell from here.
func (m *HostMount) There() (bool, error) {
	own, err := OwnNamespaces()
	if err != nil {
		return false, err
	}
	if own.Boot != m.Boot {
		return false, nil
	}
	if own.Mount == m.Mount {
		return m.seenBy("self")
	}
	if own.PID != m.PID {
		return false, errors.New("it was mounted by a process that cannot be seen from this PID namespace")
	}
	processes, err := os.ReadDir(proc.Dir)
	if err != nil {
		return false, err
	}
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil {
			continue // no process
		}
		its, err := os.Readlink(proc.Dir + "/" + process.Name() + "/ns/mnt")
		if proc.IsGone(err) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return false, err
		}
		if its != m.Mount {
			continue
		}
		// A process in another root directory does not list all mounts.
		there, err := m.seenBy(process.Name())
		if there || err != nil && !proc.IsGone(err) {
			return there, err
		}
	}
	// A mount namespace ends with its last process.
	return false, nil
}

// seenBy tells whether a process has the mount in its list.
func (m *HostMount) seenBy(process string) (bool, error) {
	text, err := proc.ReadMountinfo(proc.Dir + "/" + process + "/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime …
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == strconv.Itoa(m.ID) && f[2] == m.Device {
			return true, nil
		}
	}
	return false, nil
}

// HostView is the record of a view on the host, and whether it is there.
type HostView struct {
	Record
	State string // ViewMounted, ViewGone, ViewUnknown
}

// What can be said of a view on the host.
const (
	ViewMounted = "mounted"
	ViewGone    = "gone"    // its record is for the next sweep
	ViewUnknown = "unknown" // from here
)

// HostViews are the views on directories of the host, in any order.
func (d *Dir) HostViews() ([]HostView, error) {
	ids, err := d.IDs()
	if err != nil {
		return nil, err
	}
	var views []HostView
	var errs []error
	for _, id := range ids {
		if !strings.HasPrefix(id, viewPrefix) {
			continue
		}
		r, ok, err := d.Record(id)
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil || !ok || r.Kind != KindView || r.Mount == nil {
			continue
		}
		v := HostView{r, ViewGone}
		switch live, err := r.live(); {
		case err != nil:
			v.State = ViewUnknown
		case live:
			v.State = ViewMounted
		}
		views = append(views, v)
	}
	return views, errors.Join(errs...)
}

// EndView forgets a view on the host whose mount is gone.
func (d *Dir) EndView(ctx context.Context, id string) error {
	lock, err := d.lockID(ctx, id)
	if err != nil {
		return err
	}
	defer lock.release()
	r, ok, err := d.Record(id)
	if err != nil || !ok {
		return err
	}
	if err := r.checkGone(d.recordFile(id)); err != nil {
		return err
	}
	return d.forget(r)
}
