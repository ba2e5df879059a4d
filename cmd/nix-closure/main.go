// SPDX-License-Identifier: Apache-2.0

// Nix-closure is the operator's command line. The hook calls it to read Nix's
// database.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/version"
)

func main() { os.Exit(run()) }

// run returns the exit status.
func run() int {
	var configPath string
	root := &cobra.Command{
		Use:   "nix-closure",
		Short: "Look after what containers with a nix-closure annotation see",
		Long: `Look after what containers with a nix-closure annotation see.

The containers themselves are served by nix-closure-hook.

Exit status: 0, or 1 after an error, which is one line on standard error; 2
where that is the command line, 3 where it is a store path that is not valid.`,
		Version:           version.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&configPath, "config", config.Path, "the configuration")
	root.AddCommand(resolveCommand(&configPath), gcCommand(&configPath), viewCommand(&configPath),
		runCommand(&configPath), confineCommand(&configPath))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	return report(os.Stderr, root.ExecuteContext(ctx))
}
