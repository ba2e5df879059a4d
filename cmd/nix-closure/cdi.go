// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/cdi"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/engineconfig"
	"github.com/nix-closure/nix-closure/spec"
)

func cdiCommand(configPath *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "cdi",
		Short: "Give closures names, by which engines know them as CDI devices",
		Long: `Give closures names, by which engines know them as CDI devices: podman, Docker,
containerd and CRI-O read ` + cdi.Path + `.

    podman run --device nix-closure/closure=NAME IMAGE …

Such a container needs no annotation, and its engine needs no hook file and no
wrapper. If the device, the hook or a store path is missing, the engine starts no
container.`,
	}
	c.AddCommand(cdiGenerateCommand(configPath), cdiListCommand(configPath), cdiRemoveCommand(configPath))
	return c
}

// cdiGenerate is a call of cdi generate.
type cdiGenerate struct {
	roots                 closureArguments
	configPath            string
	mode, output, format  string
	registration, refresh bool
}

func cdiGenerateCommand(configPath *string) *cobra.Command {
	var g cdiGenerate
	c := &cobra.Command{
		Use:   "generate {NAME=ROOT... | --refresh}",
		Short: "Add devices, or replace those of the same names",
		Long: `Add devices, or replace those of the same names. The others of the file stay.

ROOT is a store path, or a link to one: ./result, a profile. For a device with
several roots, write a colon between them, or give the NAME again.

While a device is in the file, its roots are GC roots. If a root is a link, the
device has what the link leads to now. --refresh follows the links of all devices
again, and names the hook that is beside this program. Containers that run keep
what they have.`,
		Example: `  nix-closure cdi generate hello=/nix/store/…-hello-2.12
  nix-closure cdi generate web=./result tools=/nix/store/…-bash-5.2:/nix/store/…-hello-2.12
  nix-closure cdi generate --mode bind --registration dev=./result
  nix-closure cdi generate --refresh`,
		RunE: func(cmd *cobra.Command, args []string) error {
			g.configPath = *configPath
			return g.run(cmd, args)
		},
	}
	g.roots.register(c, configPath)
	completeRoot := c.ValidArgsFunction
	c.ValidArgsFunction = func(
		cmd *cobra.Command, args []string, begun string,
	) ([]cobra.Completion, cobra.ShellCompDirective) {
		i := strings.LastIndexAny(begun, "=:") + 1
		if i == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		completions, directive := completeRoot(cmd, args, begun[i:])
		for n := range completions {
			completions[n] = begun[:i] + completions[n]
		}
		return completions, directive
	}
	f := c.Flags()
	f.StringVar(&g.mode, "mode", "", "overlay, bind or auto; empty: as the configuration says")
	f.BoolVar(&g.registration, "registration", false, "give containers a Nix database of the closure")
	f.BoolVar(&g.refresh, "refresh", false, "follow the links of all devices again")
	f.StringVar(&g.output, "output", "", "the `file`, instead of "+cdi.Path)
	f.StringVar(&g.format, "format", "", "json or yaml; empty: as the file's name says")
	for _, with := range []string{"mode", "registration"} {
		c.MarkFlagsMutuallyExclusive("refresh", with)
	}
	return c
}

// file is the file that the options name.
func (g cdiGenerate) file(cmd *cobra.Command) (string, error) {
	extension := filepath.Ext(g.output)
	switch {
	case g.format != "" && g.format != "json" && g.format != "yaml":
		return "", usage(cmd, "--format %q: neither json nor yaml", g.format)
	case g.output == "" && g.format == "":
		return cdi.Path, nil
	case g.output == "":
		return strings.TrimSuffix(cdi.Path, ".json") + "." + g.format, nil
	case extension != ".json" && extension != ".yaml":
		return "", usage(cmd, "--output %q: engines read files whose names end in .json or .yaml", g.output)
	case g.format != "" && extension != "."+g.format:
		return "", usage(cmd, "--output %q: is not named as --format %s is", g.output, g.format)
	}
	return g.output, nil
}

