// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/internal/settle"
)

// inside tells the child of TestMain that its mount namespace is its own.
const inside = "NIX_CLOSURE_TEST_NAMESPACE"

// TestMain runs the tests in their own mount namespace, so that none of their mounts is
// ever in the host's.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	os.Exit(settle.Run(enter))
}

func enter() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "must be root: the views are real mounts")
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Go makes every mount of the new namespace private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "entering a mount namespace: %v\n", err)
		return 1
	}
	return 0
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func named(name string) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + name)
}

// host is a store, a runtime directory and a place for a container's root.
type host struct {
	store closure.Store
	views *owndir.Dir
	dir   string
}

func newHost(t *testing.T) host {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/store", 0o775), os.Mkdir(dir+"/views", 0o700))
	views := owndir.At(dir + "/views")
	t.Cleanup(views.Close)
	return host{closure.Store{Dir: dir + "/store", StateDir: dir + "/var"}, views, dir}
}

// built is the time that Nix gives to every file.
var built = time.Unix(1, 0)

// file makes a file below the store directory as Nix leaves it.
func (h host) file(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	path = h.store.Dir + "/" + path
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode),
		os.Chtimes(path, built, built))
}

// directory sets the mode and time of a directory below the store directory. Call it
// after making the directory's contents.
func (h host) directory(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	path = h.store.Dir + "/" + path
	must(t, os.MkdirAll(path, 0o755), os.Chmod(path, mode), os.Chtimes(path, built, built))
}

func (h host) link(t *testing.T, path, target string) {
	t.Helper()
	path = h.store.Dir + "/" + path
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path))
	times := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
}

// fill makes one store path of each kind, and others that no closure has.
func (h host) fill(t *testing.T) closure.Closure {
	t.Helper()
	var names []closure.BaseName
	path := func(name string) string {
		names = append(names, named(name))
		return string(named(name))
	}

	dir := path("a-directory")
	h.file(t, dir+"/bin/run", "#!/bin/sh\n", 0o555)
	h.file(t, dir+"/etc/empty", "", 0o444)
	h.file(t, dir+"/share/name with space, comma:colon\\ ä\nand line", "odd", 0o444)
	h.file(t, dir+"/owned", "of 1234", 0o444)
	must(t, os.Chown(h.store.Dir+"/"+dir+"/owned", 1234, 4321))
	h.link(t, dir+"/lib", "../"+string(named("file"))+"/lib")
	h.link(t, dir+"/self", h.store.Dir+"/"+dir)
	h.link(t, dir+"/nowhere", "/nowhere/at/all")
	for _, d := range []string{"/bin", "/etc", "/share", ""} {
		h.directory(t, dir+d, 0o555)
	}
	h.directory(t, path("empty-directory"), 0o555)
	h.directory(t, path("owned-directory"), 0o500)
	must(t, os.Chown(h.store.Dir+"/"+string(named("owned-directory")), 1234, 1234))

	h.file(t, path("file"), "a file\n", 0o444)
	h.file(t, path("program"), "#!/bin/sh\n", 0o555)
	h.file(t, path("empty-file"), "", 0o444)
	h.file(t, path("large-file"), strings.Repeat("0123456789abcde\n", 1<<16), 0o444)
	h.file(t, path("owned-file"), "of 1234", 0o440)
	must(t, os.Chown(h.store.Dir+"/"+string(named("owned-file")), 1234, 4321))
	must(t, os.Chtimes(h.store.Dir+"/"+string(named("owned-file")), time.Unix(0, 0), time.Unix(1700000000, 123456789)))

	h.link(t, path("link"), h.store.Dir+"/"+dir)
	h.link(t, path("relative-link"), string(named("file")))
	h.link(t, path("dangling-link"), "/nowhere/at/all")
	h.link(t, path("owned-link"), "..")
	must(t, os.Lchown(h.store.Dir+"/"+string(named("owned-link")), 1234, 4321))

	h.directory(t, path("name+-._?=Z"), 0o555)
	h.file(t, path(strings.Repeat("n", 211)), "long", 0o444)
	h.directory(t, path("..dots"), 0o555)

	// These are not in the closure.
	h.file(t, string(named("foreign"))+"/secret", "secret", 0o444)
	h.file(t, string(named("file"))+".lock", "", 0o600)
	h.file(t, ".links/0123", "a file\n", 0o444)
	h.link(t, string(named("foreign-link")), "/etc")
	// This has the same name as the layer's own directory.
	h.file(t, shown+"/"+string(named("foreign"))+"/secret", "secret", 0o444)
	return closure.New(h.store, names)
}

// target makes a directory to attach to, and opens it.
func (h host) target(t *testing.T, name string) *os.File {
	t.Helper()
	path := h.dir + "/" + name
	must(t, os.MkdirAll(path, 0o755))
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() {
		f.Close()
		for unix.Unmount(path, unix.MNT_DETACH) == nil {
			continue // up to the last one
		}
	})
	return f
}

// modes are the kinds of view.
var modes = []struct {
	name string
	make func(h host, c closure.Closure, o Options) (View, error)
}{
	{"overlay", func(h host, c closure.Closure, o Options) (View, error) {
		layer, err := EnsureLayer(context.Background(), h.views, h.store, c, o)
		if err != nil {
			return nil, err
		}
		return NewOverlay(h.store, layer, o)
	}},
	{"bind", func(h host, c closure.Closure, o Options) (View, error) { return NewBind(h.store, c, o) }},
}

// eachMode runs a test with each kind of view.
func eachMode(t *testing.T, f func(t *testing.T, mode string,
	newView func(h host, c closure.Closure, o Options) (View, error))) {
	t.Helper()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { f(t, m.name, m.make) })
	}
}

// attach makes a view, attaches it and returns its path.
func attach(t *testing.T, h host, name string, newView func(h host, c closure.Closure, o Options) (View, error),
	c closure.Closure, o Options) (path string, _ View) {
	t.Helper()
	target := h.target(t, name)
	v, err := newView(h, c, o)
	must(t, err)
	t.Cleanup(func() { _ = v.Close() })
	must(t, v.Attach(target))
	return target.Name(), v
}
