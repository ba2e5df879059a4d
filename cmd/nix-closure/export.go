// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
)

func exportCommand(configPath *string) *cobra.Command {
	var o exportOptions
	c := &cobra.Command{
		Use:   "export --format FORMAT ROOT...",
		Short: "Print a closure in another tool's words",
		Long: `Print the closure of the roots in another tool's words.

  paths     a store path a line, sorted; the default
  json      an object with storeDir, digest, roots and storePaths
  bwrap     arguments for bwrap --args FD, each ended by a NUL: the store directory of
            the sandbox has these store paths alone. bwrap takes at most 9,000
            arguments, its command line with them: 2,997 store paths. It takes a
            second for 1,000, and twenty for 2,900: then use --view
  systemd   a drop-in of a service: its store directory has these store paths alone
  apparmor  rules for a profile to include: what nixpkgs' apparmorRulesFromClosure
            gives; with --profile NAME, a whole profile that may read and run the
            closure, and of the rest of the store nothing
  quadlet   the section of a .container file that asks for the closure of the roots

Nothing of this keeps the closure: make a GC root, for example with
nix-store --realise ROOT --add-root LINK.

--view DIR, with bwrap and systemd, takes a directory that already shows the closure, and
makes one mount of it, however many paths there are.`,
		Example: `  nix-closure export /nix/store/…-hello-2.12
  nix-closure export --format bwrap /nix/store/…-hello-2.12 | bwrap --args 0 /nix/store/…-hello-2.12/bin/hello
  nix-closure export --format systemd ./result >/etc/systemd/system/hello.service.d/store.conf
  nix-closure export --format apparmor --profile hello ./result >/etc/apparmor.d/hello
  nix-closure export --format quadlet /nix/store/…-hello-2.12`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.export(cmd, *configPath, args) },
	}
	o.roots.register(c, configPath)
	c.Flags().StringVar(&o.format, "format", "paths", "one of "+strings.Join(formatNames(), ", "))
	c.Flags().StringVar(&o.view, "view", "", "mount this `directory`, which shows the closure (bwrap, systemd)")
	c.Flags().StringVar(&o.profile, "profile", "", "print a whole profile of this `name` (apparmor)")
	complete := cobra.FixedCompletions(formatNames(), cobra.ShellCompDirectiveNoFileComp)
	if err := c.RegisterFlagCompletionFunc("format", complete); err != nil {
		panic(err) // the flag is two lines above
	}
	return c
}

type exportOptions struct {
	roots                 closureArguments
	format, view, profile string
}

// exported is what the formats are made of.
type exported struct {
	store   closure.Store
	roots   []closure.BaseName
	closure closure.Closure
	view    string // a directory that shows the closure; empty: none
	profile string // of AppArmor; empty: none
	stderr  io.Writer
}

// format is one of those that export knows.
type format struct {
	name          string
	write         func(exported, *bufio.Writer) error
	view, profile bool // whether these options have a meaning
}

var formats = []format{
	{name: "paths", write: exported.writePaths},
	{name: "json", write: exported.writeJSON},
	{name: "bwrap", write: exported.writeBwrap, view: true},
	{name: "systemd", write: exported.writeSystemd, view: true},
	{name: "apparmor", write: exported.writeAppArmor, profile: true},
	{name: "quadlet", write: exported.writeQuadlet},
}

func formatNames() []string {
	var names []string
	for _, f := range formats {
		names = append(names, f.name)
	}
	return names
}

func (o exportOptions) export(cmd *cobra.Command, configPath string, args []string) error {
	i := slices.IndexFunc(formats, func(f format) bool { return f.name == o.format })
	switch {
	case i < 0:
		return usage(cmd, "--format %q: not one of %s", o.format, strings.Join(formatNames(), ", "))
	case o.view != "" && !formats[i].view:
		return usage(cmd, "--view has no meaning for --format %s", o.format)
	case o.profile != "" && !formats[i].profile:
		return usage(cmd, "--profile has no meaning for --format %s", o.format)
	}
	c, err := readConfig(configPath)
	if err != nil {
		return err
	}
	roots, err := o.roots.parse(cmd, c.Store(), args)
	if err != nil {
		return err
	}
	e := exported{store: c.Store(), roots: roots, profile: o.profile, stderr: cmd.ErrOrStderr()}
	if o.view != "" {
		if e.view, err = filepath.Abs(o.view); err != nil {
			return err
		}
	}
	if e.closure, err = lookUp(cmd.Context(), c, roots); err != nil {
		return err
	}
	// What cannot be written whole is not begun.
	var text strings.Builder
	buffered := bufio.NewWriter(&text)
	if err := errors.Join(formats[i].write(e, buffered), buffered.Flush()); err != nil {
		return err
	}
	_, err = io.WriteString(cmd.OutOrStdout(), text.String())
	return err
}

func (e exported) writePaths(w *bufio.Writer) error {
	for _, name := range e.closure.Names {
		if _, err := fmt.Fprintln(w, e.store.Path(name)); err != nil {
			return err
		}
	}
	return nil
}

func (e exported) writeJSON(w *bufio.Writer) error {
	return json.NewEncoder(w).Encode(struct {
		StoreDir   string   `json:"storeDir"`
		Digest     string   `json:"digest"`
		Roots      []string `json:"roots"`
		StorePaths []string `json:"storePaths"`
	}{StoreDir: e.store.Dir, Digest: e.closure.Digest(), Roots: e.paths(e.roots), StorePaths: e.paths(e.closure.Names)})
}

func (e exported) paths(names []closure.BaseName) []string {
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = e.store.Path(name)
	}
	return paths
}

// look returns what is at a store path: a directory, a regular file or a symlink.
func (e exported) look(name closure.BaseName) (fs.FileMode, error) {
	info, err := os.Lstat(e.store.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s is registered, but not in the store; "+
			"`nix-store --verify --check-contents --repair` mends the store", e.store.Path(name))
	}
	if err != nil {
		return 0, err
	}
	return info.Mode(), nil
}

// comment is the first lines of what a person may look at later. No store path has a
// line break.
func (e exported) comment(w *bufio.Writer) {
	// What is written to memory does not fail.
	_, _ = fmt.Fprintf(w, "# The closure of %s,\n# %d store paths, by nix-closure export.\n",
		strings.Join(e.paths(e.roots), ", "), len(e.closure.Names))
}
