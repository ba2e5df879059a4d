// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/cdi"
	"github.com/nix-closure/nix-closure/internal/config"
)

func gcCommand(configPath *string) *cobra.Command {
	var dryRun, asJSON bool
	var unused time.Duration
	c := &cobra.Command{
		Use:   "gc",
		Short: "Remove what ended containers left behind",
		Long: `Remove what ended containers left behind: records whose process has ended, with
their GC roots, and views and registrations that no container uses. It removes
nothing of a container that runs or is being prepared. GC roots for devices that
somebody removed by hand go too (see cdi). It removes nothing from
the store: nix-collect-garbage does that, and may then delete paths that such a
GC root protected.

The hook does the same in small steps when containers start and end. Run it by
hand after many containers were killed, or to see what there is. It prints one
line for each thing that it removes.`,
		Example: `  nix-closure gc --dry-run
  nix-closure gc --unused-for 0s       # also what was used a moment ago
  nix-closure gc --json | jq '.records | length'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if unused < 0 {
				return usage(cmd, "--unused-for is negative; give 0s or more")
			}
			// Print what was removed, even after an error.
			swept, err := sweep(cmd.Context(), *configPath, unused, dryRun)
			if asJSON {
				return errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(swept))
			}
			for _, list := range []struct {
				kind  string
				names []string
			}{
				{"record", swept.Records}, {"GC roots", swept.GCRoots}, {"view", swept.Views},
				{"registration", swept.Registrations}, {"closure", swept.Closures}, {"cache", swept.Cache},
			} {
				for _, name := range list.names {
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), list.kind, name); err != nil {
						return err
					}
				}
			}
			return err
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be removed, and remove nothing")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with a list for each kind")
	c.Flags().DurationVar(&unused, "unused-for", state.UnusedFor, "how long unused views and "+
		"registrations stay")
	return c
}

func sweep(ctx context.Context, configPath string, unused time.Duration, dryRun bool) (state.Swept, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return state.Swept{}, fmt.Errorf("reading the configuration: %w", err)
	}
	dir, err := state.Open(c)
	if err != nil {
		return state.Swept{}, fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer dir.Close()
	swept, err := dir.Sweep(ctx, unused, dryRun)
	editor, homeless := cdiEditor(c, "")
	if homeless != nil {
		return swept, errors.Join(err, homeless)
	}
	devices, cdiErr := cdi.Sweep(editor.Roots, editor.Nix, dryRun)
	swept.GCRoots = append(swept.GCRoots, devices...)
	return swept, errors.Join(err, cdiErr)
}
