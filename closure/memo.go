// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
)

// Query is what a container asks for: roots, a closure-info, or both: a closure-info
// by an annotation, and roots by mounts.
type Query struct {
	Roots []BaseName
	Info  BaseName // empty: none
}

// RowVersion tells one row of a store path in Nix's database from the next: a path that
// was collected and came back has another.
type RowVersion struct {
	Row  int64
	Time int64 // seconds since 1970
}

// Memo remembers resolved closures in a directory, so that a second container
// with the same roots starts without asking Nix.
//
// It rests on this: as long as a store path stays registered, everything that
// it references does, and its references never change. So a closure is known
// from the rows of its roots, and these from a look at the database's
// files, where they did not change since they were read.
//
// Whoever can write the directory decides what containers see. It is in the
// runtime directory, which only its owner may enter.
type Memo struct {
	Dir   *os.Root
	Store Store
}

// entry is what one file of the memo holds.
type entry struct {
	Digest   string
	Paths    int
	Pins     []BaseName
	Versions []RowVersion // of the pins
	Since    int64        // see Resolution
	Stamp    Stamp
}

// The file has the entry as text: a line for the closure, one for the stamp, one
// for each pin, and one that says that it is whole. It is read at every start,
// and what reads JSON takes longer to prepare itself than this takes.
const (
	closureLine = "closure %s %d %d\n"
	stampLine   = "stamp %d %d %d %d %d %d %d\n"
	pinLine     = "pin %s %d %d\n"
	lastLine    = "end\n"
)

func (e entry) text() []byte {
	db, wal := e.Stamp.Files[0], e.Stamp.Files[1]
	text := fmt.Appendf(nil, closureLine, e.Digest, e.Paths, e.Since)
	text = fmt.Appendf(text, stampLine, e.Stamp.Taken,
		db.Inode, db.Size, db.Modified, wal.Inode, wal.Size, wal.Modified)
	for i, p := range e.Pins {
		text = fmt.Appendf(text, pinLine, p, e.Versions[i].Row, e.Versions[i].Time)
	}
	return append(text, lastLine...)
}

// parseEntry reads what text wrote, and nothing else.
func parseEntry(text []byte) (e entry, ok bool) {
	s := string(text)
	next := func(format string, to ...any) bool {
		var line string
		line, s, ok = strings.Cut(s, "\n")
		if !ok {
			return false
		}
		n, err := fmt.Sscanf(line+"\n", format, to...)
		return err == nil && n == len(to)
	}
	db, wal := &e.Stamp.Files[0], &e.Stamp.Files[1]
	if !next(closureLine, &e.Digest, &e.Paths, &e.Since) ||
		!next(stampLine, &e.Stamp.Taken, &db.Inode, &db.Size, &db.Modified, &wal.Inode, &wal.Size, &wal.Modified) {
		return entry{}, false
	}
	for s != lastLine {
		var p BaseName
		var r RowVersion
		if !next(pinLine, &p, &r.Row, &r.Time) {
			return entry{}, false
		}
		e.Pins, e.Versions = append(e.Pins, p), append(e.Versions, r)
	}
	// Written anew it is the same: there was nothing in it that was not read.
	return e, bytes.Equal(e.text(), text)
}

func (m Memo) file(q Query) string {
	text := fmt.Appendf(nil, "%q %q %q", m.Store.Dir, m.Store.StateDir, q.Info)
	roots := slices.Clone(q.Roots)
	slices.Sort(roots)
	for _, r := range slices.Compact(roots) {
		text = append(append(text, ' '), r...)
	}
	sum := sha256.Sum256(text)
	return "roots-" + hex.EncodeToString(sum[:20])
}

// EntryName is the name of the file that says what is remembered of q.
func (m Memo) EntryName(q Query) string { return m.file(q) }

// lookup returns what is remembered of q. Anything that is not whole is not
// remembered.
func (m Memo) lookup(q Query) (entry, bool) {
	data, err := m.Dir.ReadFile(m.file(q))
	if err != nil {
		return entry{}, false
	}
	e, ok := parseEntry(data)
	if !ok || len(e.Pins) == 0 || !IsDigest(e.Digest) {
		return entry{}, false
	}
	for _, p := range e.Pins {
		if _, err := ParseBaseName(string(p)); err != nil {
			return entry{}, false
		}
	}
	return e, true
}

// IsDigest tells whether s has the form of a closure's digest.
func IsDigest(s string) bool { return len(s) == 2*sha256.Size && only(s, "0123456789abcdef") }

func (m Memo) save(q Query, e entry) error {
	return atomicfile.Write(m.Dir, m.file(q), e.text())
}

// Load returns the remembered closure with this digest. It is checked against
// the digest: what was damaged is an error.
func (m Memo) Load(digest string) (Closure, error) {
	text, err := m.Dir.ReadFile(digest)
	if err != nil {
		return Closure{}, err
	}
	c, err := Parse(m.Store, string(text))
	if err == nil && c.Digest() != digest {
		err = ErrText
	}
	if err != nil {
		return Closure{}, fmt.Errorf("%s/%s: %w", m.Dir.Name(), digest, err)
	}
	return c, nil
}

// store keeps a closure for Load. A digest has one text, so what is there with
// the right size is left alone.
func (m Memo) store(c Closure) error {
	if st, err := m.Dir.Lstat(c.Digest()); err == nil && st.Size() == int64(len(c.Text())) {
		return nil
	}
	return atomicfile.Write(m.Dir, c.Digest(), []byte(c.Text()))
}

// Forget drops what is remembered of q, and the closure with this digest.
func (m Memo) Forget(q Query, digest string) error {
	var errs []error
	for _, name := range []string{m.file(q), digest} {
		if err := m.Dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
