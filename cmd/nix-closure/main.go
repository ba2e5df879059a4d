// SPDX-License-Identifier: Apache-2.0

// Nix-closure is the command line tool of the operator. The hook calls it to read Nix's
// database.
//
// Each command has a file of its own. What they share: usage.go (exit statuses and the
// form of an error), arguments.go (closure arguments and their completion), lookup.go
// (who is asked about the store), graph.go (what references what, and sizes),
// mentions.go (the files in which references stand), screen.go (columns and colour).
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	return report(os.Stderr, rootCommand().ExecuteContext(ctx))
}

// manCommand is there with the build tag man, for make: what it links would add a tenth
// to the start of a program that the hook waits for.
var manCommand func() *cobra.Command

func rootCommand() *cobra.Command {
	var configPath string
	root := &cobra.Command{
		Use:   "nix-closure",
		Short: "Resolve closures for containers and clean up after them",
		Long: `Resolve closures for containers with a nix-closure annotation, and clean up
after them.

nix-closure-hook serves the containers themselves.

ROOT and PATH are closure arguments: a store path, a path below one, which means that
store path, or a link to one, such as ./result, a profile or /run/current-system. The
option --print-roots prints on standard error what each argument became.

Exit status: 0; 1 after an error, which is one line on standard error; 2 for a wrong
command line; 3 for a store path that is not valid. verify has its own.

Environment: NO_COLOR turns colour off; COLUMNS is the width of tables on a terminal.
If standard output is not a terminal, there is no colour and nothing is shortened.`,
		Version:           version.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              knownCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&configPath, "config", config.Path, "the configuration `file`")
	root.AddCommand(resolveCommand(&configPath), whyCommand(&configPath), diffCommand(&configPath),
		exportCommand(&configPath), inspectCommand(&configPath), verifyCommand(&configPath), gcCommand(&configPath),
		viewCommand(&configPath), cdiCommand(&configPath), runCommand(&configPath), confineCommand(&configPath),
		doctorCommand(&configPath), installCommand())
	if manCommand != nil {
		root.AddCommand(manCommand())
	}
	markUsage(root)
	return root
}
