// SPDX-License-Identifier: Apache-2.0

// Package nixdb reads Nix's database, and writes databases of the same form for one
// closure. It is the only package that links SQLite. No program on a container's start path
// may import it.
package nixdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the driver, in pure Go

	"github.com/nix-closure/nix-closure/closure"
)

// Snapshot is Nix's database at one moment, that of the first query: later writes of other
// processes do not show. It implements closure.Registry.
type Snapshot struct {
	store closure.Store
	db    *sql.DB
	tx    *sql.Tx
	stamp closure.Stamp
	// mustHold: only the stamp tells whether another process wrote to the file.
	mustHold bool
}

// Open opens the database for reading only. If Nix writes ahead (its default), Open never
// waits for a writer; else it waits at most five seconds.
//
// A user who may read the database but not write beside it can open it while a process of
// Nix has it open. Otherwise the file is read as if nobody wrote to it, and the answers
// count only if nobody did.
func Open(ctx context.Context, store closure.Store) (*Snapshot, error) {
	s, err := openHow(ctx, store, "mode=ro")
	if err == nil {
		return s, nil
	}
	stamp, stampErr := closure.TakeStamp(store)
	if stampErr != nil || stamp.Ahead() {
		return nil, err
	}
	unchanging, immutableErr := openHow(ctx, store, "mode=ro&immutable=1")
	if immutableErr != nil {
		return nil, err
	}
	// The stamp is from before the database was opened.
	unchanging.stamp, unchanging.mustHold = stamp, true
	return unchanging, nil
}

func openHow(ctx context.Context, store closure.Store, how string) (_ *Snapshot, Err error) {
	path := store.DatabasePath()
	// This first look finds out whether there is a database: SQLite's own message does not
	// name the file.
	if _, err := closure.TakeStamp(store); err != nil {
		return nil, err
	}
	name := url.URL{Scheme: "file", Path: path, RawQuery: how + "&_pragma=busy_timeout(5000)&_pragma=query_only(1)"}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	defer func() {
		if Err != nil {
			db.Close()
		}
	}()
	db.SetMaxOpenConns(1)
	// Opening the write-ahead log may create it. So the stamp is taken after that, and
	// before anything is read. A commit in between makes the stamp stale, but never the
	// answers.
	var one int
	const anyPath = "SELECT count(*) FROM (SELECT 1 FROM ValidPaths LIMIT 1)"
	if err := db.QueryRowContext(ctx, anyPath).Scan(&one); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	stamp, err := closure.TakeStamp(store)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return &Snapshot{store: store, db: db, tx: tx, stamp: stamp}, nil
}

// Changed reports whether a process wrote to the database while it was read as if nobody
// did. Then an error says nothing about the store.
func (s *Snapshot) Changed() bool { return s.mustHold && !s.stamp.Holds(s.store) }

// check must be called after something was read without an error.
func (s *Snapshot) check() error {
	if s.Changed() {
		return s.failed(errors.New("it was changed while it was read"))
	}
	return nil
}

// Close ends the snapshot.
func (s *Snapshot) Close() error {
	return errors.Join(s.tx.Rollback(), s.db.Close())
}

// Stamp returns the stamp from before the snapshot.
func (s *Snapshot) Stamp() closure.Stamp { return s.stamp }

// Versions returns the row and the time of registration of each name.
func (s *Snapshot) Versions(ctx context.Context, names []closure.BaseName) ([]closure.RowVersion, error) {
	look, err := s.tx.PrepareContext(ctx, "SELECT id, registrationTime FROM ValidPaths WHERE path = ?")
	if err != nil {
		return nil, s.failed(err)
	}
	defer look.Close()
	all := make([]closure.RowVersion, len(names))
	for i, n := range names {
		err := look.QueryRowContext(ctx, s.store.Path(n)).Scan(&all[i].Row, &all[i].Time)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, &closure.NotValidError{Path: s.store.Path(n)}
		}
		if err != nil {
			return nil, s.failed(err)
		}
	}
	return all, s.check()
}

// Closure returns the names and everything that they reference.
func (s *Snapshot) Closure(ctx context.Context, names []closure.BaseName, max int) (_ []closure.BaseName, Err error) {
	versions, err := s.Versions(ctx, names)
	if err != nil {
		return nil, err
	}
	// One parameter for all, because SQLite limits the number of parameters.
	ids := make([]int64, len(versions))
	for i, r := range versions {
		ids[i] = r.Row
	}
	if ids, err = s.reach(ctx, ids, max); err != nil {
		return nil, err
	}
	all, err := s.names(ctx, ids)
	if err != nil {
		return nil, err
	}
	return all, s.check()
}

// rowsAtOnce bounds what one answer of reach takes in memory, whoever added to the store.
const rowsAtOnce = 200

// reach returns rows and those of everything that they reference, sorted. It asks for the
// references of many rows at a time, in one text: a recursive query, which keeps what it
// found in a table, takes three times as long, and so does a row for each reference.
func (s *Snapshot) reach(ctx context.Context, from []int64, max int) ([]int64, error) {
	found := make(map[int64]bool, len(from))
	var all []int64
	add := func(id int64) {
		if !found[id] {
			found[id] = true
			all = append(all, id)
		}
	}
	for _, id := range from {
		add(id)
	}
	for asked := 0; asked < len(all); {
		if len(all) > max {
			break
		}
		next := all[asked:min(asked+rowsAtOnce, len(all))]
		asked += len(next)
		text, err := s.text(ctx, next, "SELECT group_concat(reference) "+
			"FROM json_each(?) list CROSS JOIN Refs ON referrer = list.value")
		if err != nil {
			return nil, err
		}
		for number := range strings.SplitSeq(text, ",") {
			if text == "" {
				break
			}
			id, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				return nil, s.failed(fmt.Errorf("a reference that is no number: %w", err))
			}
			add(id)
		}
	}
	if len(all) > max {
		return nil, &closure.TooLargeError{Max: max}
	}
	slices.Sort(all)
	return all, nil
}

// names returns the base names of rows. One row, one line: a path with a line break in it
// gives more lines than rows.
func (s *Snapshot) names(ctx context.Context, ids []int64) ([]closure.BaseName, error) {
	names := make([]closure.BaseName, 0, len(ids))
	if len(ids) == 0 {
		return names, nil
	}
	text, err := s.text(ctx, ids, "SELECT group_concat(coalesce(v.path, ''), char(10)) "+
		"FROM json_each(?) list LEFT JOIN ValidPaths v ON v.id = list.value")
	if err != nil {
		return nil, err
	}
	for path := range strings.SplitSeq(text, "\n") {
		if path == "" {
			return nil, s.failed(errors.New("a path references one that is not registered; " +
				"`nix-store --verify` mends the database"))
		}
		name, err := s.store.ParseExact(path)
		if err != nil {
			return nil, s.failed(err)
		}
		names = append(names, name)
	}
	if len(names) != len(ids) {
		return nil, s.failed(errors.New("a path has a line break"))
	}
	return names, nil
}

// text asks for one text about rows. They are one parameter, however many: SQLite limits
// the number of parameters.
func (s *Snapshot) text(ctx context.Context, ids []int64, query string) (string, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return "", err
	}
	var text sql.NullString
	if err := s.tx.QueryRowContext(ctx, query, string(list)).Scan(&text); err != nil {
		return "", s.failed(err)
	}
	return text.String, nil
}

func (s *Snapshot) failed(err error) error {
	return fmt.Errorf("reading %s: %w", s.store.DatabasePath(), err)
}
