// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

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
		Use:   "resolve [--closure-info] ROOT...",
		Short: "Print the closure of store paths, as a container that asks for them sees it",
		Long: `Print the closure of store paths, as a container that asks for them sees it:
one store path per line, sorted.

--sizes says, for each path, how large its NAR is, how large its closure, and how much
it adds: what this closure would not have without the path. The path that adds most is
first. --tree prints each path below one that references it; where it is printed a
second time, [...] stands for what is below it.

The closure is remembered, so that the first container with these roots starts
as fast as the second. With --registration, so is the Nix database of it that a
container with nix-closure/registration=true gets.

--json prints one object: digest; paths, their number; pins, the base names of the
store paths that keep the closure from the garbage collector; since, when it was first
resolved, in nanoseconds since 1970. With --sizes or --tree it also has storePaths, a
list of objects with path, narSize, closureSize, addedSize and references.`,
		Example: `  nix-closure resolve /nix/store/…-hello-2.12
  nix-closure resolve --sizes /run/current-system
  nix-closure resolve --tree ./result
  nix-closure resolve --closure-info /nix/store/…-closure-info
  nix-closure resolve --json --print-roots ./result | jq .paths`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.resolve(cmd, *configPath, args) },
	}
	o.roots.register(c, configPath)
	c.Flags().BoolVar(&o.info, "closure-info", false, "the first ROOT is the output of nixpkgs' closureInfo; "+
		"others are added")
	c.Flags().BoolVar(&o.registration, "registration", false, "make the registration too")
	c.Flags().BoolVar(&o.sizes, "sizes", false, "print sizes too")
	c.Flags().BoolVar(&o.tree, "tree", false, "print what references what")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print one JSON object")
	return c
}

type resolveOptions struct {
	roots                                   closureArguments
	info, registration, sizes, tree, asJSON bool
}

func (o resolveOptions) resolve(cmd *cobra.Command, configPath string, args []string) error {
	ctx := cmd.Context()
	c, err := readConfig(configPath)
	if err != nil {
		return err
	}
	store := c.Store()
	var q closure.Query
	if q.Roots, err = o.roots.parse(cmd, store, args); err != nil {
		return err
	}
	if o.info {
		q = closure.Query{Info: q.Roots[0], Roots: q.Roots[1:]}
	}
	dir, err := state.Open(c)
	if err != nil {
		return fmt.Errorf("opening the runtime directory: %w; run as the user who runs the hook, mostly root", err)
	}
	defer dir.Close()
	cache := closure.Cache{Dir: dir.Closures, Store: store}
	res, resolved, err := askAndLoad(ctx, c, cache, q)
	if err != nil {
		return err
	}
	// The cache takes room too. If entries in use take all of it, this command is not the
	// place to report that.
	_, _ = dir.MakeRoom(ctx, view.Cost{})
	if o.registration {
		if err := ensureRegistration(ctx, c, dir, q, res, resolved); err != nil {
			return err
		}
	}
	if !o.sizes && !o.tree {
		return o.print(cmd.OutOrStdout(), store, res, resolved)
	}
	infos, err := nixInfos(ctx, c, resolved)
	if err != nil {
		return err
	}
	return o.printGraph(cmd.OutOrStdout(), store, res, newGraph(infos, q.Roots))
}

// print prints what the hook reads, or a path a line.
func (o resolveOptions) print(
	out io.Writer, store closure.Store, res closure.Resolution, resolved closure.Closure,
) error {
	if o.asJSON {
		return json.NewEncoder(out).Encode(res)
	}
	buffered := bufio.NewWriter(out)
	for _, n := range resolved.Names {
		_, _ = buffered.WriteString(store.Path(n)) // Flush returns the error
		_ = buffered.WriteByte('\n')
	}
	return buffered.Flush()
}

// sizedPath is a path in the output of --json.
type sizedPath struct {
	Path        string   `json:"path"`
	NarSize     int64    `json:"narSize"`
	ClosureSize int64    `json:"closureSize"`
	AddedSize   int64    `json:"addedSize"`
	References  []string `json:"references"` // also to itself
}

