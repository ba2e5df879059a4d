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

// usualPlaces are the paths of nix-store on NixOS, after Nix's own installer, and from a
// distribution's package.
var usualPlaces = []string{
	"/run/current-system/sw/bin/nix-store",
	"/nix/var/nix/profiles/default/bin/nix-store",
	"/usr/bin/nix-store",
	"/usr/local/bin/nix-store",
}

// NixStore runs Nix's own program nix-store. The program gets an environment of its own, so
// neither a container's environment nor an operator's shell can change what it does.
type NixStore struct {
	Program string // absolute path; empty: the usual places
	Store   Store
	// Cache is the directory in which Nix remembers what substituters have. Nix cannot
	// fetch without it. Empty: nothing is fetched.
	Cache string
}

// Versions fails with NotValidError if a name is not valid. The versions are zero, because
// nix-store does not identify rows.
func (n NixStore) Versions(ctx context.Context, names []BaseName) ([]RowVersion, error) {
	for chunk := range slices.Chunk(names, chunkSize) {
		// It prints the paths that are not valid, and exits with 0.
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

// Infos is `nix-store --dump-db`, parsed as by ParseDump. It has less than the database: no
// signatures, and no times of registration.
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

// Stamp returns the zero Stamp: what nix-store says counts for this moment only.
func (n NixStore) Stamp() Stamp { return Stamp{} }

// offline keeps Nix from fetching and building.
var offline = []string{"--option", "substitute", "false", "--option", "max-jobs", "0", "--option", "builders", ""}

// Realise tells a running garbage collector about these names, which must be valid, so that
// the collector leaves them alone until it ends. It fetches and builds nothing. A path that
// is not valid is an error.
//
// If rootsDir is not empty, it must be an absolute path. Then Realise makes the names GC
// roots, by links in that directory. These are indirect roots, the only ones that Nix makes
// for every user. They end when the links are removed.
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

// chunkSize keeps a command line below the kernel's limit.
const chunkSize = 1000

func (n NixStore) paths(names []BaseName) []string {
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = n.Store.Path(name)
	}
	return paths
}

// run runs nix-store, and returns its output.
func (n NixStore) run(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	if err := n.watch(ctx, &out, nil, args...); err != nil {
		return "", err
	}
	return out.String(), nil
}

// stream runs nix-store, and reads its output with read.
func (n NixStore) stream(ctx context.Context, read func(io.Reader) error, args ...string) error {
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := read(out)
		// Let nix-store run to its end: its own error says more.
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

// watch runs nix-store with its output to out. It calls report with each line of standard
// error, while nix-store runs.
func (n NixStore) watch(ctx context.Context, out io.Writer, report func(line string), args ...string) error {
	program, err := n.Path()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
		"HOME=/var/empty", // so that no user's nix.conf counts
		"NIX_STORE_DIR=" + n.Store.Dir,
		"NIX_STATE_DIR=" + n.Store.StateDir,
	}
	if n.Cache != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+n.Cache)
	}
	cmd.Dir = "/"
	errs := lines{report: report}
	cmd.Stdout, cmd.Stderr = out, &errs
	// On SIGTERM, Nix ends in order: it releases its locks, and removes what is incomplete.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = waitDelay
	// Without its parent, nix-store would keep its locks, and the next process that fetches
	// would wait for them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	err = cmd.Run()
	_, _ = errs.Write([]byte{'\n'}) // a killed program may not have ended its line
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

// lines splits what a program writes into lines.
type lines struct {
	report func(line string) // nil: nobody
	begun  []byte            // a line whose end has not come yet
	last   string
	error  string // the first error: the later ones follow from it
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
