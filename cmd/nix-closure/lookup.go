// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
)

// lookUp returns the closure of roots from Nix's database or, where that cannot be read,
// from Nix's own program. Unlike resolve it remembers nothing, and so needs no runtime
// directory.
func lookUp(ctx context.Context, c config.Config, roots []closure.BaseName) (closure.Closure, error) {
	names, err := closureNames(ctx, c, roots)
	if err != nil {
		return closure.Closure{}, err
	}
	return closure.New(c.Store(), names), nil
}

func closureNames(ctx context.Context, c config.Config, roots []closure.BaseName) ([]closure.BaseName, error) {
	snapshot, unreadable := nixdb.Open(ctx, c.Store())
	if unreadable == nil {
		defer func() { _ = snapshot.Close() }()
		names, err := snapshot.Closure(ctx, roots, c.MaxPaths)
		if err == nil || !snapshot.Changed() {
			return names, err
		}
		unreadable = err
	}
	names, err := closure.NixStore{Program: c.NixStore, Store: c.Store()}.Closure(ctx, roots, c.MaxPaths)
	return names, noAnswer(unreadable, err)
}

// noAnswer is the error of nix-store, which was asked because the database could not be
// read. What it says of the store needs no explanation.
func noAnswer(unreadable, err error) error {
	var notValid *closure.NotValidError
	var tooLarge *closure.TooLargeError
	if err == nil || errors.As(err, &notValid) || errors.As(err, &tooLarge) {
		return err
	}
	return fmt.Errorf("%w; nix-store cannot answer either: %w", unreadable, err)
}

// lookUpGraph is lookUp, with what each path references and how large it is.
func lookUpGraph(ctx context.Context, c config.Config, roots []closure.BaseName) (*graph, error) {
	resolved, err := lookUp(ctx, c, roots)
	if err != nil {
		return nil, err
	}
	infos, err := nixInfos(ctx, c, resolved)
	if err != nil {
		return nil, err
	}
	return newGraph(infos, roots), nil
}

// readConfig reads the configuration of a command.
func readConfig(path string) (config.Config, error) {
	c, err := config.Read(path)
	if err != nil {
		return c, fmt.Errorf("reading the configuration: %w", err)
	}
	return c, nil
}

// closureOf is lookUp, and remembers the closure: the hook will ask for it.
func closureOf(ctx context.Context, c config.Config, roots []closure.BaseName) (closure.Closure, error) {
	dir, err := state.Open(c)
	if err != nil {
		return closure.Closure{}, fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer dir.Close()
	cache := closure.Cache{Dir: dir.Closures, Store: c.Store()}
	_, resolved, err := askAndLoad(ctx, c, cache, closure.Query{Roots: roots})
	return resolved, err
}
