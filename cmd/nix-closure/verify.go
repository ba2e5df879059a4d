// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/hook/verify"
	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/config"
)

// Exit statuses of verify, beside 0 and exitUsage.
const (
	exitWrong   = 1
	exitUnknown = 4
)

func verifyCommand(configPath *string) *cobra.Command {
	o := verifyOptions{config: configPath}
	c := &cobra.Command{
		Use:   "verify [CONTAINER...]",
		Short: "Prove of containers that run that they see their closure, and nothing else of the store",
		Long: `Prove of containers that run that they see their closure, and nothing else of
the store. For each container, or for those that are named (by ID, by the
beginning of one, or by name), it joins the mount namespace and compares what is
there with the record, with what Nix knows, and with the host's store:

- the names in the store directory, and each path's type, mode, owner, size and
  link; with --contents every file, by the hash that Nix registered;
- that the view is the record's, and read-only;
- that no other mount shows the store, Nix's state directory, the daemon's socket
  or the runtime directory;
- that the GC roots are there, and keep all of the closure;
- that the record is what the engine has the container ask for.

A container that asks for a closure and runs without a record is found too, by
what runc, crun, containerd and podman know. It changes nothing.

Each container is ok, wrong (and what, and what to do) or unknown (and why).
Containers of other users are not looked at: each user calls it for their own, in
podman's user namespace (podman unshare nix-closure verify).

Exit status: 0 if all are ok; 1 if one is wrong; 4 if none is wrong, and one is
unknown; 2 for a command line that is not understood.`,
		Example: `  nix-closure verify
  nix-closure verify --contents 3f1c
  nix-closure verify --json | jq '.containers[] | select(.state != "ok")'
  nix-closure verify --watch=1m --textfile /var/lib/prometheus/node-exporter/nix-closure.prom`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.out, o.progress = cmd.OutOrStdout(), progressOn(os.Stderr)
			return o.run(cmd.Context(), args)
		},
	}
	c.Flags().BoolVar(&o.contents, "contents", false, "compare the content of every file with what Nix registered")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print one JSON object; with --watch, one a line when anything changed")
	c.Flags().DurationVar(&o.watch, "watch", 0, "repeat after this time, until a signal; print what changed")
	c.Flags().Lookup("watch").NoOptDefVal = "10s"
	c.Flags().StringVar(&o.textfile, "textfile", "", "write metrics to this `file`, for Prometheus' node exporter")
	c.Flags().StringArrayVar(&o.runtimeRoots, "runtime-root", nil, "look for containers in this `directory` too: "+
		"the --root of a runc or crun, or the state directory of a containerd")
	return c
}

type verifyOptions struct {
	config           *string
	contents, asJSON bool
	watch            time.Duration
	textfile         string
	runtimeRoots     []string
	out              io.Writer
	progress         func(container string, done, all int)
}

// verified is what one look at all containers found. It is what --json prints.
type verified struct {
	Time       time.Time       `json:"time"`
	Containers []verify.Result `json:"containers"`
	// Troubles are why there may be containers that are not listed.
	Troubles []string      `json:"troubles,omitempty"`
	took     time.Duration // for all
}

func (o verifyOptions) run(ctx context.Context, names []string) error {
	if o.watch < 0 {
		return misuse(errors.New("--watch: the time between two looks is less than nothing"))
	}
	c, err := config.Read(*o.config)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	var last *verified
	for {
		now, err := o.verifyAll(ctx, c, names)
		if ctx.Err() != nil && last != nil {
			return last.status() // a signal ended the watch
		}
		if err != nil {
			return err
		}
		if err := o.report(last, now); err != nil {
			return err
		}
		if last = now; o.watch == 0 {
			return now.status()
		}
		select {
		case <-ctx.Done():
			return now.status()
		case <-time.After(o.watch):
		}
	}
}

// report prints what was found and writes the metrics. last is the look before; nil: this
// is the first.
func (o verifyOptions) report(last, now *verified) error {
	if last != nil {
		now.keepNames(last)
	}
	if o.textfile != "" {
		metrics := verify.Metrics(now.Containers, len(now.Troubles), now.Time, now.took)
		if err := atomicfile.WriteReadable(o.textfile, metrics); err != nil {
			return fmt.Errorf("writing the metrics: %w", err)
		}
	}
	switch {
	case o.asJSON && (last == nil || !slices.Equal(last.lines(), now.lines())):
		return json.NewEncoder(o.out).Encode(now)
	case o.asJSON:
		return nil
	case last == nil:
		return now.print(o.out)
	}
	return now.printChanges(o.out, last)
}

