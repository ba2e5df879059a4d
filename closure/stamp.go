// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is the state of the database's files at one moment. The zero Stamp is of no
// database, and never counts.
type Stamp struct {
	Taken int64       // nanoseconds since 1970
	Files [2]fileMark // the database and its write-ahead log
}

// fileMark tells whether a file was written to. It is zero for a missing or empty file:
// SQLite makes an empty log before it reads, and what was in a removed log is in the
// database.
type fileMark struct {
	Inode    uint64
	Size     int64
	Modified int64 // nanoseconds since 1970
}

// racy is how long after a write the kernel may give another write the same time stamp,
// with a wide margin: a clock tick is 1 to 10 ms. git's index uses the same rule.
const racy = time.Second

// DatabasePath returns the path of Nix's database.
func (s Store) DatabasePath() string { return s.StateDir + "/db/db.sqlite" }

// TakeStamp looks at the database's files. Take the stamp before you read what it stands
// for.
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

// Ahead reports whether the write-ahead log has anything in it.
func (s Stamp) Ahead() bool { return s.Files[1] != fileMark{} }

// Holds reports whether the database still says what was read after the stamp was taken.
func (s Stamp) Holds(store Store) bool {
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
