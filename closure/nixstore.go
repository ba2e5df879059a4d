// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/idmap"
)

// usualPlaces is where nix-store is, on NixOS, after Nix's own installer, and
// from a distribution's package.
var usualPlaces = []string{
	"/run/current-system/sw/bin/nix-store",
	"/nix/var/nix/profiles/default/bin/nix-store",
	"/usr/bin/nix-store",
	"/usr/local/bin/nix-store",
}

// NixStore is Nix's own program nix-store. It runs with an environment of its
// own: neither a container's nor an operator's shell can change what it does.
type NixStore struct {
	Program string // absolute path; empty: the usual places
	Store   Store
	// Cache is where Nix writes what it remembers of substituters, which it cannot
	// do without; empty: nothing is fetched.
	Cache string
}

// Versions finds out whether the names are valid. nix-store does not tell
// one row from the next.
func (n NixStore) Versions(ctx context.Context, names []BaseName) ([]RowVersion, error) {
	for chunk := range slices.Chunk(names, chunkSize) {
		// Prints the paths that are not valid, and is content.
		out, err := n.run(ctx, append([]string{"--check-validity", "--print-invalid"}, n.paths(chunk)...)...)
		if err != nil {
			return nil, err
		}
		if out != "" {
			return nil, &NotValidError{firstLine(out)}
		}
	}
	return make([]RowVersion, len(names)), nil
}

// Closure is `nix-store --query --requisites`.
func (n NixStore) Closure(ctx context.Context, names []BaseName, max int) ([]BaseName, error) {
	if _, err := n.Versions(ctx, names); err != nil {
		return nil, err
	}
	var all []BaseName
	for chunk := range slices.Chunk(names, chunkSize) {
		out, err := n.run(ctx, append([]string{"--query", "--requisites"}, n.paths(chunk)...)...)
		if err != nil {
			return nil, err
		}
		part, err := ParseStorePaths(n.Store, strings.NewReader(out), max)
		if err != nil {
			return nil, fmt.Errorf("the output of nix-store: %w", err)
		}
		all = append(all, part...)
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) > max {
		return nil, &TooLargeError{max}
	}
	return all, nil
}

// Infos is `nix-store --dump-db`, as ParseDump reads it. It knows less than
// the database: neither signatures nor when a path was registered.
func (n NixStore) Infos(ctx context.Context, c Closure) ([]PathInfo, error) {
	r := newDumpReader(n.Store, c)
	for chunk := range slices.Chunk(c.Names, chunkSize) {
		if err := n.stream(ctx, r.read, append([]string{"--dump-db"}, n.paths(chunk)...)...); err != nil {
			return nil, err
		}
	}
	infos, err := r.registration()
	if err != nil {
		return nil, fmt.Errorf("the output of nix-store --dump-db: %w", err)
	}
	return infos, nil
}

// Stamp is zero: what nix-store says is about the moment.
func (n NixStore) Stamp() Stamp { return Stamp{} }

// offline keeps Nix from fetching and building.
var offline = []string{"--option", "substitute", "false", "--option", "max-jobs", "0", "--option", "builders", ""}

// Realise registers the names, which are valid, with a garbage collector that
// is running, so that it leaves them alone until it ends. It fetches and builds
// nothing. A path that is not valid is an error.
//
// Where rootsDir, an absolute path, is not empty, it makes them GC roots by links
// in that directory, in the one way that Nix has for every user: as indirect
// roots, which end when the links are gone.
func (n NixStore) Realise(ctx context.Context, names []BaseName, rootsDir string) error {
	part := 0
	for chunk := range slices.Chunk(names, chunkSize) {
		args := append(slices.Clone(offline), "--realise")
		if rootsDir != "" {
			part++
			args = append(args, "--indirect", "--add-root", fmt.Sprintf("%s/roots-%d", rootsDir, part))
		}
		if _, err := n.run(ctx, append(args, n.paths(chunk)...)...); err != nil {
			return err
		}
	}
	return nil
}

// chunkSize keeps a command line under the kernel's limit.
const chunkSize = 1000

func (n NixStore) paths(names []BaseName) []string {
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = n.Store.Path(name)
	}
	return paths
}

// run runs nix-store, and returns what it prints.
func (n NixStore) run(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	if err := n.watch(ctx, &out, nil, args...); err != nil {
		return "", err
	}
	return out.String(), nil
}

// stream runs nix-store, and has read read what it prints.
func (n NixStore) stream(ctx context.Context, read func(io.Reader) error, args ...string) error {
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := read(out)
		// nix-store goes on to its end: its own error says more.
		_, _ = io.Copy(io.Discard, out)
		done <- err
	}()
	err := n.watch(ctx, in, nil, args...)
	_ = in.Close() // returns nil
	readErr := <-done
	if err == nil && readErr != nil {
		err = fmt.Errorf("the output of nix-store %s: %w", args[0], readErr)
	}
	return err
}

// watch runs nix-store, which prints to out. Each line that it writes to its
// standard error is reported while it runs.
func (n NixStore) watch(ctx context.Context, out io.Writer, report func(line string), args ...string) error {
	program, err := n.Path()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
		"HOME=/var/empty", // no user's nix.conf
		"NIX_STORE_DIR=" + n.Store.Dir,
		"NIX_STATE_DIR=" + n.Store.StateDir,
	}
	if n.Cache != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+n.Cache)
	}
	cmd.Dir = "/"
	errs := lines{report: report}
	cmd.Stdout, cmd.Stderr = out, &errs
	// Nix ends in order when it is asked to: it releases its locks, and removes
	// what it did not finish.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = waitDelay
	// Without who waits for it, it would keep its locks from who fetches next.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	err = cmd.Run()
	_, _ = errs.Write([]byte{'\n'}) // what was killed may not have ended its line
	if err != nil {
		said := errs.error
		if said == "" {
			said = errs.last
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if said != "" {
			return fmt.Errorf("%s: %w: %s", program, err, said)
		}
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

// lines takes what a program writes apart into lines.
type lines struct {
	report func(line string) // nil: nobody
	begun  []byte            // a line without its end
	last   string
	error  string // the first: what comes after it follows from it
}

func (l *lines) Write(text []byte) (int, error) {
	for _, b := range text {
		if b != '\n' && b != '\r' {
			if len(l.begun) < longestLine {
				l.begun = append(l.begun, b)
			}
			continue
		}
		if line := strings.TrimSpace(string(l.begun)); line != "" {
			l.last = line
			if said, ok := strings.CutPrefix(line, "error: "); ok && l.error == "" {
				l.error = said
			}
			if l.report != nil {
				l.report(line)
			}
		}
		l.begun = l.begun[:0]
	}
	return len(text), nil
}

// Path is where the program is: as configured, or at one of the usual places.
func (n NixStore) Path() (string, error) {
	if n.Program != "" {
		return n.Program, nil
	}
	roots := idmap.RootIDs()
	for _, p := range usualPlaces {
		var st unix.Stat_t
		err := unix.Stat(p, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && slices.Contains(roots, st.Uid) {
			return p, nil
		}
	}
	return "", errors.New("nix-store is at none of the usual places; name it as nix-store in the configuration")
}
