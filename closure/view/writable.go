// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// writable is an overlay with an upper layer in memory. What the container adds, changes
// or removes is in that layer, and ends with the container.
type writable struct {
	overlay
	store   closure.Store
	closure closure.Closure
	layer   Layer
	options Options
	size    int64
	owner   Owner
}

// NewWritable is NewOverlay with an upper layer: a tmpfs of size bytes, whose store
// directory owner owns. The container cannot write to the layers or to the host's store,
// because the kernel copies a file up before anybody can write to it. The memory counts
// for the container, whose processes write it.
//
// Attach makes the overlay: the kernel accepts an upper layer only if it is mounted, and
// the tmpfs is mounted nowhere except, for a moment, on the target.
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

// Attach makes the overlay and attaches the layer's opaque directory. It finds the
// runtime directory and the store directory by name in the target's mount namespace. That
// namespace shows the host's files, except for what the runtime mounted in the
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
	// The kernel drops features that the upper layer's file system does not support, and
	// reports that only in its log.
	if err := w.Check(w.store, w.closure); err != nil {
		return err
	}
	return w.overlay.Attach(target)
}

// fill makes the directories that overlay needs, and a store directory with Nix's mode,
// owned by owner. This directory covers the layer's and merges with its entries.
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

// Close closes the open files, if Attach was called.
func (w *writable) Close() error {
	if w.mount == nil {
		return nil
	}
	return w.overlay.Close()
}
