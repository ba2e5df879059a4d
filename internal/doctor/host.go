// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/spec"
)

// kernel looks at its version: the calls by which views are made came with Linux 5.12.
func (e *exam) kernel() {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		e.unknown("", "the kernel's version", err)
		return
	}
	release := unix.ByteSliceToString(name.Release[:])
	e.fact("kernel", release)
	if before(release, 5, 12) {
		e.find(Finding{
			ID: "kernel", Severity: Closed, What: "Linux " + release + " is older than 5.12",
			Consequence: "no container with an annotation starts", Advice: "run a later kernel",
		})
	}
}

// fileSystems are those whose files cannot have what an overlay's layer needs, or not
// from this host.
var fileSystems = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "NFS", unix.V9FS_MAGIC: "9p",
	unix.FUSE_SUPER_MAGIC: "FUSE", unix.MSDOS_SUPER_MAGIC: "FAT", 0x858458f6: "ramfs",
}

// runtimeDir looks at the runtime directory as the hook does. It need not exist: the
// hook makes it.
func (e *exam) runtimeDir() {
	dir := e.config.RuntimeDir
	closed := func(id, what string, fix ...string) {
		e.find(Finding{
			ID: id, Severity: Closed, What: what, Consequence: "no container with an annotation starts", Fix: fix,
		})
	}
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir = existing(dir)
	case err != nil:
		e.unknown("", "the runtime directory", err)
		return
	case info.Mode()&fs.ModeSymlink != 0:
		closed("runtime-dir", dir+" is a symbolic link", "rm "+quote(dir))
		return
	case !info.IsDir():
		closed("runtime-dir", dir+" is no directory", "rm "+quote(dir))
		return
	default:
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && int(st.Uid) != os.Geteuid() {
			closed("runtime-dir-owner", fmt.Sprintf("%s belongs to user %d, not to user %d who runs the hook",
				dir, st.Uid, os.Geteuid()), fmt.Sprintf("chown %d %s", os.Geteuid(), quote(dir)))
		}
		if info.Mode().Perm()&0o077 != 0 {
			closed("runtime-dir-mode", fmt.Sprintf("%s can be entered or written by others (mode %04o)", dir,
				info.Mode().Perm()), "chmod 0700 "+quote(dir))
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.unknown("", "the runtime directory's file system", err)
		return
	}
	e.fact("runtime directory", fmt.Sprintf("%s, on a file system of kind %#x", e.config.RuntimeDir, st.Type))
	if st.Flags&unix.ST_RDONLY != 0 {
		closed("runtime-dir-read-only", "the file system of "+e.config.RuntimeDir+" is read-only",
			"mount -o remount,rw "+quote(mountPoint(dir)))
	}
	if kind := fileSystems[st.Type]; kind != "" && e.config.Mode != spec.ModeBind && !e.config.Rootless {
		f := Finding{
			ID: "runtime-dir-file-system", Severity: Warning,
			What: fmt.Sprintf("%s is on a file system (%s) that may not hold an overlay's layer",
				e.config.RuntimeDir, kind),
			Consequence: "views are made by a bind mount for each store path, which takes longer",
			Advice:      "put runtime-dir on a tmpfs, in " + e.Config,
		}
		if e.config.Mode == spec.ModeOverlay {
			f.Severity, f.Consequence = Closed, "no container with an annotation starts: mode is overlay"
		}
		e.find(f)
	}
	e.logFile()
}

