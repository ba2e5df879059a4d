// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/hook"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

func viewCommand(configPath *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "view",
		Short: "Mount a closure on a directory of this host",
		Long: `Mount a closure on a directory of this host: for what is no container, such as a
virtual machine (virtiofsd), systemd-nspawn, chroot or bubblewrap. The directory
then has the store paths of the closure and nothing else, read-only.

A view is pinned by a GC root until it is taken off. After a reboot it is gone, as
every mount is; mount --print=systemd prints a unit that makes it again.`,
	}
	c.AddCommand(viewMountCommand(configPath), viewUmountCommand(configPath), viewListCommand(configPath))
	return c
}

// viewMount is a call of view mount.
type viewMount struct {
	roots                   closureArguments
	configPath, mode, print string
}

// What view mount prints instead of mounting.
const (
	printSystemd  = "systemd"
	printCommands = "commands"
)

func viewMountCommand(configPath *string) *cobra.Command {
	var m viewMount
	c := &cobra.Command{
		Use:   "mount ROOT... DIR",
		Short: "Mount the closure of the roots on a directory",
		Long: `Mount the closure of the roots on a directory. A root is a store path, or a link to
one: ./result, a profile.

In mode overlay the view is one mount, whatever the closure's size. In mode bind it
is one for each store path: programs that hand a view on must take the mounts below
a directory too. Mode auto takes overlay where this kernel and these privileges allow
it.`,
		Example: `  nix-closure view mount ./result /srv/views/web
  nix-closure view mount --mode bind /nix/store/…-hello-2.12 /mnt
  nix-closure view mount --print=systemd ./result /srv/views/web >/etc/systemd/system/web-view.service`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m.configPath = *configPath
			return m.run(cmd, args[:len(args)-1], args[len(args)-1])
		},
	}
	m.roots.register(c, configPath)
	c.Flags().StringVar(&m.mode, "mode", "", "overlay, bind or auto; empty: as the configuration says")
	c.Flags().StringVar(&m.print, "print", "", "mount nothing, and print how it is done: systemd, a unit; or "+
		"commands, those of a bind view for a shell")
	return c
}

func (m viewMount) run(cmd *cobra.Command, args []string, dir string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	c, err := config.Read(m.configPath)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	mode := spec.Mode(m.mode)
	if mode != "" && !mode.Valid() {
		return usage(cmd, "--mode %q: not one of auto, overlay, bind", m.mode)
	}
	roots, err := m.roots.parseRoots(cmd, c.Store(), args)
	if err != nil {
		return err
	}
	switch m.print {
	case "":
		_, err := hook.HostView{Roots: roots, Mode: mode, Dir: dir}.Mount(ctx, c, m.configPath)
		return err
	case printSystemd:
		return m.printUnit(c.Store(), roots, dir, out)
	case printCommands:
		if mode == spec.ModeOverlay {
			return usage(cmd, "--print=commands: an overlay view cannot be made by commands, because a part of the "+
				"overlay is mounted and the whole is nowhere; take --mode bind")
		}
		return printMounts(ctx, c, roots, dir, out)
	}
	return usage(cmd, "--print %q: neither systemd nor commands", m.print)
}

// printMounts prints the commands that make a bind view.
func printMounts(ctx context.Context, c config.Config, roots []closure.BaseName, dir string, out io.Writer) error {
	resolved, err := lookUp(ctx, c, roots)
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	commands, err := view.Commands(c.Store(), resolved, dir)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "# The closure of %s. Nothing here keeps it from the garbage collector.\n%s",
		strings.Join(storePaths(c.Store(), roots), " "), commands)
	return err
}

// viewUnit is no .mount: what an overlay is made of is in the runtime directory, new with
// each boot, and a .mount has no place for a GC root.
const viewUnit = `[Unit]
Description=nix-closure view on %[1]s
RequiresMountsFor=%[2]s %[1]s

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%[3]s %[4]sview mount %[5]s%[6]s %[1]s
ExecStop=%[3]s %[4]sview umount %[1]s

[Install]
WantedBy=multi-user.target
`

func (m viewMount) printUnit(store closure.Store, roots []closure.BaseName, dir string, out io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	var global, mode string
	if m.configPath != config.Path {
		global = "--config " + quoteUnit(m.configPath) + " "
	}
	if m.mode != "" {
		mode = "--mode " + m.mode + " "
	}
	_, err = fmt.Fprintf(out, viewUnit, quoteUnit(dir), store.Dir, quoteUnit(program), global, mode,
		strings.Join(storePaths(store, roots), " "))
	return err
}

// quoteUnit is a word of a unit's line (systemd.syntax(7)).
func quoteUnit(word string) string {
	word = strings.NewReplacer("%", "%%", "$", "$$").Replace(word)
	if strings.ContainsAny(word, " \t\"'\\;") {
		word = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
	}
	return word
}

func storePaths(store closure.Store, names []closure.BaseName) []string {
	var paths []string
	for _, n := range names {
		paths = append(paths, store.Path(n))
	}
	return paths
}

func viewUmountCommand(configPath *string) *cobra.Command {
	return &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Take a view off a directory, and let go of its GC root",
		Long: `Take a view off a directory, and let go of its GC root. Where something is open in an
overlay view, it is refused. What got a copy of the mount, such as a container of
systemd-nspawn, keeps that, but no GC root keeps its closure: end it first.`,
		Example: `  nix-closure view umount /srv/views/web`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Read(*configPath)
			if err != nil {
				return fmt.Errorf("reading the configuration: %w", err)
			}
			return hook.UnmountHostView(cmd.Context(), c, args[0])
		},
	}
}

// listedView is a view as view list --json has it.
type listedView struct {
	Dir   string    `json:"dir"`
	State string    `json:"state"` // mounted, gone, unknown
	Mode  spec.Mode `json:"mode"`
	Roots []string  `json:"roots"`
	Since time.Time `json:"since"`
}

func viewListCommand(configPath *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the views on directories of this host",
		Long: `List the views on directories of this host: mounted; gone, where somebody took the
mount off and ` + "`nix-closure gc`" + ` lets go of the GC root; or unknown, where it cannot be
seen from here.`,
		Example: `  nix-closure view list
  nix-closure view list --json | jq -r '.[].dir'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			views, err := listViews(*configPath)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(views)
			}
			if len(views) == 0 {
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "DIR\tSTATE\tMODE\tSINCE\tROOTS")
			for _, v := range views {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Dir, v.State, v.Mode,
					v.Since.Local().Format(time.DateTime), strings.Join(v.Roots, " "))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON list: dir, state, mode, roots, since")
	return c
}

func listViews(configPath string) ([]listedView, error) {
	c, err := config.Read(configPath)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	dir, err := state.Open(c)
	if err != nil {
		return nil, fmt.Errorf("opening the runtime directory: %w", err)
	}
	defer dir.Close()
	views, err := dir.HostViews()
	listed := []listedView{}
	for _, v := range views {
		listed = append(listed, listedView{Dir: v.Mount.Target, State: v.State, Mode: v.Mode,
			Roots: storePaths(c.Store(), v.Roots), Since: v.Created})
	}
	slices.SortFunc(listed, func(a, b listedView) int { return cmp.Compare(a.Dir, b.Dir) })
	return listed, err
}
