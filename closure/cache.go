// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// Query is what a container asks for: roots, a closure-info, or both. With both, the
// closure-info is from an annotation and the roots are from mounts.
type Query struct {
	Roots []BaseName
	Info  BaseName // empty: none
}

// RowVersion identifies one row of a store path in Nix's database. A path that was
// collected and came back has another one.
type RowVersion struct {
	Row  int64
	Time int64 // seconds since 1970
}

// Cache remembers resolved closures in a directory, so that the second container with the
// same roots starts without asking Nix.
//
// It relies on this: while a store path stays registered, everything that it references
// stays registered, and its references never change. So the rows of the roots identify a
// closure. And if the database's files did not change, the rows did not change either: see
// Stamp.
//
// A user who can write to the directory decides what containers see. So the directory must
// be one that only its owner may enter, such as the runtime directory.
type Cache struct {
	Dir   *owndir.Dir
	Store Store
}

// entry is what one file of the cache has.
type entry struct {
	Digest   string
	Paths    int
	Pins     []BaseName
	Versions []RowVersion // of the pins
	Since    int64        // see Resolution
	Stamp    Stamp
}

// The file has the entry as text: one line for the closure, one for the stamp, one for each
// pin, and a last line that says that the file is complete. The file is read at every
// start, and a JSON decoder takes longer to prepare itself than to read this text.
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

// parseEntry parses what text returned, and nothing else. It goes without fmt's scanning,
// which takes a start longer than the rest of looking an entry up.
func parseEntry(text []byte) (e entry, ok bool) {
	rest := string(text)
	var words []string
	next := func(format string) bool {
		var line string
		line, rest, ok = strings.Cut(rest, "\n")
		words = strings.Split(line, " ")
		return ok && len(words) == strings.Count(format, " ")+1
	}
	ok = true
	number := func(i int) int64 {
		n, err := strconv.ParseInt(words[i], 10, 64)
		ok = ok && err == nil
		return n
	}
	mark := func(i int) fileMark {
		inode, err := strconv.ParseUint(words[i], 10, 64)
		ok = ok && err == nil
		return fileMark{Inode: inode, Size: number(i + 1), Modified: number(i + 2)}
	}
	if !next(closureLine) {
		return entry{}, false
	}
	e.Digest, e.Paths, e.Since = words[1], int(number(2)), number(3)
	if !ok || !next(stampLine) {
		return entry{}, false
	}
	e.Stamp = Stamp{Taken: number(1), Files: [2]fileMark{mark(2), mark(5)}}
	for ok && rest != lastLine {
		if !next(pinLine) {
			return entry{}, false
		}
		e.Pins = append(e.Pins, BaseName(words[1]))
		e.Versions = append(e.Versions, RowVersion{Row: number(2), Time: number(3)})
	}
	// If the entry gives the same text again, nothing in the text was ignored.
	return e, ok && bytes.Equal(e.text(), text)
}

func (cache Cache) file(q Query) string {
	text := fmt.Appendf(nil, "%q %q %q", cache.Store.Dir, cache.Store.StateDir, q.Info)
	roots := slices.Clone(q.Roots)
	slices.Sort(roots)
	for _, r := range slices.Compact(roots) {
		text = append(append(text, ' '), r...)
	}
	sum := sha256.Sum256(text)
	return "roots-" + hex.EncodeToString(sum[:20])
}

// EntryName returns the name of the file that remembers q.
func (cache Cache) EntryName(q Query) string { return cache.file(q) }

// lookup returns what is remembered of q. An incomplete file counts as missing.
func (cache Cache) lookup(q Query) (entry, bool) {
	data, err := cache.Dir.ReadFile(cache.file(q))
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

// IsDigest reports whether s has the form of a closure's digest.
func IsDigest(s string) bool { return len(s) == 2*sha256.Size && only(s, "0123456789abcdef") }

func (cache Cache) save(q Query, e entry) error {
	return atomicfile.Write(cache.Dir, cache.file(q), e.text())
}

// Load returns the remembered closure with this digest. It guarantees that the closure has
// the digest: a damaged file is an error.
func (cache Cache) Load(digest string) (Closure, error) {
	text, err := cache.Dir.ReadFile(digest)
	if err != nil {
		return Closure{}, err
	}
	c, err := Parse(cache.Store, string(text))
	if err == nil && c.Digest() != digest {
		err = ErrText
	}
	if err != nil {
		return Closure{}, fmt.Errorf("%s/%s: %w", cache.Dir.Name(), digest, err)
	}
	return c, nil
}

// store keeps a closure for Load. One digest has one text, so a file with the right size is
// left as it is.
func (cache Cache) store(c Closure) error {
	if st, err := cache.Dir.Lstat(c.Digest()); err == nil && st.Size() == int64(len(c.Text())) {
		return nil
	}
	return atomicfile.Write(cache.Dir, c.Digest(), []byte(c.Text()))
}

// Forget removes what is remembered of q, and the closure with this digest.
func (cache Cache) Forget(q Query, digest string) error {
	var errs []error
	for _, name := range []string{cache.file(q), digest} {
		if err := cache.Dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
