// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
)

func diffCommand(configPath *string) *cobra.Command {
	var o diffOptions
	c := &cobra.Command{
		Use:   "diff ROOT... -- ROOT...",
		Short: "Print what the second closure has that the first has not, and the other way round",
		Long: `Print what the closure of the roots after -- has that the closure of those before it has
not, and the other way round, grouped by name: "changed" is of another version, "rebuilt"
of the same version but another store path, "added" and "removed" in one of the two only.
The size is that of the NARs, in the second closure more than in the first; the largest
difference is first. Where the closures are the same, nothing is printed.

--json prints one object: before and after, with paths, their number, and size in bytes;
groups, a list of objects with name, change, size, the difference in bytes, and before
and after, lists of objects with path, version and size.`,
		Example: `  nix-closure diff /nix/store/…-hello-2.12 -- /nix/store/…-hello-2.13
  nix-closure diff /run/booted-system -- /run/current-system
  nix-closure diff --json /nix/store/…-hello-2.12 -- ./result | jq '.groups[].name'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash < 1 || dash == len(args) {
				return usage(cmd, "the roots of two closures are needed, with -- between them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.diff(cmd, *configPath, args) },
	}
	o.roots.register(c, configPath)
	c.Flags().BoolVar(&o.asJSON, "json", false, "print one JSON object")
	return c
}

type diffOptions struct {
	roots  closureArguments
	asJSON bool
}

// versionedPath is a store path of a group.
type versionedPath struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Size    int64  `json:"size"`
}

// group has the store paths of one name in two closures that differ in them.
type group struct {
	Name   string          `json:"name"`
	Change string          `json:"change"`
	Size   int64           `json:"size"`
	Before []versionedPath `json:"before"`
	After  []versionedPath `json:"after"`
}

// total is the whole of a closure.
type total struct {
	Paths int   `json:"paths"`
	Size  int64 `json:"size"`
}

func (o diffOptions) diff(cmd *cobra.Command, configPath string, args []string) error {
	c, err := readConfig(configPath)
	if err != nil {
		return err
	}
	roots, err := o.roots.parse(cmd, c.Store(), args)
	if err != nil {
		return err
	}
	var infos [2][]closure.PathInfo
	dash := cmd.ArgsLenAtDash()
	for i, part := range [][]closure.BaseName{roots[:dash], roots[dash:]} {
		g, err := lookUpGraph(cmd.Context(), c, part)
		if err != nil {
			return err
		}
		infos[i] = g.infos
	}
	groups := compare(c.Store(), infos[0], infos[1])
	if o.asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
			Before total   `json:"before"`
			After  total   `json:"after"`
			Groups []group `json:"groups"`
		}{totalOf(infos[0]), totalOf(infos[1]), groups})
	}
	return printGroups(cmd.OutOrStdout(), groups)
}

func totalOf(infos []closure.PathInfo) total {
	t := total{Paths: len(infos)}
	for _, info := range infos {
		t.Size += info.NarSize
	}
	return t
}

// compare returns the groups in which two closures differ.
func compare(store closure.Store, before, after []closure.PathInfo) []group {
	groups := map[string]*group{}
	of := func(info closure.PathInfo) (*group, versionedPath) {
		name, version := splitName(info.Name)
		if groups[name] == nil {
			groups[name] = &group{Name: name, Before: []versionedPath{}, After: []versionedPath{}}
		}
		return groups[name], versionedPath{store.Path(info.Name), version, info.NarSize}
	}
	for _, info := range before {
		g, path := of(info)
		g.Before, g.Size = append(g.Before, path), g.Size-path.Size
	}
	for _, info := range after {
		g, path := of(info)
		g.After, g.Size = append(g.After, path), g.Size+path.Size
	}
	all := []group{} // not null in JSON
	for _, g := range groups {
		if slices.Equal(g.Before, g.After) {
			continue
		}
		switch {
		case len(g.Before) == 0:
			g.Change = "added"
		case len(g.After) == 0:
			g.Change = "removed"
		case slices.Equal(versions(g.Before), versions(g.After)):
			g.Change = "rebuilt"
		default:
			g.Change = "changed"
		}
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b group) int {
		return cmp.Or(cmp.Compare(max(b.Size, -b.Size), max(a.Size, -a.Size)), strings.Compare(a.Name, b.Name))
	})
	return all
}

// splitName takes a store path's name apart as Nix does: the version begins at the first
// hyphen that no letter follows. What names an output, such as -dev, is the version's.
func splitName(base closure.BaseName) (name, version string) {
	_, name, _ = strings.Cut(string(base), "-")
	for i := 0; i+1 < len(name); i++ {
		if next := name[i+1] | 0x20; name[i] == '-' && (next < 'a' || next > 'z') {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

// versions are those of a group's paths, each once, sorted.
func versions(paths []versionedPath) []string {
	var all []string
	for _, p := range paths {
		all = append(all, p.Version)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func printGroups(out io.Writer, groups []group) error {
	t := table{columns: []column{
		{name: "CHANGE"}, {name: "SIZE", right: true}, {name: "NAME"}, {name: "VERSIONS", shorten: true},
	}}
	if len(groups) == 0 {
		t.withoutHeader = true
	}
	shades := map[string]colour{"added": green, "removed": red, "changed": yellow, "rebuilt": yellow}
	for _, g := range groups {
		difference := size(g.Size)
		if g.Size > 0 {
			difference = "+" + difference
		}
		list := func(paths []versionedPath) string {
			all := versions(paths)
			for i, v := range all {
				all[i] = cmp.Or(v, "(none)")
			}
			return strings.Join(all, ", ")
		}
		text := list(g.Before)
		switch g.Change {
		case "added":
			text = list(g.After)
		case "changed":
			text += " → " + list(g.After)
		}
		t.rows = append(t.rows, []string{g.Change, difference, g.Name, text})
		t.colours = append(t.colours, shades[g.Change])
	}
	return newScreen(out).printTable(t)
}
