// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	units "github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/hook/verify"
	"github.com/nix-closure/nix-closure/internal/config"
)

func inspectCommand(configPath *string) *cobra.Command {
	var o inspectOptions
	c := &cobra.Command{
		Use:   "inspect [CONTAINER...]",
		Short: "Print which containers have a closure: what each may see, by which way it came, since when",
		Long: `Print which containers have a closure: what each may see, by which way it
came, since when. Without an argument it prints a table of all; of those that are
named (by ID, by the beginning of one, or by name) it prints everything.

It prints what the host remembers, and looks into no container: that is for
verify. --format takes a Go template, as podman's does: json, or fields such as
{{.ID}}, after "table" with a line of headings. The fields are ID, Name, Status,
Engine, Way, Mode, Roots, ClosureInfo, Paths, Size, Since, Age, Registration,
Listing, Writable, Digest, View, GCRoots, Pid and Bundle; the functions are join,
json, lower, upper and short, which cuts hashes off.`,
		Example: `  nix-closure inspect
  nix-closure inspect 3f1c
  nix-closure inspect --json | jq '.[] | select(.writable)'
  nix-closure inspect --format 'table {{.Name}}\t{{join (short .Roots) ","}}\t{{.Age}}'
  nix-closure inspect --format '{{.ID}} {{.Size}}'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.asJSON && o.format != "" {
				return misuse(errors.New("--json and --format: take one of them"))
			}
			return o.inspect(cmd.Context(), *configPath, args, cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&o.asJSON, "json", false, "print a JSON array")
	c.Flags().StringVar(&o.format, "format", "", "print each container by this Go `template`, or json")
	return c
}

type inspectOptions struct {
	asJSON bool
	format string
}

// narBytes are bytes of NARs, for people to read.
type narBytes int64

func (n narBytes) String() string { return units.BytesSize(float64(n)) }

// inspected is what there is to say of a container. It is what --json prints.
type inspected struct {
	ID   string `json:"id"`
	Name string `json:"name"` // the engine's; empty: it does not say one
	// Status: running, starting, ended, or without a record.
	Status      string    `json:"status"`
	Engine      string    `json:"engine"` // empty: not known
	Way         string    `json:"way"`    // annotation or device; empty: not known
	Mode        string    `json:"mode"`
	Roots       []string  `json:"roots"`
	ClosureInfo string    `json:"closureInfo"`
	Paths       int       `json:"paths"`
	Size        narBytes  `json:"size"` // of the closure's NARs, in bytes
	Since       time.Time `json:"since"`
	// Age is for people to read.
	Age          string `json:"-"`
	Registration bool   `json:"registration"`
	Listing      bool   `json:"listing"`
	Writable     bool   `json:"writable"`
	Digest       string `json:"digest"`
	View         string `json:"view"`
	GCRoots      string `json:"gcRoots"`
	Pid          int    `json:"pid"`
	Bundle       string `json:"bundle"`
	// Trouble is why something of this is missing.
	Trouble string `json:"trouble,omitempty"`
}

func (o inspectOptions) inspect(ctx context.Context, configPath string, names []string, out io.Writer) error {
	format, headed := strings.CutPrefix(o.format, "table ")
	if o.format == "" && len(names) == 0 && !o.asJSON {
		format, headed = inspectTable, true
	}
	t, err := template.New("format").Funcs(inspectFunctions).Parse(unescapeFormat(format))
	if err != nil {
		return misuse(fmt.Errorf("--format: %w", err))
	}
	c, err := config.Read(configPath)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	host, err := openHost(c, nil)
	if err != nil {
		return err
	}
	defer host.Close()
	containers, _, err := host.Containers(ctx)
	if err != nil {
		return err
	}
	if containers, err = verify.Select(containers, names); err != nil {
		return misuse(err)
	}
	db := openNix(ctx, c)
	defer db.close()
	all := []inspected{}
	for _, container := range containers {
		all = append(all, describe(ctx, db, container))
	}
	switch {
	case o.asJSON || format == "json":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(all)
	case format == "":
		return printWhole(out, all)
	}
	return printByTemplate(out, t, headed, all)
}

// describe is what there is to say of a container.
func describe(ctx context.Context, db *nix, container verify.Container) inspected {
	store := db.config.Store()
	i := inspected{ID: container.ID, Name: container.Name, Roots: []string{}}
	if running := container.Running; running != nil {
		i.Pid, i.Bundle = running.Pid, running.Bundle
	}
	r := container.Record
	switch {
	case container.Damaged != nil:
		i.Status, i.Trouble = "damaged record", container.Damaged.Error()
		return i
	case r == nil:
		i.Status, i.Trouble = "no record", "it asks for a closure and runs without one; see nix-closure verify"
		return i
	case container.Ended:
		i.Status = "ended"
	case r.Attached:
		i.Status = "running"
	default:
		i.Status = "starting"
	}
	for _, root := range r.Roots {
		i.Roots = append(i.Roots, store.Path(root))
	}
	if r.ClosureInfo != "" {
		i.ClosureInfo = store.Path(r.ClosureInfo)
	}
	i.Engine, i.Way, i.Mode, i.Since = string(r.Engine), r.Way, string(r.Mode), r.Created
	i.Age = units.HumanDuration(time.Since(r.Created)) + " ago"
	i.Registration, i.Listing, i.Writable = r.Registration != "", !r.Unlisted(), r.Writable
	i.Digest, i.View, i.GCRoots, i.Pid, i.Bundle = r.Digest, r.View, r.GCRoots, r.Pid, r.Bundle
	resolved, err := db.Closure(ctx, closure.Query{Roots: r.Roots, Info: r.ClosureInfo})
	if err == nil {
		i.Paths = len(resolved.Names)
		var infos []closure.PathInfo
		infos, err = db.Infos(ctx, resolved)
		for _, info := range infos {
			i.Size += narBytes(info.NarSize)
		}
	}
	if err != nil {
		i.Trouble = err.Error()
	}
	return i
}

// inspectTable is the table of all containers.
const inspectTable = `{{printf "%.12s" .ID}}\t{{.Name}}\t{{.Status}}\t{{.Engine}}\t{{.Way}}\t{{.Mode}}\t` +
	`{{join (short .Roots .ClosureInfo) ","}}\t{{.Paths}}\t{{.Size}}\t{{.Age}}`

// inspectHeadings are the headings of a table, by field.
var inspectHeadings = map[string]string{
	"ID": "CONTAINER", "Name": "NAME", "Status": "STATUS", "Engine": "ENGINE", "Way": "WAY", "Mode": "MODE",
	"Roots": "ROOTS", "ClosureInfo": "", "Paths": "PATHS", "Size": "SIZE", "Since": "SINCE", "Age": "SINCE",
	"Registration": "REGISTRATION", "Listing": "LISTING", "Writable": "WRITABLE", "Digest": "DIGEST", "View": "VIEW",
	"GCRoots": "GC ROOTS", "Pid": "PID", "Bundle": "BUNDLE",
}

// inspectFunctions are those of a template. They take a heading, a text, for a list.
var inspectFunctions = template.FuncMap{
	"join":  func(list any, separator string) string { return strings.Join(texts(list), separator) },
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"short": func(lists ...any) []string {
		var all []string
		for _, list := range lists {
			for _, path := range texts(list) {
				name := path[strings.LastIndexByte(path, '/')+1:]
				if _, err := closure.ParseBaseName(name); err == nil {
					_, name, _ = strings.Cut(name, "-")
				}
				if name != "" {
					all = append(all, name)
				}
			}
		}
		return all
	},
	"json": func(value any) (string, error) {
		text, err := json.Marshal(value)
		return string(text), err
	},
}

func texts(list any) []string {
	if all, ok := list.([]string); ok {
		return all
	}
	return []string{fmt.Sprint(list)}
}

// unescapeFormat has \t and \n mean what they do in podman's formats: a shell leaves them.
func unescapeFormat(format string) string {
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
}

func printByTemplate(out io.Writer, t *template.Template, headed bool, all []inspected) error {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(data any) error {
		if err := t.Execute(w, data); err != nil {
			return misuse(fmt.Errorf("--format: %w", err))
		}
		_, err := fmt.Fprintln(w)
		return err
	}
	if headed {
		if err := line(inspectHeadings); err != nil {
			return err
		}
	}
	for _, i := range all {
		if err := line(i); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for l := range strings.Lines(text.String()) {
		// The last column of a table is padded too.
		if _, err := fmt.Fprintln(out, strings.TrimRight(l, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printWhole prints all that there is to say of each container.
func printWhole(out io.Writer, all []inspected) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for n, i := range all {
		if n > 0 {
			_, _ = fmt.Fprintln(w)
		}
		for _, row := range []struct {
			name  string
			value any
		}{
			{"container", i.ID}, {"name", i.Name}, {"status", i.Status}, {"engine", i.Engine}, {"way", i.Way},
			{"mode", i.Mode}, {"roots", strings.Join(i.Roots, "\n\t")}, {"closure-info", i.ClosureInfo},
			{"paths", i.Paths}, {"size", i.Size}, {"since", i.Since.Format(time.RFC3339) + " (" + i.Age + ")"},
			{"registration", i.Registration}, {"listing", i.Listing}, {"writable", i.Writable}, {"digest", i.Digest},
			{"view", i.View}, {"GC roots", i.GCRoots}, {"process", i.Pid}, {"bundle", i.Bundle}, {"trouble", i.Trouble},
		} {
			if text := fmt.Sprint(row.value); text != "" {
				_, _ = fmt.Fprintf(w, "%s\t%s\n", row.name, text)
			}
		}
	}
	return w.Flush()
}
