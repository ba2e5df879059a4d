// SPDX-License-Identifier: Apache-2.0

// Nix-closure is the operator's command line. The hook calls it to read Nix's
// database.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/version"
)

func main() {
	var configPath string
	root := &cobra.Command{
		Use:   "nix-closure",
		Short: "Look at what containers with a nix-closure annotation see",
		Long: `Look at what containers with a nix-closure annotation see.

The containers themselves are served by nix-closure-hook.`,
		Version:           version.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&configPath, "config", config.Path, "the configuration")
	root.AddCommand(resolveCommand(&configPath))
	if err := root.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "nix-closure: %v\n", err)
		os.Exit(1)
	}
}
