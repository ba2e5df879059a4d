// SPDX-License-Identifier: Apache-2.0

// Package engines drives containerd as Kubernetes does: by its Go client and
// by the CRI, with nix-closure-runtime as the runtime and with nix-closure-nri as
// a plugin. containerd, its shim, runc and crun are real, and so is the store. It
// runs as root, in a machine of its own.
package engines

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

var bin = flag.String("bin", "", "absolute path of the directory with the programs, and in stack/ containerd "+
	"and others")

func TestMain(m *testing.M) {
	flag.Parse()
	run := testhost.Run
	if *speedFile != "" {
		run = testhost.RunOnDisk
	}
	os.Exit(run(func() int {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "setting up: %v\n", err)
			return 1
		}
		return m.Run()
	}))
}

// store has the store paths of ../stores/real by attribute.
var store map[string]string

const (
	storeDir   = testhost.StoreDir
	runtimeDir = testhost.RuntimeDir
	gcRoots    = testhost.GCRoots
	logFile    = testhost.LogFile
	configFile = testhost.ConfigFile
)

// What tests of every engine have.
var (
	nothingLeft = testhost.NothingLeft
	leftovers   = testhost.Leftovers
	closureOf   = testhost.ClosureOf
	writeConfig = testhost.WriteConfig
)

func setUp() error {
	if !filepath.IsAbs(*bin) {
		return fmt.Errorf("-bin %q is not an absolute path", *bin)
	}
	var err error
	store, err = testhost.BuildStore()
	return err
}

// names sorts what ls prints.
func names(ls string) []string {
	all := strings.Fields(ls)
	slices.Sort(all)
	return all
}
