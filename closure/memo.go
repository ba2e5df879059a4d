// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Query is what a container asks for: roots, or a closure-info.
type Query struct {
	Roots []BaseName
	Info  BaseName // empty: none
}

// Registration is what tells one registration of a store path from the next: a
// path that was collected and came back has another row.
type Registration struct {
	Row  int64 `json:"row"`
	Time int64 `json:"time"` // seconds since 1970
}

// Memo remembers resolved closures in a directory, so that a second container
// with the same roots starts without asking Nix.
//
// It rests on this: as long as a store path stays registered, everything that
// it references does, and its references never change. So a closure is known
// from the registrations of its roots, and these from a look at the database's
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
	Digest        string         `json:"digest"`
	Paths         int            `json:"paths"`
	Pins          []BaseName     `json:"pins"`
	Registrations []Registration `json:"registrations"` // of the pins
	Since         int64          `json:"since"`         // see Resolution
	Stamp         Stamp          `json:"stamp"`
}

// Stamp is the state of the database's files at a moment. The zero Stamp is of
// no database and never trusted.
type Stamp struct {
	Taken int64       `json:"taken"` // nanoseconds since 1970
	Files [2]fileMark `json:"files"` // the database, its write-ahead log
}

// fileMark tells whether a file was written to. Of a file that is empty or not
// there all is 0: SQLite makes an empty log to read, and what was in a log that
// is gone is in the database.
type fileMark struct {
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // nanoseconds since 1970
}

// racy is how long after a write the kernel may give a second write the same
// time stamp, with a wide margin (a clock tick is 1 to 10 ms). git does the
// same with its index.
const racy = time.Second

// DatabasePath is where Nix's database is.
func (s Store) DatabasePath() string { return s.StateDir + "/db/db.sqlite" }

// TakeStamp looks at the database's files. To be of use, it is taken before
// what it stands for is read.
func TakeStamp(store Store) (Stamp, error) {
	stamp := Stamp{Taken: time.Now().UnixNano()}
	for i, path := range [...]string{store.DatabasePath(), store.DatabasePath() + "-wal"} {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if i > 0 && errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return Stamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Size > 0 {
			stamp.Files[i] = fileMark{st.Ino, st.Size, st.Mtim.Nano()}
		}
	}
	return stamp, nil
}

// holds tells whether what was read after the stamp was taken is still what the
// database says.
func (s Stamp) holds(store Store) bool {
	if s.Taken == 0 {
		return false
	}
	for _, f := range s.Files {
		if f.Modified > s.Taken-int64(racy) {
			return false
		}
	}
	now, err := TakeStamp(store)
	return err == nil && now.Files == s.Files
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

// lookup returns what is remembered of q. Anything that is not whole is not
// remembered.
func (m Memo) lookup(q Query) (entry, bool) {
	data, err := m.Dir.ReadFile(m.file(q))
	if err != nil {
		return entry{}, false
	}
	var e entry
	if json.Unmarshal(data, &e) != nil || len(e.Pins) == 0 || len(e.Pins) != len(e.Registrations) || !IsDigest(e.Digest) {
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
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return WriteFile(m.Dir, m.file(q), data)
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
	return WriteFile(m.Dir, c.Digest(), []byte(c.Text()))
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

// WriteFile writes a file that a reader sees whole or not at all, with mode
// 0600. It is not synced: nothing in the runtime directory outlives a boot.
func WriteFile(dir *os.Root, name string, data []byte) (Err error) {
	temporary := "." + name + "." + rand.Text()
	f, err := dir.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if Err != nil {
			_ = dir.Remove(temporary)
		}
	}()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return dir.Rename(temporary, name)
}