func (o resolveOptions) printGraph(out io.Writer, store closure.Store, res closure.Resolution, g *graph) error {
	if o.asJSON {
		return json.NewEncoder(out).Encode(struct {
			closure.Resolution
			StorePaths []sizedPath `json:"storePaths"`
		}{res, g.sizedPaths(store)})
	}
	s := newScreen(out)
	t := table{columns: []column{{name: "STORE PATH", shorten: true}}}
	var all []sizes
	if o.sizes {
		sized := func(name string) column { return column{name: name, right: true} }
		t.columns = append([]column{sized("NAR"), sized("CLOSURE"), sized("ADDED")}, t.columns...)
		all = g.sizes()
	}
	row := func(i int, text string) {
		if !o.sizes {
			t.rows = append(t.rows, []string{text})
			return
		}
		t.rows = append(t.rows, []string{size(all[i].nar), size(all[i].closure), size(all[i].added), text})
	}
	if o.tree {
		t.withoutHeader = !o.sizes
		g.tree(store, row)
	} else {
		for _, i := range g.byAdded(all) {
			row(i, store.Path(g.infos[i].Name))
		}
	}
	return s.printTable(t)
}

// sizedPaths is the graph for --json, sorted by name.
func (g *graph) sizedPaths(store closure.Store) []sizedPath {
	paths := make([]sizedPath, len(g.infos))
	for i, s := range g.sizes() {
		references := make([]string, len(g.infos[i].References))
		for k, name := range g.infos[i].References {
			references[k] = store.Path(name)
		}
		paths[i] = sizedPath{
			Path: store.Path(g.infos[i].Name), NarSize: s.nar, ClosureSize: s.closure, AddedSize: s.added,
			References: references,
		}
	}
	return paths
}

// byAdded returns all paths, what adds most first.
func (g *graph) byAdded(all []sizes) []int {
	paths := make([]int, len(all))
	for i := range paths {
		paths[i] = i
	}
	slices.SortStableFunc(paths, func(a, b int) int { return cmp.Compare(all[b].added, all[a].added) })
	return paths
}

// tree calls row with each line of the tree. Of what a path references, that comes first
// which references nothing else of it: so the tree is as flat as it can be.
func (g *graph) tree(store closure.Store, row func(i int, text string)) {
	place := make([]int, len(g.infos))
	for at, i := range g.order {
		place[i] = at
	}
	printed := make([]bool, len(g.infos))
	var below func(i int, first, rest string)
	below = func(i int, first, rest string) {
		references := slices.SortedFunc(slices.Values(g.references[i]),
			func(a, b int) int { return cmp.Compare(place[a], place[b]) })
		repeated := printed[i] && len(references) > 0
		printed[i] = true
		text := first + store.Path(g.infos[i].Name)
		if repeated {
			row(i, text+" [...]")
			return
		}
		row(i, text)
		for k, r := range references {
			if k < len(references)-1 {
				below(r, rest+"├── ", rest+"│   ")
			} else {
				below(r, rest+"└── ", rest+"    ")
			}
		}
	}
	for _, root := range g.roots {
		below(root, "", "")
	}
}

// askAndLoad is ask, and loads the closure. It asks again if a sweep removes the cache
// before it is loaded.
func askAndLoad(
	ctx context.Context, c config.Config, cache closure.Cache, q closure.Query,
) (closure.Resolution, closure.Closure, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		res, err := ask(ctx, c, cache, q)
		if err != nil {
			return res, closure.Closure{}, err
		}
		resolved, err := cache.Load(res.Digest)
		if !errors.Is(err, fs.ErrNotExist) || attempt == attempts {
			return res, resolved, err
		}
	}
}

// ask asks Nix's database, or Nix's own program if the database cannot be read.
func ask(ctx context.Context, c config.Config, cache closure.Cache, q closure.Query) (closure.Resolution, error) {
	snapshot, unreadable := nixdb.Open(ctx, c.Store())
	if unreadable == nil {
		defer func() { _ = snapshot.Close() }()
		res, err := cache.Resolve(ctx, snapshot, q, c.MaxPaths)
		if err == nil || !snapshot.Changed() {
			return res, err
		}
		unreadable = err
	}
	res, err := cache.Resolve(ctx, closure.NixStore{Program: c.NixStore, Store: c.Store()}, q, c.MaxPaths)
	return res, noAnswer(unreadable, err)
}
