// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
	"github.com/nix-closure/nix-closure/internal/settle"
)

// asProgram tells a child of this test to be nix-closure.
const asProgram = "NIX_CLOSURE_TEST_PROGRAM"

// peakFile tells such a child where to write its peak of memory. The kernel counts what its
// parent had at most as the child's own.
const peakFile = "NIX_CLOSURE_TEST_PEAK"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		status := run()
		if file := os.Getenv(peakFile); file != "" {
			text, err := os.ReadFile("/proc/self/status")
			if err = errors.Join(err, os.WriteFile(file, text, 0o600)); err != nil {
				panic(err)
			}
		}
		os.Exit(status)
	}
	os.Exit(settle.Run(m.Run))
}

// host is a host in a directory, with paths store paths in a closure-info.
type host struct {
	config string
	store  closure.Store
	info   closure.BaseName
	paths  []closure.BaseName
}

const narHash = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func newHost(t *testing.T, paths int) host {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // a short name, for short lines
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	h := host{config: dir + "/c", store: closure.Store{Dir: dir + "/s", StateDir: dir + "/v"}}
	text := fmt.Sprintf("store-dir = %q\nstate-dir = %q\nruntime-dir = %q\nlog-file = %q\n",
		h.store.Dir, h.store.StateDir, dir+"/run", dir+"/log")
	h.info = closure.BaseName(strings.Repeat("1", 32) + "-info")
	infos := []closure.PathInfo{{Name: h.info, NarHash: narHash, NarSize: 1}}
	var list strings.Builder
	for i := range paths {
		name := closure.BaseName(fmt.Sprintf("%032d-p", i))
		h.paths = append(h.paths, name)
		infos = append(infos, closure.PathInfo{Name: name, NarHash: narHash, NarSize: 1})
		fmt.Fprintln(&list, h.store.Path(name))
	}
	must(t, os.WriteFile(h.config, []byte(text), 0o600))
	must(t, os.MkdirAll(filepath.Dir(h.store.DatabasePath()), 0o755))
	must(t, os.MkdirAll(h.store.Path(h.info), 0o755))
	must(t, os.WriteFile(h.store.Path(h.info)+"/store-paths", []byte(list.String()), 0o444))
	must(t, nixdb.WriteRegistration(t.Context(), h.store.DatabasePath(), h.store, infos))
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry writes the lines of a path up to its references.
func entry(w *bufio.Writer, path, deriver string, references int) {
	_, _ = fmt.Fprintf(w, "%s\n%s\n1\n%s\n%d\n", path, narHash, deriver, references)
}

// allReferenceAll writes a registration in which every path references every path.
func allReferenceAll(h host, w *bufio.Writer) {
	for _, n := range h.paths {
		entry(w, h.store.Path(n), "", len(h.paths))
		for _, r := range h.paths {
			_, _ = fmt.Fprintln(w, h.store.Path(r))
		}
	}
}

// honest writes a registration with as many references and derivers as occur in practice.
func honest(h host, w *bufio.Writer) {
	for i, n := range h.paths {
		first := max(0, i-12)
		entry(w, h.store.Path(n), fmt.Sprintf("%s/%032d-some-package-1.2.3.drv", h.store.Dir, i), i-first)
		for _, r := range h.paths[first:i] {
			_, _ = fmt.Fprintln(w, h.store.Path(r))
		}
	}
}

// otherPaths writes a registration of paths and references outside the closure, after the
// one path in it.
func otherPaths(h host, w *bufio.Writer) {
	entry(w, h.store.Path(h.paths[0]), "", 0)
	for i := range 400_000 {
		other := fmt.Sprintf("%s/%032d-x", h.store.Dir, i)
		entry(w, other, other, 1)
		_, _ = fmt.Fprintln(w, other)
	}
}

// otherReferences writes a path with a million and a half references.
func otherReferences(h host, w *bufio.Writer) {
	entry(w, h.store.Path(h.paths[0]), "", 1_500_000)
	for i := range 1_500_000 {
		_, _ = fmt.Fprintf(w, "%s/%032d-x\n", h.store.Dir, i)
	}
}

func longLine(_ host, w *bufio.Writer) {
	for range 90 << 10 {
		_, _ = w.WriteString(strings.Repeat("x", 1<<10))
	}
}

// TestRegistrationMemory measures the memory of the whole program, including making the
// database. Whoever may add to the store writes the file, and root's hook calls the
// program to read it.
func TestRegistrationMemory(t *testing.T) {
	const file = "/registration: "
	for _, c := range []struct {
		name  string
		paths int
		write func(host, *bufio.Writer)
		least int64  // MiB, file size
		most  int64  // MiB, memory
		err   string // with the host's store
	}{
		{name: "all reference all, too large", paths: 1600, write: allReferenceAll, least: 120, most: 40,
			err: file + "larger than 96 MiB"},
		{name: "other paths", paths: 3, write: otherPaths, least: 80, most: 40,
			err: file + "line 6: STORE/" + strings.Repeat("0", 32) + "-x is registered, but not in the closure"},
		{name: "other references", paths: 3, write: otherReferences, least: 70, most: 40,
			err: file + "line 5: 1500000 references, but the closure has 3 paths"},
		{name: "a long line", paths: 3, write: longLine, least: 90, most: 40,
			err: file + "line 1: longer than 4096 bytes"},
		{name: "all reference all", paths: 1360, write: allReferenceAll, least: 90, most: 160},
		{name: "honest and large", paths: 50_000, write: honest, least: 35, most: 150},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, c.paths)
			f, err := os.Create(h.store.Path(h.info) + "/registration")
			must(t, err)
			w := bufio.NewWriter(f)
			c.write(h, w)
			must(t, w.Flush())
			st, err := f.Stat()
			must(t, err)
			must(t, f.Close())
			if st.Size()>>20 < c.least {
				t.Fatalf("the file has %d MiB", st.Size()>>20)
			}
			cmd := exec.Command("/proc/self/exe",
				"--config", h.config, "resolve", "--closure-info", "--registration", h.store.Path(h.info))
			cmd.Env = []string{asProgram + "=1", peakFile + "=" + f.Name() + ".peak"}
			var said bytes.Buffer
			cmd.Stderr = &said
			err = cmd.Run()
			want := ""
			if c.err != "" {
				path := h.store.Path(h.info) + strings.ReplaceAll(c.err, "STORE", h.store.Dir)
				want = "nix-closure: " + path + "\n"
			}
			if (err == nil) != (c.err == "") || said.String() != want {
				t.Errorf("%v: %s\nwant %s", err, &said, want)
			}
			status, err := os.ReadFile(f.Name() + ".peak")
			must(t, err)
			var peak int64
			_, after, _ := strings.Cut(string(status), "VmHWM:")
			_, err = fmt.Sscan(after, &peak) // KiB
			must(t, err)
			peak >>= 10
			t.Logf("%d MiB of memory for a file of %d MiB", peak, st.Size()>>20)
			if peak > c.most {
				t.Errorf("%d MiB of memory for a file of %d MiB", peak, st.Size()>>20)
			}
		})
	}
}
