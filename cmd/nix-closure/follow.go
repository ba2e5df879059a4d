// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
)

// mostLinks bounds how many symbolic links lead to a store path, as the kernel does for
// a path (path_resolution(7)).
const mostLinks = 40

// followRoot returns the store path that an argument is, is below of, or leads to by
// symbolic links: ./result, a profile. The person who types it is trusted. A store path
// that is itself a link is not followed.
func followRoot(store closure.Store, arg string) (closure.BaseName, error) {
	base, notInStore := store.Parse(arg)
	if notInStore == nil {
		return base, nil
	}
	path, err := filepath.Abs(arg)
	if err != nil {
		return "", err
	}
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if base, err := store.Parse(next); err == nil {
			return base, nil
		}
		st, err := os.Lstat(next)
		if err != nil {
			return "", fmt.Errorf("%s: %w", arg, err)
		}
		if st.Mode().Type() != os.ModeSymlink {
			at = next
			continue
		}
		if links++; links > mostLinks {
			return "", fmt.Errorf("%s: more than %d symbolic links", arg, mostLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if strings.HasPrefix(arg, store.Dir) {
		return "", notInStore // what is wrong with it as a store path
	}
	return "", fmt.Errorf("%s leads to %s, which is no store path; name a store path, or a link to one", arg, at)
}

// followRoots is followRoot for each argument, each store path once.
func followRoots(store closure.Store, args []string) ([]closure.BaseName, error) {
	var roots []closure.BaseName
	known := map[closure.BaseName]bool{}
	for _, arg := range args {
		base, err := followRoot(store, arg)
		if err != nil {
			return nil, err
		}
		if !known[base] {
			known[base] = true
			roots = append(roots, base)
		}
	}
	return roots, nil
}

// closureOf resolves roots, and remembers what it found.
func closureOf(ctx context.Context, c config.Config, roots []closure.BaseName) (closure.Closure, error) {
	dir, err := state.Open(c)
	if err != nil {
		return closure.Closure{}, fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer dir.Close()
	memo := closure.Memo{Dir: dir.Closures, Store: c.Store()}
	_, resolved, err := askAndLoad(ctx, c, memo, closure.Query{Roots: roots})
	return resolved, err
}
