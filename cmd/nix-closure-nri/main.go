// SPDX-License-Identifier: Apache-2.0

// Nix-closure-nri is an NRI plugin for containerd and CRI-O: it adds
// nix-closure-hook to the containers that ask for a closure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/version"
)

const usage = `Usage: nix-closure-nri [OPTION]...

An NRI plugin for containerd and CRI-O: adds nix-closure-hook to the containers
that have a nix-closure annotation, and takes out of their mounts what the closure
takes the place of. A container with a mount that leaks the store is refused.

It runs until SIGTERM, and connects again when the engine restarts.

`

const examples = `
Examples:
  nix-closure-nri
  nix-closure-nri --http 127.0.0.1:9440     # /healthz and /metrics
  nix-closure-nri --hook /opt/nix-closure/bin/nix-closure-hook --host
`

type options struct {
	config, hook, socket, name, index, http, gvisor string
	host                                            bool
}

func main() { os.Exit(run()) }

// run returns the exit status.
func run() int {
	var o options
	f := flag.NewFlagSet("nix-closure-nri", flag.ContinueOnError)
	f.StringVar(&o.config, "config", config.Path, "the configuration, which the hook reads too")
	f.StringVar(&o.hook, "hook", "", "absolute path of nix-closure-hook on the host (default: beside this program)")
	f.StringVar(&o.socket, "socket", "/var/run/nri/nri.sock", "the engine's NRI socket")
	f.StringVar(&o.name, "name", "nix-closure", "the plugin's name, as required_plugins has it")
	f.StringVar(&o.index, "index", "90", "the plugin's place among others, two digits")
	f.StringVar(&o.http, "http", "", "loopback address and port for /healthz and /metrics (default: none)")
	f.StringVar(&o.gvisor, "gvisor", "runsc,gvisor", "runtime handlers that are gVisor, "+
		"which takes the hook at another stage")
	f.BoolVar(&o.host, "host", false, "run in the host's mount namespace: "+
		"for a container with the host's PID namespace")
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
		fmt.Println("nix-closure-nri", version.Version)
		return 0
	case f.NArg() > 0:
		fmt.Fprintf(os.Stderr, "nix-closure-nri: %q: takes no arguments; see --help\n", f.Args())
		return 2
	}
	if err := o.start(); err != nil {
		fmt.Fprintf(os.Stderr, "nix-closure-nri: %v\n", err)
		return 1
	}
	return 0
}

func (o options) start() error {
	if o.host {
		if err := reexecInHostMountNamespace(); err != nil {
			return fmt.Errorf("joining the host's mount namespace: %w", err)
		}
	}
	if o.hook == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.hook = filepath.Join(filepath.Dir(self), "nix-closure-hook")
	}
	if err := unix.Access(o.hook, unix.X_OK); err != nil || !filepath.IsAbs(o.hook) {
		return fmt.Errorf("--hook %q is not the absolute path of a program here; "+
			"install nix-closure-hook and name it", o.hook)
	}
	if _, err := config.Read(o.config); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	log := logrus.New() // to standard error
	p := &plugin{config: o.config, hook: o.hook, gvisor: strings.Split(o.gvisor, ","), log: log, metrics: newMetrics()}
	if o.http != "" {
		server, err := p.serve(ctx, o.http)
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
	}
	return p.stay(ctx, o)
}

// stay connects, and again whenever the connection ends. To try costs next to nothing,
// and an engine that is back and does not require the plugin starts containers without
// it: so it is tried often.
func (p *plugin) stay(ctx context.Context, o options) error {
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for {
		began := time.Now()
		err := p.connect(ctx, o)
		if errors.Is(ctx.Err(), context.Canceled) {
			p.log.Info("plugin stopped")
			return nil //nolint:nilerr // asked to
		}
		if time.Since(began) > longest {
			pause = shortest
		}
		if pause < longest {
			p.log.WithFields(logrus.Fields{"socket": o.socket, "error": err.Error()}).Warn("not connected")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}
