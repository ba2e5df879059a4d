// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/launch"
	"github.com/nix-closure/nix-closure/internal/ociruntime"
	"github.com/nix-closure/nix-closure/internal/program"
	"github.com/nix-closure/nix-closure/spec"
)

// runOptions are the flags of run.
type runOptions struct {
	configPath                           string
	roots                                closureArguments
	volumes, env, capabilities           []string
	workdir, network, user               string
	runtime, mode                        string
	tty, readOnly, registration, writing bool
}

func runCommand(configPath *string) *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run ROOT... [-- CMD [ARG...]]",
		Short: "Run a command in a container with a closure and nothing else",
		Long: `Run a command in a container that has a closure in its /nix/store and nothing else: an
empty root in memory, with /dev, /proc, /sys and /tmp, and no network. There is no image
and no engine: runc or crun runs it, with the same hook as any container with a
nix-closure annotation. An ordinary user may do it too.

A ROOT is a store path, or a link to one. A CMD without a slash is looked for in the
roots' bin/, which are its PATH. Without a CMD, the only program of the first root runs.

Exit status: the command's; 128 and the number of a signal that ended it; 127 where it is
not found, 126 where it cannot be executed or the container is refused, 125 after any
other error.`,
		Example: `  nix-closure run ./result
  nix-closure run ./result -- hello --greeting=hi
  nix-closure run --tty /nix/store/…-bash-5.2 /nix/store/…-coreutils-9.1 -- bash
  nix-closure run --network host --volume .:/src --workdir /src ./result -- make`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.configPath = *configPath
			roots, command := splitAtDash(cmd, args)
			status, err := o.run(cmd, roots, command)
			if err != nil {
				status = cmp.Or(status, program.ExitStatus(err))
			}
			return &statusError{status, err}
		},
	}
	o.roots.register(c, configPath)
	f := c.Flags()
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "SOURCE:DESTINATION[:ro], a file or directory of the host that "+
		"the container has too; may be repeated")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE, or NAME for the value that it has here; may be repeated")
	f.StringVarP(&o.workdir, "workdir", "w", "/", "the working directory; made if it is missing")
	f.BoolVarP(&o.tty, "tty", "t", false, "a terminal of the command's own; standard input must be one")
	f.StringVar(&o.network, "network", "none", "none or host")
	f.StringVarP(&o.user, "user", "u", "0:0", "UID or UID:GID")
	f.BoolVar(&o.readOnly, "read-only", false, "the root is read-only; /tmp and /dev are not")
	f.StringSliceVar(&o.capabilities, "cap-add", nil, "a capability beside the usual ones, or all")
	f.BoolVar(&o.registration, "registration", false, "Nix in the container has a database of the closure")
	f.BoolVar(&o.writing, "writable", false, "store paths may be added in the container, in memory; as root only")
	f.StringVar(&o.mode, "mode", "", "overlay, bind or auto; empty: as the configuration says")
	f.StringVar(&o.runtime, "runtime", "", "runc, crun or an absolute path; empty: as the configuration says")
	return c
}

// run runs the container. An ordinary user comes here twice: the second time as root of a
// user namespace.
func (o runOptions) run(cmd *cobra.Command, roots, command []string) (status int, _ error) {
	c, container, err := o.container(cmd)
	if err != nil {
		return 0, err
	}
	names, err := o.roots.parseRoots(cmd, c.Store(), roots)
	if err != nil {
		return 0, err
	}
	if err := launch.BecomeRoot(container.User != launch.User{}); err != nil {
		return 0, err
	}
	resolved, err := closureOf(cmd.Context(), c, names)
	if err != nil {
		return 0, err
	}
	paths := storePaths(c.Store(), names)
	if len(command) == 0 {
		only, err := program.Only(paths[0])
		if err != nil {
			return 0, err
		}
		command = []string{only}
	} else if path, err := program.Find(c.StoreDir, paths, command[0]); err == nil &&
		program.InClosure(c.StoreDir, resolved.Names, path) {
		command[0] = path
	} else if err != nil {
		return 0, err
	} else {
		return 0, fmt.Errorf("%s: %w in the closure", path, program.ErrNotFound)
	}
	container.Args = command
	container.Env = append([]string{"PATH=" + program.Path(paths), "HOME=/"}, container.Env...)
	container.Annotations[spec.Prefix+spec.KeyRoots] = strings.Join(paths, ":")
	status, err = container.Run(c.Rootless)
	var failed *launch.NotStartedError
	if errors.As(err, &failed) {
		status, err = program.ExitCannotRun, nil // the runtime has said why
		if failed.NotFound() {
			status = program.ExitNotFound
		} else if said := hookSaid(c.LogFile, failed.ID); said != "" && !strings.Contains(failed.Reason, said) {
			err = errors.New(said)
		}
	}
	return status, err
}

