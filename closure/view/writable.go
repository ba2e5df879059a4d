// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// writable is an overlay with an upper layer in memory: what the container adds,
// changes or removes is there, and gone with the container.
type writable struct {
	overlay
	store   closure.Store
	closure closure.Closure
	layer   Layer
	options Options
	size    int64
	owner   Owner
}

// NewWritable is NewOverlay with an upper layer, a tmpfs of a size in bytes of
// which the store directory belongs to owner. Neither the layers nor the host's
// store can be reached for writing: the kernel copies a file up before it lets
// anybody write to it. The memory is the container's, whose processes write it.
//
// It is made by Attach: the kernel takes a layer only where it is mounted, and
// the tmpfs is mounted nowhere but, for a moment, on the target.
func NewWritable(store closure.Store, c closure.Closure, l Layer, o Options, size int64, owner Owner) View {
	return &writable{
		overlay: overlay{writable: true}, store: store, closure: c, layer: l, options: o, size: size, owner: owner,
	}
}

// upper and work are the directories of the tmpfs.
const (
	upper = "upper"
	work  = "work"
)

// Attach makes the overlay and attaches the layer's opaque directory. The
// runtime directory and the store directory are found by name in the target's
// mount namespace, which is the host's but for what the runtime mounted in the
// container's root.
func (w *writable) Attach(target *os.File) (Err error) {
	tmpfs, err := newSizedTmpfs(w.size, 0, 0o700, Options{})
	if err != nil {
		return err
	}
	defer tmpfs.Close()
	if err := w.fill(tmpfs); err != nil {
		return err
	}
	// Nothing of the container runs yet.
	if err := moveMount(int(tmpfs.Fd()), target, ""); err != nil {
		return err
	}
	if err := setPrivate(tmpfs); err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/self/fd/%d/", tmpfs.Fd())
	w.mount, err = mountOverlay(w.store, w.layer, w.options,
		option{"upperdir", dir + upper}, option{"workdir", dir + work})
	if err := errors.Join(err, Detach(tmpfs)); err != nil {
		return err
	}
	// The kernel does without what the upper layer's file system cannot do, and
	// only says so in its log.
	if err := w.Check(w.store, w.closure); err != nil {
		return err
	}
	return w.overlay.Attach(target)
}

// fill makes what overlay needs, and a store directory as Nix has it, but for
// its owner. It covers the layer's, and merges with what is in that.
func (w *writable) fill(tmpfs *os.File) error {
	dir := int(tmpfs.Fd())
	store := upper + "/" + shown
	for _, name := range []string{upper, work, store} {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
	}
	if err := unix.Fchownat(dir, store, w.owner.UID, w.owner.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if err := unix.Fchmodat(dir, store, w.options.writableMode(), 0); err != nil {
		return os.NewSyscallError("fchmodat", err)
	}
	return setTimes(dir, store, unix.Timespec{Sec: 1})
}

// writableMode is the mode of a store directory to which its owner may write.
func (o Options) writableMode() uint32 {
	if o.Listed {
		return unix.S_ISVTX | 0o775
	}
	return unix.S_ISVTX | 0o331
}

// Close releases what was opened, if Attach was called.
func (w *writable) Close() error {
	if w.mount == nil {
		return nil
	}
	return w.overlay.Close()
}
