// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// engines are those that install knows.
var engines = []string{"podman", "containerd", "cri-o", "docker"}

func installCommand() *cobra.Command {
	var o installOptions
	c := &cobra.Command{
		Use:   "install {podman|containerd|cri-o|docker}",
		Short: "Put the hook into an engine's configuration, or take it out",
		Long: `Put the hook into an engine's configuration, or take it out again.

podman gets hook files, and a containers.conf.d file where it would not read
them; containerd, Docker and CRI-O get nix-closure-runtime as a runtime, CRI-O
hook files too. Wherever the engine reads a directory of files, install adds a
file to it. The diff is printed.

No file is replaced that install did not write, and of one that others wrote
(containerd's config.toml, Docker's daemon.json) every other byte stays. What
was there before is remembered in /etc/nix-closure/installed, and --uninstall
brings it back, byte for byte. Installing twice changes nothing.

The programs that it names are those beside this one. An ordinary user can
install for their own rootless podman.`,
		Example: `  nix-closure install --dry-run podman
  nix-closure install podman
  nix-closure install --uninstall podman`,
		ValidArgs: engines,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.install(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "print the diff, and change nothing")
	c.Flags().BoolVar(&o.asDefault, "set-as-default", false, "make nix-closure-runtime the runtime of containers that "+
		"name none")
	c.Flags().StringVar(&o.config, "config", "", "the engine's configuration `file`, if not the one that it is "+
		"running with or its usual one")
	c.Flags().BoolVar(&o.uninstall, "uninstall", false, "bring back what was there before")
	c.MarkFlagsMutuallyExclusive("uninstall", "set-as-default")
	c.MarkFlagsMutuallyExclusive("uninstall", "config")
	return c
}

type installOptions struct {
	dryRun, asDefault, uninstall bool
	config                       string
}

func (o installOptions) install(ctx context.Context, engine string, out, errs io.Writer) error {
	user, records, err := whose()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 && engine != "podman" {
		return fmt.Errorf("the configuration of %s is root's: run as root", engine)
	}
	var plan engineconfig.Plan
	if o.uninstall {
		plan, err = records.Undo(engine)
	} else {
		plan, err = o.plan(ctx, engine, user)
		if err == nil {
			err = records.Check(&plan)
		}
	}
	// Also where it cannot be done: so that it can be done by hand.
	if _, writeErr := io.WriteString(out, plan.Diff()); err != nil || writeErr != nil {
		return errors.Join(err, writeErr)
	}
	said := func(format string, args ...any) {
		_, _ = fmt.Fprintf(errs, "nix-closure: "+format+"\n", args...)
	}
	for _, note := range plan.Notes {
		said("%s", note)
	}
	if len(plan.Changes) == 0 && !o.uninstall {
		said("%s: nothing to change", engine)
		return nil
	}
	if o.dryRun {
		return nil
	}
	if o.uninstall {
		err = records.ApplyUndo(plan)
	} else {
		err = records.Apply(plan)
	}
	if err != nil {
		return fmt.Errorf("%w; `nix-closure install --uninstall %s` brings back what was changed", err, engine)
	}
	if len(plan.Changes) > 0 && restarts[engine] != "" {
		said("to have it in force: %s", restarts[engine])
	}
	return nil
}

// restarts are the commands after which engines read their configuration anew.
var restarts = map[string]string{
	"containerd": engineconfig.RestartContainerd,
	"cri-o":      engineconfig.RestartCRIO,
	"docker":     engineconfig.ReloadDocker,
}

func (o installOptions) plan(
	ctx context.Context, engine string, user engineconfig.PodmanUser,
) (plan engineconfig.Plan, _ error) {
	programs, err := programsDir()
	if err != nil {
		return plan, err
	}
	switch engine {
	case "podman":
		return engineconfig.PlanPodman(user, programs, o.config, o.asDefault)
	case "containerd":
		return engineconfig.PlanContainerd(ctx, programs, o.config, o.asDefault)
	case "cri-o":
		return engineconfig.PlanCRIO(programs, o.config, o.asDefault)
	default:
		return engineconfig.PlanDocker(programs, o.config, o.asDefault)
	}
}

// programsDir is where this program and those beside it are.
func programsDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(self)
	var missing []string
	for _, name := range []string{engineconfig.HookProgram, engineconfig.RuntimeProgram} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%s not beside this program, in %s; install all programs into one directory",
			strings.Join(missing, " and "), dir)
	}
	return dir, nil
}

// whose is the podman of the user who runs this program, and where install remembers
// what it did for that user.
func whose() (user engineconfig.PodmanUser, records engineconfig.Records, _ error) {
	// As podman reads them; this is a person's command and not the hook.
	user.Conf, _ = os.LookupEnv("CONTAINERS_CONF")
	user.Override, _ = os.LookupEnv("CONTAINERS_CONF_OVERRIDE")
	if os.Geteuid() == 0 {
		return user, engineconfig.SystemRecords, nil
	}
	dir, ok := os.LookupEnv("XDG_CONFIG_HOME")
	if !ok || dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return user, "", err
		}
		dir = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(dir) {
		return user, "", errors.New("XDG_CONFIG_HOME is not an absolute path")
	}
	user.ConfigDir = filepath.Join(dir, "containers")
	return user, engineconfig.Records(filepath.Join(dir, "nix-closure/installed")), nil
}