// container is what the flags say.
func (o runOptions) container(cmd *cobra.Command) (config.Config, launch.Container, error) {
	container := launch.Container{
		Dir: o.workdir, Terminal: o.tty, ReadOnly: o.readOnly, Annotations: map[string]string{},
		HookArgs: []string{"--config", o.configPath},
	}
	c, err := config.Read(o.configPath)
	if err != nil {
		return c, container, fmt.Errorf("reading the configuration: %w", err)
	}
	if container.Runtime, err = ociruntime.Lookup(cmp.Or(o.runtime, c.Runtime)); err != nil {
		return c, container, err
	}
	self, err := os.Executable()
	if err != nil {
		return c, container, err
	}
	container.Hook = filepath.Join(filepath.Dir(self), "nix-closure-hook")
	if _, err := os.Stat(container.Hook); err != nil {
		return c, container, fmt.Errorf("the hook must be installed beside this program: %w", err)
	}
	container.Scratch = c.RuntimeDir + "-run"
	switch o.network {
	case "none":
	case "host":
		container.HostNetwork = true
	default:
		return c, container, usage(cmd, "--network %s: neither none nor host", o.network)
	}
	if !filepath.IsAbs(o.workdir) {
		return c, container, usage(cmd, "--workdir %s: not an absolute path", o.workdir)
	}
	if mode := spec.Mode(o.mode); mode != "" && !mode.Valid() {
		return c, container, usage(cmd, "--mode %q: not one of auto, overlay, bind", o.mode)
	} else if mode != "" {
		container.Annotations[spec.Prefix+spec.KeyMode] = o.mode
	}
	for key, wanted := range map[string]bool{spec.KeyRegistration: o.registration, spec.KeyWritable: o.writing} {
		if wanted {
			container.Annotations[spec.Prefix+key] = strconv.FormatBool(true)
		}
	}
	return c, container, o.parseLists(cmd, &container)
}

// parseLists reads the flags that have a form of their own.
func (o runOptions) parseLists(cmd *cobra.Command, c *launch.Container) (err error) {
	if c.User, err = launch.ParseUser(o.user); err != nil {
		return usage(cmd, "--user %w", err)
	}
	for _, text := range o.volumes {
		v, err := launch.ParseVolume(text)
		if err != nil {
			return usage(cmd, "--volume %w", err)
		}
		c.Volumes = append(c.Volumes, v)
	}
	if o.tty {
		term, ok := os.LookupEnv("TERM")
		if !ok {
			term = "xterm" // as podman
		}
		c.Env = append(c.Env, "TERM="+term)
	}
	for _, text := range o.env {
		variable, err := launch.ParseEnv(text)
		if err != nil {
			return usage(cmd, "--env %w", err)
		}
		c.Env = append(c.Env, variable)
	}
	for _, text := range o.capabilities {
		names, err := launch.ParseCapability(text)
		if err != nil {
			return usage(cmd, "--cap-add %w", err)
		}
		c.Capabilities = append(c.Capabilities, names...)
	}
	slices.Sort(c.Capabilities)
	c.Capabilities = slices.Compact(c.Capabilities)
	return nil
}

// logTail is how much of the log is looked at for what the hook said a moment ago.
const logTail = 64 << 10

// hookSaid is the last error of the hook in its log that is of a container, or nothing. Not
// every runtime shows it.
func hookSaid(logFile, id string) string {
	f, err := os.Open(logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > logTail {
		if _, err := f.Seek(-logTail, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	said := ""
	for line := range bytes.Lines(text) {
		var l struct{ Level, Container, Msg string }
		if json.Unmarshal(line, &l) == nil && l.Level == "error" && l.Container == id {
			said = strings.TrimPrefix(l.Msg, "nix-closure: ")
		}
	}
	return said
}
