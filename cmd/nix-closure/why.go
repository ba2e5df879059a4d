// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
)

func whyCommand(configPath *string) *cobra.Command {
	var o whyOptions
	c := &cobra.Command{
		Use:   "why ROOT PATH",
		Short: "Print the references that bring PATH into the closure of ROOT",
		Long: `Print a shortest chain of references from ROOT to PATH, a store path a line, and below
each store path the file in which the reference to the next one stands: in its contents,
in the target of a symlink, or in a file's name. "." is the store path itself.

--all prints every reference that lies on a way from ROOT to PATH, and every file. It
reads all files of these store paths.

A reference that stands in no file is one that was registered by hand.

--json prints one object: root, path, and links, a list of objects with referrer,
reference and mentions, which are objects with file and in (contents, target or name).`,
		Example: `  nix-closure why /nix/store/…-hello-2.12 /nix/store/…-hello-2.12
  nix-closure why --all ./result /nix/store/…-bash-5.2
  nix-closure why --json ./result /nix/store/…-bash-5.2 | jq '.links | length'`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return o.why(cmd, *configPath, args) },
	}
	o.arguments.register(c, configPath)
	c.Flags().BoolVar(&o.all, "all", false, "every reference and every file, not only one chain")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print one JSON object")
	return c
}

type whyOptions struct {
	arguments   closureArguments
	all, asJSON bool
}

// link is one reference, and where it stands.
type link struct {
	Referrer  string    `json:"referrer"`
	Reference string    `json:"reference"`
	Mentions  []mention `json:"mentions"`
}

func (o whyOptions) why(cmd *cobra.Command, configPath string, args []string) error {
	c, err := readConfig(configPath)
	if err != nil {
		return err
	}
	store := c.Store()
	names, err := o.arguments.parse(cmd, store, args)
	if err != nil {
		return err
	}
	root, path := names[0], names[1]
	g, err := lookUpGraph(cmd.Context(), c, names[:1])
	if err != nil {
		return err
	}
	from, _ := g.find(root)
	to, found := g.find(path)
	if !found {
		// That it is not valid says more.
		if _, err := lookUp(cmd.Context(), c, names[1:]); err != nil {
			return err
		}
		return fmt.Errorf("%s does not depend on %s", store.Path(root), store.Path(path))
	}
	links, err := o.links(cmd.Context(), store, g, from, to)
	if err != nil {
		return err
	}
	if o.asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
			Root  string `json:"root"`
			Path  string `json:"path"`
			Links []link `json:"links"`
		}{store.Path(root), store.Path(path), links})
	}
	return o.print(cmd.OutOrStdout(), store.Path(path), links)
}

// links returns the references from a path to another, in order.
func (o whyOptions) links(ctx context.Context, store closure.Store, g *graph, from, to int) ([]link, error) {
	way := g.chain(from, to)
	if o.all {
		way = g.leading(to)
	}
	links := []link{} // not null in JSON
	for at, i := range way[:len(way)-1] {
		references := way[at+1 : at+2]
		if o.all {
			references = slices.DeleteFunc(slices.Clone(g.references[i]),
				func(r int) bool { return !slices.Contains(way, r) })
		}
		names := make([]closure.BaseName, len(references))
		for k, r := range references {
			names[k] = g.infos[r].Name
		}
		mentions, err := findMentions(ctx, store, g.infos[i].Name, names, o.all)
		if err != nil {
			return nil, err
		}
		for k, name := range names {
			links = append(links, link{
				Referrer: store.Path(g.infos[i].Name), Reference: store.Path(name),
				Mentions: append([]mention{}, mentions[k]...),
			})
		}
	}
	return links, nil
}

// print prints the chain, or with --all each path and what it references.
func (o whyOptions) print(out io.Writer, last string, links []link) error {
	t := table{columns: []column{{shorten: true}}, withoutHeader: true}
	line := func(format string, args ...any) { t.rows = append(t.rows, []string{fmt.Sprintf(format, args...)}) }
	referrer, indent := "", "  "
	for _, l := range links {
		if l.Referrer != referrer {
			line("%s", l.Referrer)
		}
		if referrer = l.Referrer; o.all {
			line("  %s", l.Reference)
			indent = "    "
		}
		for _, m := range l.Mentions {
			line("%s%s (%s)", indent, m.File, m.In)
		}
		if len(l.Mentions) == 0 {
			line("%sin no file: the reference was registered by hand", indent)
		}
	}
	line("%s", last)
	return newScreen(out).printTable(t)
}
