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
	"github.com/nix-closure/nix-closure/internal/config"
)

func gcCommand(configPath *string) *cobra.Command {
	var dryRun, asJSON bool
	var unused time.Duration
	c := &cobra.Command{
		Use:   "gc",
		Short: "Remove what containers left that are gone",
		Long: `Remove what containers left that are gone: records whose process has ended,
with their GC roots, and views and registrations that no container uses. Nothing
of a container that runs or is being prepared is removed, and nothing of the
store: that is for nix-collect-garbage, which may take what had such a GC root.

The hook does the same, some at a time, when containers start and end. By hand it
is of use after many were killed, or to see what there is. It prints what it
removes, a line each.`,
		Example: `  nix-closure gc --dry-run
  nix-closure gc --unused-for 0s       # also what was used a moment ago
  nix-closure gc --json | jq '.records | length'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if unused < 0 {
				return usage(cmd, "--unused-for is less than nothing")
			}
			// Also after an error, what was removed is said.
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
	c.Flags().DurationVar(&unused, "unused-for", state.UnusedFor, "how long views and registrations stay that no "+
		"container uses")
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
	return dir.Sweep(ctx, unused, dryRun)
}