// verifyAll looks once at all containers that are named; none: at all.
func (o verifyOptions) verifyAll(ctx context.Context, c config.Config, names []string) (*verified, error) {
	began := time.Now()
	host, err := openHost(c, o.runtimeRoots)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	all, troubles, err := host.Containers(ctx)
	if err != nil {
		return nil, err
	}
	now := &verified{Time: began.UTC(), Containers: []verify.Result{}}
	for _, t := range troubles {
		now.Troubles = append(now.Troubles, strings.ReplaceAll(t.Error(), "\n", "; "))
	}
	selected, err := verify.Select(all, names)
	if err != nil {
		return nil, misuse(err)
	}
	db := openNix(ctx, c)
	defer db.close()
	v := verify.Verifier{Host: host, Nix: db, Contents: o.contents, Progress: o.progress}
	for _, container := range selected {
		r := v.Verify(ctx, container)
		if r.Ended && len(names) == 0 {
			continue // it is no container any more
		}
		now.Containers = append(now.Containers, r)
	}
	if o.progress != nil {
		o.progress("", 0, 0)
	}
	now.took = time.Since(began)
	return now, ctx.Err()
}

// openHost opens the records of the user who calls.
func openHost(c config.Config, runtimeRoots []string) (*verify.Host, error) {
	host, err := verify.OpenHost(c)
	if err != nil {
		return nil, fmt.Errorf("opening the runtime directory: %w; run as the user who runs the hook", err)
	}
	host.RuntimeRoots = runtimeRoots
	if c.Rootless {
		host.UserDir, _ = os.LookupEnv("XDG_RUNTIME_DIR") // the user's who calls
	}
	return host, nil
}

// status is the exit status, as an error.
func (v *verified) status() error {
	status := 0
	if len(v.Troubles) > 0 {
		status = exitUnknown
	}
	for _, r := range v.Containers {
		switch r.State {
		case verify.Wrong:
			return &statusError{status: exitWrong}
		case verify.Unknown:
			status = exitUnknown
		}
	}
	if status == 0 {
		return nil
	}
	return &statusError{status: status}
}

// print writes a line for each container, and below it what there is to say.
func (v *verified) print(out io.Writer) error {
	var b strings.Builder
	for _, r := range v.Containers {
		fmt.Fprintf(&b, "%-8s %s", r.State, titleOf(r))
		if r.Mode != "" {
			fmt.Fprintf(&b, " (%s, %d paths)", r.Mode, r.Paths)
		}
		b.WriteString("\n")
		for _, f := range r.Wrong {
			fmt.Fprintf(&b, "         %s; %s\n", f.What, f.Do)
		}
		for _, why := range r.Unknown {
			fmt.Fprintf(&b, "         unknown: %s\n", why)
		}
		for _, note := range r.Notes {
			fmt.Fprintf(&b, "         note: %s\n", note)
		}
	}
	for _, t := range v.Troubles {
		fmt.Fprintf(&b, "unknown  there may be more containers: %s\n", t)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func titleOf(r verify.Result) string {
	if r.Name == "" {
		return r.ID
	}
	return r.ID + " " + r.Name
}

// lines are what is to say of each container, a line each.
func (v *verified) lines() []string {
	var lines []string
	for _, r := range v.Containers {
		var why []string
		for _, f := range r.Wrong {
			why = append(why, f.What+"; "+f.Do)
		}
		why = append(why, r.Unknown...)
		line := titleOf(r) + " " + string(r.State)
		if len(why) > 0 {
			line += ": " + strings.Join(why, "; ")
		}
		lines = append(lines, line)
	}
	for _, t := range v.Troubles {
		lines = append(lines, "there may be more containers: "+t)
	}
	return lines
}

// keepNames gives containers the names that they had: an engine forgets the name of a
// container that it removes before the container is gone.
func (v *verified) keepNames(last *verified) {
	for i, r := range v.Containers {
		was := slices.IndexFunc(last.Containers, func(o verify.Result) bool { return o.ID == r.ID })
		if r.Name == "" && was >= 0 {
			v.Containers[i].Name = last.Containers[was].Name
		}
	}
}

// printChanges writes a line for each container that is not as it was.
func (v *verified) printChanges(out io.Writer, last *verified) error {
	before, now := last.lines(), v.lines()
	at := v.Time.Format(time.RFC3339)
	for _, line := range now {
		if !slices.Contains(before, line) {
			if _, err := fmt.Fprintln(out, at, line); err != nil {
				return err
			}
		}
	}
	for _, r := range last.Containers {
		if slices.ContainsFunc(v.Containers, func(o verify.Result) bool { return o.ID == r.ID }) {
			continue
		}
		if _, err := fmt.Fprintln(out, at, titleOf(r), "gone"); err != nil {
			return err
		}
	}
	return nil
}

// progressOn shows what is done on a terminal; on anything else, nil.
func progressOn(f *os.File) func(container string, done, all int) {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return func(container string, done, all int) {
		const toEnd = "\r\033[K"
		if all == 0 {
			_, _ = fmt.Fprint(f, toEnd)
			return
		}
		_, _ = fmt.Fprintf(f, toEnd+"%.12s: %d of %d paths", container, done, all)
	}
}
