// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// mention is a place in a store path where the hash of another one stands. That is all
// that Nix looks for to find out what references what.
type mention struct {
	File string `json:"file"` // below the store path; "." is the store path itself
	In   string `json:"in"`
}

// Where in a file a hash can stand.
const (
	inContents = "contents"
	inTarget   = "target" // of a symlink
	inName     = "name"
)

// mentionSearch looks through one store path for the hashes of others.
type mentionSearch struct {
	path   string // the store path
	hashes [][]byte
	all    bool // else the first mention of each
	found  [][]mention
	left   int // hashes without a mention
	buffer []byte
}

// findMentions returns, for each of the names, where in the store path `in` it is
// referenced: nowhere, if the registration says more than the files.
func findMentions(
	ctx context.Context, store closure.Store, in closure.BaseName, names []closure.BaseName, all bool,
) ([][]mention, error) {
	s := mentionSearch{
		path: store.Path(in), all: all, found: make([][]mention, len(names)), left: len(names),
		buffer: make([]byte, 1<<20),
	}
	for _, name := range names {
		s.hashes = append(s.hashes, []byte(name[:strings.IndexByte(string(name), '-')]))
	}
	err := filepath.WalkDir(s.path, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = s.look(path, entry)
		}
		if err == nil && s.left == 0 && !s.all {
			return fs.SkipAll
		}
		return err
	})
	return s.found, err
}

func (s *mentionSearch) look(path string, entry fs.DirEntry) error {
	file, err := filepath.Rel(s.path, path)
	if err != nil {
		return err
	}
	if file != "." {
		s.note(file, inName, []byte(entry.Name()))
	}
	switch entry.Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		s.note(file, inTarget, []byte(target))
		return err
	case 0:
		return s.read(path, file)
	}
	return nil
}

// note notes the hashes that a text has.
func (s *mentionSearch) note(file, in string, text []byte) {
	for i, hash := range s.hashes {
		found := s.found[i]
		if len(found) > 0 && (!s.all || found[len(found)-1] == mention{file, in}) || !bytes.Contains(text, hash) {
			continue
		}
		if len(found) == 0 {
			s.left--
		}
		s.found[i] = append(found, mention{File: file, In: in})
	}
}

// read notes the hashes in a file, a piece at a time, the end of one with the next.
func (s *mentionSearch) read(path, file string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const overlap = 31
	for kept := 0; ; {
		n, err := io.ReadFull(f, s.buffer[kept:])
		s.note(file, inContents, s.buffer[:kept+n])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		kept = copy(s.buffer, s.buffer[len(s.buffer)-overlap:])
	}
}
