// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func named(name string) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + name)
}

// host is a host in a directory.
type host struct {
	dir   string
	store closure.Store
}

func newHost(t *testing.T) host {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	h := host{dir: dir, store: closure.Store{Dir: dir + "/nix/store", StateDir: dir + "/nix/var/nix"}}
	must(t, os.MkdirAll(h.store.Path(named("hello")), 0o755), os.MkdirAll(h.store.StateDir+"/gcroots", 0o755))
	return h
}

// newDir opens the host's runtime directory, with the limits of the configuration if one
// is given.
func newDir(t *testing.T, h host, limits ...config.Config) *Dir {
	t.Helper()
	var c config.Config
	for _, l := range limits {
		c = l
	}
	c.RuntimeDir, c.StoreDir, c.StateDir = h.dir+"/run", h.store.Dir, h.store.StateDir
	d, err := Open(c)
	must(t, err)
	t.Cleanup(d.Close)
	return d
}
