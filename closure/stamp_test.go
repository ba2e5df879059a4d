// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// tick waits until the kernel's clock, which moves in ticks, gives files another time.
func tick(t *testing.T, dir string) {
	t.Helper()
	modified := func() time.Time {
		t.Helper()
		write(t, dir+"/tick", "x")
		info, err := os.Stat(dir + "/tick")
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	for before := modified(); !modified().After(before); {
		time.Sleep(time.Millisecond)
	}
}

// trusted is a stamp as it would be if the files had been older when it was
// taken: what they are compared with is real.
func trusted(t *testing.T, store Store) Stamp {
	t.Helper()
	stamp, err := TakeStamp(store)
	if err != nil {
		t.Fatal(err)
	}
	stamp.Taken += int64(2 * racy)
	return stamp
}

func TestStampHolds(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, db, wal string)
		want bool
	}{
		{"nothing happens", func(*testing.T, string, string) {}, true},
		{"the database is read", func(t *testing.T, db, _ string) { read(t, db) }, true},
		{"the database grows", func(t *testing.T, db, _ string) { write(t, db, "database, longer") }, false},
		{"the database is written to, and not longer", func(t *testing.T, db, _ string) { write(t, db, "DATABASE") },
			false},
		{"the database is another file of the same time and size", func(t *testing.T, db, _ string) {
			st := stat(t, db)
			touch(t, write(t, db+".new", "DATABASE"), st.ModTime())
			rename(t, db+".new", db)
		}, false},
		{"the database is gone", func(t *testing.T, db, _ string) { remove(t, db) }, false},
		{"the database's directory is gone",
			func(t *testing.T, db, _ string) { rename(t, filepath.Dir(db), filepath.Dir(db)+"2") }, false},
		{"a log appears", func(t *testing.T, _, wal string) { remove(t, wal); write(t, wal, "log") }, false},
		{"the log is gone", func(t *testing.T, _, wal string) { remove(t, wal) }, false},
		{"the log is empty", func(t *testing.T, _, wal string) { write(t, wal, "") }, false},
		{"the log begins anew", func(t *testing.T, _, wal string) { write(t, wal, "LOG") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := cacheOf(t)
			db := m.Store.DatabasePath()
			write(t, db+"-wal", "log")
			stamp := trusted(t, m.Store)
			tick(t, m.Store.StateDir)
			c.do(t, db, db+"-wal")
			if got := stamp.Holds(m.Store); got != c.want {
				t.Errorf("holds: %v", got)
			}
		})
	}
}

// SQLite makes an empty log to read: it says nothing of the database. One with
// something in it does.
func TestStampOfALogThatAppears(t *testing.T) {
	m := cacheOf(t)
	without := trusted(t, m.Store)
	log := m.Store.DatabasePath() + "-wal"
	write(t, log, "")
	empty := trusted(t, m.Store)
	for _, s := range []Stamp{without, empty} {
		if !s.Holds(m.Store) {
			t.Error("does not hold with an empty log")
		}
	}
	write(t, log, "commit")
	for _, s := range []Stamp{without, empty} {
		if s.Holds(m.Store) {
			t.Error("holds after a commit to the log")
		}
	}
	remove(t, log)
	for _, s := range []Stamp{without, empty} {
		if !s.Holds(m.Store) {
			t.Error("does not hold without a log")
		}
	}
}

// Two writes within a clock tick have one time, so a stamp that was taken right
// after a write says nothing.
func TestStampIsRacy(t *testing.T) {
	m := cacheOf(t)
	db := m.Store.DatabasePath()
	write(t, db+"-wal", "log")
	now := time.Now()
	for _, c := range []struct {
		name  string
		taken time.Time
		times [2]time.Time // of the database, of the log
		want  bool
	}{
		{name: "both older than a second", taken: now.Add(3 * time.Second), times: [2]time.Time{now, now}, want: true},
		{name: "both long ago", taken: now.Add(3 * time.Second),
			times: [2]time.Time{now.Add(-time.Hour), time.Unix(1, 0)}, want: true},
		{name: "the database younger than a second", taken: now.Add(3 * time.Second),
			times: [2]time.Time{now.Add(2100 * time.Millisecond), now}},
		{name: "the log younger than a second", taken: now.Add(3 * time.Second),
			times: [2]time.Time{now, now.Add(2100 * time.Millisecond)}},
		{name: "the database of the future", taken: now.Add(3 * time.Second),
			times: [2]time.Time{now.Add(time.Hour), now}},
		{name: "the log of the future", taken: now.Add(3 * time.Second), times: [2]time.Time{now, now.Add(time.Hour)}},
	} {
		touch(t, db, c.times[0])
		touch(t, db+"-wal", c.times[1])
		stamp, err := TakeStamp(m.Store)
		if err != nil {
			t.Fatal(err)
		}
		stamp.Taken = c.taken.UnixNano()
		if got := stamp.Holds(m.Store); got != c.want {
			t.Errorf("%s: holds: %v", c.name, got)
		}
	}
}

func TestTakeStamp(t *testing.T) {
	m := cacheOf(t)
	before := time.Now().UnixNano()
	stamp, err := TakeStamp(m.Store)
	if err != nil || stamp.Taken < before || stamp.Taken > time.Now().UnixNano() {
		t.Errorf("taken at %d, not between %d and now: %v", stamp.Taken, before, err)
	}
	if stamp.Holds(m.Store) {
		t.Error("trusted right after the database was written")
	}
	if stamp.Files[1] != (fileMark{}) {
		t.Errorf("a log that is not there: %+v", stamp.Files[1])
	}
	if (Stamp{}).Holds(m.Store) {
		t.Error("the zero stamp holds")
	}
	if (Stamp{}).Holds(Store{StateDir: "/nowhere"}) {
		t.Error("the zero stamp holds where there is no database")
	}
	if err := os.Remove(m.Store.DatabasePath()); err != nil {
		t.Fatal(err)
	}
	if stamp, err := TakeStamp(m.Store); !errors.Is(err, fs.ErrNotExist) || stamp != (Stamp{}) {
		t.Errorf("of no database: %+v, %v", stamp, err)
	}
}

func stat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func touch(t *testing.T, path string, modified time.Time) {
	t.Helper()
	if err := os.Chtimes(path, modified, modified); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