// logFile looks at where the hook writes why it refused.
func (e *exam) logFile() {
	path := e.config.LogFile
	dir := filepath.Dir(path)
	below := strings.HasPrefix(path, e.config.RuntimeDir+"/") // which the hook makes
	if info, err := os.Stat(dir); !below && (err != nil || !info.IsDir()) {
		e.find(Finding{
			ID: "log-dir", Severity: Warning, What: "the directory of the log, " + dir + ", is not there",
			Consequence: "why a container was refused is written nowhere, and crun before 1.9 does not show it",
			Fix:         []string{"mkdir -p " + quote(dir)},
		})
		return
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o022 != 0 {
		e.find(Finding{
			ID: "log-mode", Severity: Warning,
			What:        fmt.Sprintf("others can write to the log %s (mode %04o)", path, info.Mode().Perm()),
			Consequence: "what it says may be anybody's",
			Fix:         []string{"chmod go-w " + quote(path)},
		})
	}
}

// existing is the directory, or the first above it that is there.
func existing(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// mountPoint is where what a directory is on is mounted.
func mountPoint(dir string) string {
	for dir != "/" {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, dir, 0, 0, &st)
		if err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 { // Linux 5.8
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// views makes a view of each kind, in a mount namespace that ends with it: of one store
// path, with its layer on a tmpfs.
func (e *exam) views(ctx context.Context) {
	if e.config.Rootless || os.Geteuid() != 0 {
		e.fact("views", "by bind mounts: rootless")
		return
	}
	store := e.config.Store()
	base, err := anyPath(store)
	if err != nil {
		return // package store says so
	}
	one := closure.New(store, []closure.BaseName{base})
	var overlay, bind error
	err = mntns.OnOwnThread(func() (err error) {
		overlay, bind, err = e.tryViews(ctx, store, one)
		return err
	})
	overlay, bind = errors.Join(overlay, err), errors.Join(bind, err)
	if err := bind; err != nil {
		e.find(Finding{
			ID: "view-bind", Severity: Closed, What: "a view by bind mounts cannot be made: " + oneLine(err),
			Consequence: "containers with mode bind do not start",
			Advice:      "run this with CAP_SYS_ADMIN, outside of containers",
		})
	}
	if err := overlay; err != nil && e.config.Mode != spec.ModeBind {
		f := Finding{
			ID: "view-overlay", Severity: Warning, What: "a view by an overlay cannot be made: " + oneLine(err),
			Consequence: "views are made by a bind mount for each store path, which takes longer",
			Fix:         []string{"modprobe overlay"},
		}
		if has, err := os.ReadFile("/proc/filesystems"); err == nil && strings.Contains(string(has), "\toverlay\n") {
			f.Fix, f.Advice = nil, "write mode = \"bind\" into "+e.Config+", or see why in the kernel's log"
		}
		if e.config.Mode == spec.ModeOverlay {
			f.Severity, f.Consequence = Closed, "no container with an annotation starts: mode is overlay"
		}
		e.find(f)
	}
	if overlay == nil && bind == nil {
		e.fact("views", "overlay and bind can be made")
	}
}

func (e *exam) tryViews(ctx context.Context, store closure.Store, c closure.Closure) (overlay, bind, _ error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, nil, err
	}
	const work = "/run"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, err
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "mode=0700"); err != nil {
		return nil, nil, err
	}
	options := view.Options{Listed: true}
	attach := func(name string, v view.View) (Err error) {
		defer func() { Err = errors.Join(Err, v.Close()) }()
		if err := unix.Mkdir(name, 0o700); err != nil {
			return err
		}
		target, err := os.Open(name)
		if err != nil {
			return err
		}
		defer target.Close()
		return errors.Join(v.Attach(target), v.Check(store, c))
	}
	overlay = func() error {
		if err := unix.Mkdir(work+"/views", 0o700); err != nil {
			return err
		}
		views := owndir.At(work + "/views")
		defer views.Close()
		layer, err := view.EnsureLayer(ctx, views, store, c, options)
		if err != nil {
			return err
		}
		v, err := view.NewOverlay(store, layer, options)
		if err != nil {
			return err
		}
		return attach(work+"/overlay", v)
	}()
	bind = func() error {
		v, err := view.NewBind(store, c, options)
		if err != nil {
			return err
		}
		return attach(work+"/bind", v)
	}()
	return overlay, bind, nil
}

// anyPath is the name of some store path.
func anyPath(store closure.Store) (closure.BaseName, error) {
	dir, err := os.Open(store.Dir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(100)
		for _, name := range names {
			if base, err := closure.ParseBaseName(name); err == nil {
				return base, nil
			}
		}
		if err != nil {
			return "", err
		}
	}
}
