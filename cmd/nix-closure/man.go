// SPDX-License-Identifier: Apache-2.0

//go:build man

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/nix-closure/nix-closure/internal/version"
)

func init() { manCommand = writeManPages }

func writeManPages() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write a man page for each command into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true // what is built twice is the same
			return doc.GenManTree(root, &doc.GenManHeader{
				Section: "1", Source: "nix-closure " + version.Version, Manual: "nix-closure",
			}, args[0])
		},
	}
}
