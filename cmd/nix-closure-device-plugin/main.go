// SPDX-License-Identifier: Apache-2.0

// Nix-closure-device-plugin is a device plugin for the kubelet. It advertises the named
// closures of a node, which are CDI devices, as resources of the node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/cdi"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/version"
)

const usage = `Usage: nix-closure-device-plugin [OPTION]...

A device plugin for the kubelet. It advertises each named closure of this node, as
written by nix-closure cdi generate, as the resource nix-closure/NAME. A container with
the limit nix-closure/NAME: 1 gets that closure.

It runs until SIGTERM. It needs no privileges: it must be able to read the file of the
closures and Nix's database, and to make sockets in a directory that the kubelet watches.

`

const examples = `
Examples:
  nix-closure-device-plugin
  nix-closure-device-plugin --sockets /var/lib/k0s/kubelet/plugins_registry/nix-closure
`

type options struct {
	config, file, sockets string
	units                 int
}

func main() { os.Exit(run()) }

// run returns the exit status.
func run() int {
	var o options
	f := flag.NewFlagSet("nix-closure-device-plugin", flag.ContinueOnError)
	f.StringVar(&o.config, "config", config.Path, "the configuration, which the hook reads too")
	f.StringVar(&o.file, "file", cdi.Path, "the file of the named closures")
	f.StringVar(&o.sockets, "sockets", "/var/lib/kubelet/plugins_registry/nix-closure",
		"directory for the plugin's sockets, in the kubelet's plugins_registry or below it; made if it is missing")
	f.IntVar(&o.units, "units", defaultUnits, "how many containers of the node can have the same closure at a time")
	showVersion := f.Bool("version", false, "print the version")
	f.Usage = func() {
		_, _ = fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
		_, _ = fmt.Fprint(f.Output(), examples)
	}
	if slices.Contains(os.Args[1:], "--help") || slices.Contains(os.Args[1:], "-h") {
		f.SetOutput(os.Stdout)
	}
	switch err := f.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *showVersion:
		fmt.Println("nix-closure-device-plugin", version.Version)
		return 0
	case f.NArg() > 0:
		fmt.Fprintf(os.Stderr, "nix-closure-device-plugin: %q: takes no arguments; see --help\n", f.Args())
		return 2
	case o.units < 1 || o.units > mostUnits:
		fmt.Fprintf(os.Stderr, "nix-closure-device-plugin: --units %d: not between 1 and %d\n", o.units, mostUnits)
		return 2
	}
	if err := o.start(); err != nil {
		fmt.Fprintf(os.Stderr, "nix-closure-device-plugin: %v\n", err)
		return 1
	}
	return 0
}

func (o options) start() error {
	c, err := config.Read(o.config)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	// The sockets are for the kubelet alone, which is root and can connect to any.
	unix.Umask(0o077)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	p := &plugin{
		source:    source{file: o.file, store: c.Store()},
		units:     o.units,
		dir:       o.sockets,
		log:       logrus.New(), // to standard error
		sure:      time.Now(),
		resources: map[string]*resource{},
		said:      map[string]string{},
	}
	return p.stay(ctx)
}
