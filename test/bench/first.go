// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/test/speed"
)

// What other tools have to do.
const (
	layerEach = "a layer with an entry for each file"
	nixCopy   = "nix copy into an image"
)

// filesEach is how many files a store path has in the closures whose files count: some
// programs of Debian have fewer, and a package of nixpkgs more.
const filesEach = 15

// filesClosure is a closure of store paths with several files each, made once.
func (b *bench) filesClosure() (root string, paths []string, err error) {
	if b.filesPaths == nil {
		b.progress.show("making a closure of %d files", usualPaths*filesEach)
		if b.filesRoot, b.filesPaths, err = b.host.store.Files(usualPaths, filesEach); err != nil {
			return "", nil, err
		}
	}
	return b.filesRoot, b.filesPaths, nil
}

// measureFirst times the first start of a closure of which the host has its store paths
// and nothing else, with one runtime.
func measureFirst(b *bench, budget time.Duration) error {
	h := b.host
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	root, paths, err := b.filesClosure()
	if err != nil {
		return err
	}
	row := func(variant string) speed.Row {
		return speed.Row{Group: "first", What: "first start of a closure", Variant: variant, Paths: usualPaths,
			Runtime: s.runtime.name, Unit: "ms", Of: whole}
	}
	wholeBundle := s.dir(whole, 0, "true")
	ground := func() (float64, error) { return s.time(wholeBundle) }
	plain := &subject{row: row(whole), run: ground}
	plain.row.Of = ""
	all := []*subject{plain}
	for variant, mode := range map[string]string{overlayCold: "overlay", "bind, first start": "bind"} {
		c := h.closure(usualPaths, mode, h.cold)
		c.annotations["nix-closure/roots"] = root
		dir := s.dir("files "+mode, usualPaths, "true")
		if err := c.write(dir, "/bin/true"); err != nil {
			return err
		}
		all = append(all, &subject{row: row(variant), beside: ground, run: func() (float64, error) {
			if err := h.cold.forget(); err != nil {
				return 0, err
			}
			return s.time(dir)
		}})
	}
	layer := filepath.Join(h.dir, "layer")
	lower := "lowerdir=" + filepath.Join(layer, "store") + ":" + storeDir
	layered := bundle{root: h.image, mounts: []mount{
		{Destination: storeDir, Type: "overlay", Source: "overlay",
			Options: []string{"ro", lower, "redirect_dir=follow", "metacopy=on"}},
	}}
	copied := filepath.Join(h.dir, "copied")
	copies := bundle{root: h.image, mounts: []mount{{Destination: storeDir, Type: "none", Source: copied + storeDir,
		Options: []string{"rbind", "ro"}}}}
	for _, w := range []struct {
		variant string
		bundle  bundle
		dir     string
		make    func() error
	}{
		{variant: layerEach, bundle: layered, dir: layer, make: func() error { return layerOfFiles(layer, paths) }},
		{variant: nixCopy, bundle: copies, dir: copied, make: func() error {
			_, err := output("nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to",
				copied, root)
			return err
		}},
	} {
		dir := s.dir(w.variant, usualPaths, "true")
		if err := w.bundle.write(dir, "/bin/true"); err != nil {
			return err
		}
		all = append(all, &subject{row: row(w.variant), beside: ground, run: func() (float64, error) {
			if err := os.RemoveAll(w.dir); err != nil {
				return 0, err
			}
			began := time.Now()
			if err := w.make(); err != nil {
				return 0, err
			}
			made := milliseconds(time.Since(began))
			took, err := s.time(dir)
			return made + took, err
		}})
	}
	return errors.Join(b.measure(all, budget), os.RemoveAll(layer), os.RemoveAll(copied))
}

// layerOfFiles makes a layer of an overlay that has each file of the closure by itself, as
// a tool has to that knows no store paths. It takes no digest of any content: composefs
// has that to do too.
func layerOfFiles(layer string, paths []string) error {
	top := filepath.Join(layer, "store")
	if err := os.MkdirAll(top, 0o755); err != nil {
		return err
	}
	if err := unix.Setxattr(top, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return err
	}
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return layerEntry(filepath.Join(top, strings.TrimPrefix(path, storeDir)), path, e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func layerEntry(to, path string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	switch {
	case e.IsDir():
		return os.Mkdir(to, 0o755)
	case e.Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	fd, err := unix.Open(to, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, uint32(info.Mode().Perm()))
	if err != nil {
		return err
	}
	modified := unix.NsecToTimespec(info.ModTime().UnixNano())
	return errors.Join(
		unix.Ftruncate(fd, info.Size()),
		unix.Fsetxattr(fd, "trusted.overlay.metacopy", nil, 0),
		unix.Fsetxattr(fd, "trusted.overlay.redirect", []byte(strings.TrimPrefix(path, storeDir)), 0),
		unix.Close(fd),
		unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{modified, modified}, 0),
	)
}

// unshared is a command in a mount namespace of its own.
func unshared(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// numbers reads the numbers that a program printed.
func numbers(text string, n int) ([]float64, error) {
	var all []float64
	for field := range strings.FieldsSeq(text) {
		var x float64
		if _, err := fmt.Sscan(field, &x); err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		all = append(all, x)
	}
	if len(all) != n {
		return nil, fmt.Errorf("%q has not %d numbers", text, n)
	}
	return all, nil
}
