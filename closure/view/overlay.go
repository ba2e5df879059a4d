// SPDX-License-Identifier: Apache-2.0

package view

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/samefile"
)

// overlay is a closure as one mount. Each container gets its own overlay, even for the
// same closure. An overlay has its own inodes, so neither inotify nor file locks reach
// from one container to another.
type overlay struct {
	mount *os.File // the whole overlay
	tree  *os.File // the attached part
	// writable: the overlay has an upper layer, see NewWritable.
	writable bool
}

// NewOverlay makes an overlay of a layer over the store directory. The overlay belongs to
// the calling thread's user namespace, which must be the initial one: in another one, the
// kernel ignores the layer's attributes. An error that another mode may avoid wraps
// ErrUnsupported.
func NewOverlay(store closure.Store, l Layer, o Options) (View, error) {
	mount, err := mountOverlay(store, l, o)
	if err != nil {
		return nil, err
	}
	return &overlay{mount: mount}, nil
}

// mountOverlay makes the overlay. upper has additional options.
func mountOverlay(store closure.Store, l Layer, o Options, upper ...option) (*os.File, error) {
	mount, err := newMount("overlay", o.labelled(append([]option{
		// Both layers are in one string, because lowerdir+ came with Linux 6.8. Neither
		// path has a character with a meaning here, see package config.
		{"lowerdir", Lower(filepath.Dir(l.path), filepath.Base(l.path), store)},
		{"redirect_dir", "on"},
		{"metacopy", "on"},
	}, upper...)...))
	for _, e := range []error{unix.EINVAL, unix.EPERM, unix.ENODEV, unix.EOPNOTSUPP, unix.ELOOP} {
		if errors.Is(err, e) {
			return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return mount, err
}

// Attach attaches the layer's opaque directory. It never leaves the root of the overlay
// attached, because the root shows the whole store.
func (o *overlay) Attach(target *os.File) error {
	clone := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	tree, err := unix.OpenTree(int(o.mount.Fd()), shown, clone)
	if errors.Is(err, unix.EINVAL) {
		// Before Linux 6.15 only an attached mount can be cloned. No process of the
		// container runs yet, so nobody sees the overlay's root.
		if err := moveMount(int(o.mount.Fd()), target, ""); err != nil {
			return err
		}
		tree, err = unix.OpenTree(int(o.mount.Fd()), shown, clone)
		if detach := Detach(o.mount); detach != nil {
			if err == nil {
				unix.Close(tree)
			}
			return detach
		}
	}
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	o.tree = os.NewFile(uintptr(tree), "overlay/"+shown)
	if err := moveMount(tree, target, ""); err != nil {
		return err
	}
	if o.writable {
		return errors.Join(setPrivate(o.tree), setWritable(o.tree))
	}
	return seal(o.tree)
}

// Shows compares dir with the layer's opaque directory in the overlay.
func (o *overlay) Shows(dir *os.File) (bool, error) {
	if o.tree == nil {
		return false, nil
	}
	return samefile.Open(dir, o.tree)
}

func (o *overlay) Close() error {
	if o.tree != nil {
		_ = o.tree.Close()
	}
	return o.mount.Close()
}

// Check compares the view with the store, before the view is attached. It verifies that
// the kernel followed the layer's attributes. In an overlay that it does not trust, the
// kernel leaves directories empty and files without content.
func (o *overlay) Check(store closure.Store, c closure.Closure) error {
	storeDir, err := os.OpenFile(store.Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer storeDir.Close()
	var directory, file bool
	for _, name := range c.Names {
		st, err := statPath(storeDir, name)
		if err != nil {
			return fmt.Errorf("%s: %w", store.Path(name), err)
		}
		kind := st.Mode & unix.S_IFMT
		if (kind == unix.S_IFDIR && !directory) || (kind == unix.S_IFREG && !file) {
			want, err := content(storeDir, string(name))
			if err != nil {
				return fmt.Errorf("%s: %w", store.Path(name), err)
			}
			if want == "" {
				continue // an empty entry proves nothing
			}
			got, err := content(o.mount, shown+"/"+string(name))
			if err != nil {
				return fmt.Errorf("%s: %w", store.Path(name), err)
			}
			if got != want {
				return fmt.Errorf("%w: %s shows without its content: "+
					"the kernel does not follow the layer's attributes", ErrUnsupported, store.Path(name))
			}
			directory, file = directory || kind == unix.S_IFDIR, file || kind == unix.S_IFREG
		}
		if directory && file {
			break
		}
	}
	return nil
}

// content returns the first bytes of a file, or the sorted names in a directory.
func content(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if errors.Is(err, unix.EISDIR) {
		names, err := f.Readdirnames(-1)
		slices.Sort(names)
		return strings.Join(names, "/"), err
	}
	if err != nil {
		return "", os.NewSyscallError("read", err)
	}
	return string(buf[:n]), nil
}
