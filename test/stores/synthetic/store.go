// SPDX-License-Identifier: Apache-2.0

// Package synthetic makes a Nix store of many small paths, for what is measured and
// for what needs a closure of a certain size.
package synthetic

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const storeDir = "/nix/store"

// referencesEach is about what a store path of nixpkgs has.
const referencesEach = 8

// Store is a Nix store of synthetic paths, all registered. For each size it
// has a root whose closure is the first so many paths, so the larger closures
// hold the smaller ones, as closures on a real host do.
type Store struct {
	Paths []string
}

// Make adds so many paths to the store in /nix. sizes are those of the closures,
// in ascending order.
func Make(size int, sizes []int) (*Store, error) {
	if _, err := nixStore(nil, "--init"); err != nil {
		return nil, err
	}
	s := &Store{Paths: make([]string, size)}
	for i := range s.Paths {
		s.Paths[i] = filepath.Join(storeDir, baseName(i))
	}
	var registration bytes.Buffer
	random := rand.New(rand.NewPCG(1, 2))
	ends := sizes
	if ends[len(ends)-1] < size {
		ends = append(slices.Clone(ends), size)
	}
	begin := 0
	for _, end := range ends {
		for i := begin; i < end; i++ {
			refs := references(i, begin, end, random)
			if err := s.make(i, refs); err != nil {
				return nil, err
			}
			fmt.Fprintf(&registration, "%s\n\n%d\n", s.Paths[i], len(refs))
			for _, r := range refs {
				fmt.Fprintln(&registration, s.Paths[r])
			}
		}
		begin = end
	}
	if _, err := nixStore(&registration, "--register-validity"); err != nil {
		return nil, err
	}
	for _, n := range sizes {
		closure, err := nixStore(nil, "--query", "--requisites", s.Root(n))
		if err != nil {
			return nil, err
		}
		if got := bytes.Count(closure, []byte("\n")); got != n {
			return nil, fmt.Errorf("the closure of %s has %d paths and not %d", s.Root(n), got, n)
		}
	}
	// Written back now, the store is not written back while something is timed.
	syscall.Sync()
	return s, nil
}

// Root is the store path whose closure has so many paths.
func (s *Store) Root(n int) string { return s.Paths[n-1] }

// Closure is the closure of Root(n).
func (s *Store) Closure(n int) []string { return s.Paths[:n] }

// baseName makes a valid name for the path with this number.
func baseName(i int) string {
	const base32 = "0123456789abcdfghijklmnpqrsvwxyz"
	hash := sha256.Sum256(fmt.Append(nil, i))
	for k, b := range hash {
		hash[k] = base32[b%32]
	}
	return fmt.Sprintf("%s-package-%d", hash, i)
}

// references says to which paths the path i refers, all with smaller numbers.
// Of the paths from begin to end, the last reaches every other by a tree that
// is four wide, and the closure that ends before begin as well. The other
// references are at random.
func references(i, begin, end int, random *rand.Rand) []int {
	var refs []int
	place := end - 1 - i
	for child := 4*place + 1; child <= 4*place+4 && child < end-begin; child++ {
		refs = append(refs, end-1-child)
	}
	if place == 0 && begin > 0 {
		refs = append(refs, begin-1)
	}
	for len(refs) < min(referencesEach, i) {
		if r := random.IntN(i); !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs
}

// make puts something at the path i: mostly a directory, at times a regular
// file or a symlink to the first path that it refers to.
func (s *Store) make(i int, refs []int) error {
	path, text := s.Paths[i], fmt.Append(nil, "package ", i, "\n")
	switch {
	case i%50 == 25:
		return os.Symlink(s.Paths[refs[0]], path)
	case i%10 == 5:
		return os.WriteFile(path, text, 0o444)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(path, "about"), text, 0o444)
}

func nixStore(input *bytes.Buffer, args ...string) ([]byte, error) {
	cmd := exec.Command("nix-store", args...)
	if input != nil {
		cmd.Stdin = input
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("nix-store %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return output, nil
}

// Files adds a closure of so many paths, with so many files of some KiB in each, and
// returns its root and all paths.
func (s *Store) Files(count, each int) (root string, paths []string, _ error) {
	begin, end := len(s.Paths), len(s.Paths)+count
	random := rand.New(rand.NewPCG(uint64(count), uint64(each)))
	content := make([]byte, 8<<10)
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	for i := begin; i < end; i++ {
		s.Paths = append(s.Paths, filepath.Join(storeDir, baseName(i)))
	}
	var registration bytes.Buffer
	for i := begin; i < end; i++ {
		var refs []int
		place := end - 1 - i
		for child := 4*place + 1; child <= 4*place+4 && child < count; child++ {
			refs = append(refs, end-1-child)
		}
		if err := os.MkdirAll(filepath.Join(s.Paths[i], "share"), 0o755); err != nil {
			return "", nil, err
		}
		for k := range each {
			size := 512 + random.IntN(len(content)-512)
			file := filepath.Join(s.Paths[i], "share", fmt.Sprintf("file-%d", k))
			if err := os.WriteFile(file, content[:size], 0o444); err != nil {
				return "", nil, err
			}
		}
		fmt.Fprintf(&registration, "%s\n\n%d\n", s.Paths[i], len(refs))
		for _, r := range refs {
			fmt.Fprintln(&registration, s.Paths[r])
		}
	}
	if _, err := nixStore(&registration, "--register-validity"); err != nil {
		return "", nil, err
	}
	syscall.Sync()
	return s.Paths[end-1], s.Paths[begin:end], nil
}