func (g cdiGenerate) run(cmd *cobra.Command, args []string) error {
	mode := spec.Mode(g.mode)
	switch {
	case g.refresh && len(args) > 0:
		return usage(cmd, "--refresh is for all devices of the file, and takes no NAME=ROOT")
	case !g.refresh && len(args) == 0:
		return usage(cmd, "name at least one NAME=ROOT")
	case mode != "" && !mode.Valid():
		return usage(cmd, "--mode %q: not one of auto, overlay, bind", g.mode)
	}
	file, err := g.file(cmd)
	if err != nil {
		return err
	}
	c, err := readConfig(g.configPath)
	if err != nil {
		return err
	}
	program, err := hookPath()
	if err != nil {
		return err
	}
	editor, err := cdiEditor(c, file)
	if err != nil {
		return err
	}
	if g.refresh {
		return refreshDevices(cmd.Context(), editor, program)
	}
	var devices []cdi.Device
	for _, arg := range args {
		if devices, err = g.add(cmd, c.Store(), devices, arg); err != nil {
			return err
		}
	}
	for i := range devices {
		d := &devices[i]
		d.Hook, d.Request.Mode, d.Request.Registration = program, mode, g.registration
		if !slices.ContainsFunc(d.Asked, func(from string) bool { return !strings.HasPrefix(from, c.StoreDir+"/") }) {
			d.Asked = nil // nothing to follow
		}
		if g.configPath != config.Path {
			if d.Config, err = filepath.Abs(g.configPath); err != nil {
				return err
			}
		}
	}
	return editor.Edit(cmd.Context(), func(f *cdi.File) error {
		for _, d := range devices {
			if err := f.Set(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// add adds what one NAME=ROOT asks for.
func (g cdiGenerate) add(
	cmd *cobra.Command, store closure.Store, devices []cdi.Device, argument string,
) ([]cdi.Device, error) {
	name, value, ok := strings.Cut(argument, "=")
	if !ok {
		return nil, usage(cmd, "%q: not NAME=ROOT", argument)
	}
	if err := parser.ValidateDeviceName(name); err != nil {
		return nil, usage(cmd, "%q: %w", argument, err)
	}
	given := strings.Split(value, ":")
	roots, err := g.roots.parse(cmd, store, given)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(devices, func(d cdi.Device) bool { return d.Name == name })
	if i < 0 {
		i = len(devices)
		devices = append(devices, cdi.Device{Name: name, Request: &spec.Request{Listing: true}})
	}
	d := &devices[i]
	for n, root := range roots {
		if !slices.Contains(d.Request.Roots, root) {
			d.Request.Roots = append(d.Request.Roots, root)
		}
		from, err := fromWhere(given[n])
		if err != nil {
			return nil, err
		}
		d.Asked = append(d.Asked, from)
	}
	return devices, nil
}

// fromWhere is a closure argument as it means the same from every directory.
func fromWhere(argument string) (string, error) {
	if filepath.IsAbs(argument) {
		return argument, nil
	}
	dir, err := os.Getwd()
	return dir + "/" + strings.TrimPrefix(argument, "./"), err
}

// refreshDevices follows the links of all devices again. A device whose link leads nowhere
// stays as it is, and is an error.
func refreshDevices(ctx context.Context, editor cdi.Editor, program string) error {
	if _, err := os.Stat(editor.Path); err != nil {
		return err
	}
	store := editor.Nix.Store
	var troubles []error
	err := editor.Edit(ctx, func(f *cdi.File) error {
		for _, d := range f.Devices() {
			if d.Trouble != nil {
				continue
			}
			fresh, err := follow(store, d)
			if err == nil {
				err = editor.Valid(ctx, fresh)
			}
			if err != nil {
				troubles = append(troubles, fmt.Errorf("device %s stays as it is: %w", d.Name, err))
				fresh = d
			}
			fresh.Hook = program
			if err := f.Set(fresh); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(append(troubles, err)...)
}

// follow is a device with the roots that it is asked for now.
func follow(store closure.Store, d cdi.Device) (cdi.Device, error) {
	if d.Asked == nil {
		return d, nil
	}
	request := *d.Request
	request.Roots = nil
	for _, argument := range d.Asked {
		root, err := parseArgument(store, argument)
		if err != nil {
			return d, err
		}
		if !slices.Contains(request.Roots, root) {
			request.Roots = append(request.Roots, root)
		}
	}
	d.Request = &request
	return d, nil
}

// cdiEditor changes a file of devices with this configuration.
func cdiEditor(c config.Config, file string) (cdi.Editor, error) {
	e := cdi.Editor{
		Path: file, Nix: closure.NixStore{Program: c.NixStore, Store: c.Store()}, Roots: cdi.RootsDir(c.Store()),
		Valid: func(ctx context.Context, d cdi.Device) error { return validDevice(ctx, c, d) },
	}
	if c.Rootless && !c.Store().Ours() {
		dir, ok := os.LookupEnv("XDG_STATE_HOME")
		if !ok || !filepath.IsAbs(dir) {
			home, err := os.UserHomeDir()
			if err != nil {
				return e, err
			}
			dir = home + "/.local/state"
		}
		e.Roots, e.Indirect = dir+"/nix-closure/cdi", true
	}
	return e, nil
}

// validDevice fails if a device's closure is not valid, or larger than the hook takes.
func validDevice(ctx context.Context, c config.Config, d cdi.Device) error {
	db := openNix(ctx, c)
	defer db.close()
	resolved, err := db.Closure(ctx, closure.Query{Roots: d.Request.Roots, Info: d.Request.ClosureInfo})
	if err == nil && len(resolved.Names) > c.MaxPaths {
		err = &closure.TooLargeError{Max: c.MaxPaths}
	}
	return err
}

// hookPath is the hook's program, which is installed beside this one.
func hookPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), engineconfig.HookProgram)
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not there; install all programs into one directory", path)
	}
	return path, nil
}

// What cdi list says of a device.
const (
	deviceOK       = "ok"
	deviceOutdated = "outdated" // one of its links leads elsewhere by now
	deviceBroken   = "broken"
)

// listedDevice is a device as cdi list --json has it.
type listedDevice struct {
	Name         string   `json:"name"`
	Device       string   `json:"device"` // as engines know it
	State        string   `json:"state"`
	Trouble      string   `json:"trouble,omitempty"`
	Roots        []string `json:"roots"`
	ClosureInfo  string   `json:"closureInfo,omitempty"`
	From         []string `json:"from"` // what the roots were given as
	Mode         string   `json:"mode"` // empty: the configuration's
	Registration bool     `json:"registration"`
	Listing      bool     `json:"listing"`
	Writable     bool     `json:"writable"`
	Hook         string   `json:"hook"`
}

func cdiListCommand(configPath *string) *cobra.Command {
	var file string
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the devices",
		Long: `List the devices of the file: ok; outdated, if a link leads elsewhere by now; or
broken, if no container can start with the device, or its closure is not pinned.`,
		Example: `  nix-closure cdi list
  nix-closure cdi list --json | jq -r '.[] | select(.state != "ok") | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(*configPath)
			if err != nil {
				return err
			}
			listed, err := listDevices(cmd.Context(), c, file)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(listed)
			}
			if len(listed) == 0 {
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NAME\tSTATE\tMODE\tREGISTRATION\tROOTS")
			for _, d := range listed {
				roots := d.Roots
				if d.ClosureInfo != "" {
					roots = []string{d.ClosureInfo}
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\n", d.Name, d.State, cmp.Or(d.Mode, "-"), d.Registration,
					strings.Join(roots, " "))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, d := range listed {
				if d.Trouble != "" {
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "nix-closure: device %s: %s\n", d.Name, d.Trouble)
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", cdi.Path, "the `file` with the devices")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return c
}

func listDevices(ctx context.Context, c config.Config, file string) ([]listedDevice, error) {
	store := c.Store()
	listed := []listedDevice{}
	devices, err := cdi.List(file, store)
	if errors.Is(err, fs.ErrNotExist) {
		return listed, nil
	}
	if err != nil {
		return nil, err
	}
	editor, err := cdiEditor(c, file)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		l := listedDevice{Name: d.Name, Device: d.FullName(), State: deviceOK, Roots: []string{}, From: []string{}}
		if r := d.Request; r != nil {
			l.Roots = append(l.Roots, storePaths(store, r.Roots)...)
			if l.From = append(l.From, d.Asked...); d.Asked == nil {
				l.From = append(l.From, l.Roots...)
			}
			if r.ClosureInfo != "" {
				l.ClosureInfo = store.Path(r.ClosureInfo)
			}
			l.Mode, l.Registration, l.Listing, l.Writable = string(r.Mode), r.Registration, r.Listing, r.Writable
			l.Hook = d.Hook
		}
		if err := editor.Check(ctx, d); err != nil {
			l.State, l.Trouble = deviceBroken, err.Error()
		} else if now, err := follow(store, d); err != nil || !slices.Equal(now.Request.Roots, d.Request.Roots) {
			l.State, l.Trouble = deviceOutdated, "one of its links leads elsewhere by now; "+
				"nix-closure cdi generate --refresh follows it"
			if err != nil {
				l.Trouble = err.Error()
			}
		}
		listed = append(listed, l)
	}
	return listed, nil
}

func cdiRemoveCommand(configPath *string) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "remove NAME...",
		Short: "Remove devices, and let go of their GC roots",
		Long: `Remove devices, and let go of their GC roots. Containers that run with a device keep
its closure. No container can start with it any more.`,
		Example: `  nix-closure cdi remove hello`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readConfig(*configPath)
			if err != nil {
				return err
			}
			if _, err := os.Stat(file); err != nil {
				return err
			}
			editor, err := cdiEditor(c, file)
			if err != nil {
				return err
			}
			return editor.Edit(cmd.Context(), func(f *cdi.File) error {
				for _, name := range args {
					if err := f.Remove(name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&file, "file", cdi.Path, "the `file` with the devices")
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		conf, err := readConfig(*configPath)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		devices, _ := cdi.List(file, conf.Store())
		for _, d := range devices {
			names = append(names, d.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}
