// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
)

func resolveCommand(configPath *string) *cobra.Command {
	var o resolveOptions
	c := &cobra.Command{
		Use:   "resolve [--closure-info] STORE-PATH...",
		Short: "Print the closure of store paths, as a container that asks for them sees it",
		Long: `Print the closure of store paths, as a container that asks for them sees it:
one store path a line, sorted.

This also remembers the closure, so the first container with these roots starts
faster. With --registration, it also makes the Nix database of the closure, which
containers with nix-closure/registration=true get.`,
		Example: `  nix-closure resolve /nix/store/…-hello-2.12
  nix-closure resolve --closure-info /nix/store/…-closure-info
  nix-closure resolve --json "$(readlink -f result)" | jq .paths`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.resolve(cmd.Context(), *configPath, args, cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&o.info, "closure-info", false, "the first store path is the output of nixpkgs' closureInfo; "+
		"the others are more roots")
	c.Flags().BoolVar(&o.registration, "registration", false, "also make the registration")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print the digest, the number of paths and the pins as JSON")
	return c
}

type resolveOptions struct{ info, registration, asJSON bool }

func (o resolveOptions) resolve(ctx context.Context, configPath string, args []string, out io.Writer) error {
	c, err := config.Read(configPath)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	store := c.Store()
	var q closure.Query
	for _, a := range args {
		base, err := store.Parse(a)
		if err != nil {
			return err
		}
		q.Roots = append(q.Roots, base)
	}
	if o.info {
		q = closure.Query{Info: q.Roots[0], Roots: q.Roots[1:]}
	}
	dir, err := state.Open(c)
	if err != nil {
		return fmt.Errorf("opening the runtime directory: %w; run as the user who runs the hook, mostly root", err)
	}
	defer dir.Close()
	memo := closure.Memo{Dir: dir.Closures, Store: store}
	res, resolved, err := askAndLoad(ctx, c, memo, q)
	if err != nil {
		return err
	}
	// Remembered closures take room too. If everything is in use, this is not the place to
	// report it.
	_, _ = dir.MakeRoom(ctx, view.Cost{})
	if o.registration {
		if err := ensureRegistration(ctx, c, dir, q, res, resolved); err != nil {
			return err
		}
	}
	if o.asJSON {
		return json.NewEncoder(out).Encode(res)
	}
	for _, n := range resolved.Names {
		if _, err := fmt.Fprintln(out, store.Path(n)); err != nil {
			return err
		}
	}
	return nil
}

// askAndLoad is ask, and loads the closure. A sweep may remove the remembered closure in
// between.
func askAndLoad(
	ctx context.Context, c config.Config, memo closure.Memo, q closure.Query,
) (closure.Resolution, closure.Closure, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		res, err := ask(ctx, c, memo, q)
		if err != nil {
			return res, closure.Closure{}, err
		}
		resolved, err := memo.Load(res.Digest)
		if !errors.Is(err, fs.ErrNotExist) || attempt == attempts {
			return res, resolved, err
		}
	}
}

// ask asks Nix's database or, if that cannot be read, Nix's own program.
func ask(ctx context.Context, c config.Config, memo closure.Memo, q closure.Query) (closure.Resolution, error) {
	snapshot, unreadable := nixdb.Open(ctx, c.Store())
	if unreadable == nil {
		defer func() { _ = snapshot.Close() }()
		res, err := memo.Resolve(ctx, snapshot, q, c.MaxPaths)
		if err == nil || !snapshot.Changed() {
			return res, err
		}
		unreadable = err
	}
	res, err := memo.Resolve(ctx, closure.NixStore{Program: c.NixStore, Store: c.Store()}, q, c.MaxPaths)
	var notValid *closure.NotValidError
	var tooLarge *closure.TooLargeError
	if err != nil && !errors.As(err, &notValid) && !errors.As(err, &tooLarge) {
		err = fmt.Errorf("%w; nor does nix-store answer: %w", unreadable, err)
	}
	return res, err
}
