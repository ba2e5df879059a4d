// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/internal/doctor"
	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// errFailsOpen is for the exit status. What is wrong was printed.
var errFailsOpen = errors.New("this host starts containers without their closure, see above")

func doctorCommand(configPath *string) *cobra.Command {
	var o doctor.Options
	var asJSON, verbose bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Find out whether this host would start containers without their closure",
		Long: `Find out whether this host would start containers without their closure, or not
at all: by its kernel, its runtime directory, its store and Nix's database, the
configuration and its policy, and by the configuration of podman, containerd,
CRI-O and Docker as it is in force. It changes nothing.

A finding is a block: what is wrong, what that does, and the commands or the
change that mend it. It is [open] where containers start without their closure,
or somebody can have them start so; [closed] where they do not start; [warning]
and [unknown] otherwise. On a host where all is well nothing is printed.

With --canary, each engine is asked for a container that it must refuse.

Exit status: 1 if a finding is [open], else 0.`,
		Example: `  nix-closure doctor
  nix-closure doctor --verbose --engine podman
  nix-closure doctor --json | grep '"severity": "open"'
  nix-closure doctor --canary --engine podman`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Users, err = podmanUsers(); err != nil {
				return err
			}
			o.Config = *configPath
			report, err := doctor.Examine(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				e.SetEscapeHTML(false)
				err = e.Encode(report)
			} else {
				err = printReport(cmd.OutOrStdout(), report, verbose)
			}
			if err == nil && report.FailsOpen() {
				err = errFailsOpen
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with findings and facts")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "print also what is as it should be")
	c.Flags().BoolVar(&o.Canary, "canary", false, "have each engine start a container that must be refused")
	c.Flags().StringSliceVar(&o.Engines, "engine", nil, "look at these `engines` only")
	c.PreRunE = func(*cobra.Command, []string) error {
		for _, name := range o.Engines {
			if !isEngine(name) {
				return fmt.Errorf("--engine %s: not one of %s", name, strings.Join(engines, ", "))
			}
		}
		return nil
	}
	return c
}

func isEngine(name string) bool {
	for _, e := range engines {
		if e == name {
			return true
		}
	}
	return false
}

// podmanUsers are root, and who calls this: also by sudo.
func podmanUsers() ([]doctor.User, error) {
	own, _, err := whose()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		name := fmt.Sprint("user ", os.Geteuid())
		return []doctor.User{{Name: "root"}, {Name: name, UID: os.Geteuid(), PodmanUser: own}}, nil
	}
	users := []doctor.User{{Name: "root", PodmanUser: own}}
	if id, ok := os.LookupEnv("SUDO_UID"); ok && id != "0" {
		uid, numberErr := strconv.Atoi(id)
		if u, err := user.LookupId(id); err == nil && numberErr == nil && filepath.IsAbs(u.HomeDir) {
			conf := engineconfig.PodmanUser{ConfigDir: filepath.Join(u.HomeDir, ".config/containers")}
			users = append(users, doctor.User{Name: u.Username, UID: uid, PodmanUser: conf})
		}
	}
	return users, nil
}

// printReport prints a block for each finding.
func printReport(out io.Writer, r doctor.Report, verbose bool) error {
	var b strings.Builder
	for i, f := range r.Findings {
		if i > 0 {
			b.WriteByte('\n')
		}
		engine := ""
		if f.Engine != "" {
			engine = f.Engine + ": "
		}
		fmt.Fprintf(&b, "[%s] %s%s\n  %s.\n", f.Severity, engine, f.What, f.Consequence)
		for _, command := range f.Fix {
			fmt.Fprintf(&b, "    %s\n", command)
		}
		if f.Advice != "" {
			fmt.Fprintf(&b, "  To do: %s.\n", f.Advice)
		}
	}
	if verbose {
		if len(r.Findings) > 0 {
			b.WriteByte('\n')
		}
		for _, f := range r.Facts {
			fmt.Fprintf(&b, "[ok] %s: %s\n", f.Subject, f.Text)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}
