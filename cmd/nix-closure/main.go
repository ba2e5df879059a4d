// SPDX-License-Identifier: Apache-2.0

// Nix-closure is the operator's command line. The hook calls it to read Nix's
// database.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
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

Exit status: 0, or 1 after an error, which is one line on standard error; 3 where
that is a store path that is not valid.`,
		Version:           version.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&configPath, "config", config.Path, "the configuration")
	root.AddCommand(resolveCommand(&configPath), gcCommand(&configPath), doctorCommand(&configPath), installCommand())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "nix-closure: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		if errors.Is(err, closure.ErrNotValid) {
			return closure.ExitNotValid
		}
		return 1
	}
	return 0
}
