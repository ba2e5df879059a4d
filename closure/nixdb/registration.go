// SPDX-License-Identifier: Apache-2.0

package nixdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/nix-closure/nix-closure/closure"
)

// Infos returns what the database has about each name, in the order of the names. It fails
// with closure.NotValidError.
func (s *Snapshot) Infos(ctx context.Context, names []closure.BaseName) ([]closure.PathInfo, error) {
	infos := make([]closure.PathInfo, len(names))
	for i, n := range names {
		infos[i].Name = n
	}
	ids, err := s.paths(ctx, infos)
	if err != nil {
		return nil, err
	}
	if err := s.references(ctx, ids, infos); err != nil {
		return nil, err
	}
	if err := s.outputs(ctx, ids, infos); err != nil {
		return nil, err
	}
	return infos, s.check()
}

// paths fills in the infos, except for what is in other tables, and returns their rows.
func (s *Snapshot) paths(ctx context.Context, infos []closure.PathInfo) ([]int64, error) {
	paths := make([]string, len(infos))
	for i, info := range infos {
		paths[i] = s.store.Path(info.Name)
	}
	ids := make([]int64, len(infos))
	err := s.each(ctx, paths, `
		SELECT list.key, v.id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca
		FROM json_each(?) list LEFT JOIN ValidPaths v ON v.path = list.value`, func(rows *sql.Rows) error {
		var i int
		var id, registered, size, ultimate sql.NullInt64
		var hash, deriver, signatures, ca sql.NullString
		if err := rows.Scan(&i, &id, &hash, &registered, &deriver, &size, &ultimate, &signatures, &ca); err != nil {
			return s.failed(err)
		}
		if !id.Valid {
			return &closure.NotValidError{Path: paths[i]}
		}
		info := &infos[i]
		var err error
		if info.NarHash, err = closure.ParseNarHash(hash.String); err != nil {
			return s.failed(fmt.Errorf("the hash of %s: %w", paths[i], err))
		}
		if deriver.String != "" {
			if info.Deriver, err = s.store.ParseExact(deriver.String); err != nil {
				return s.failed(fmt.Errorf("the deriver of %s: %w", paths[i], err))
			}
		}
		info.NarSize, info.Registered, info.Ultimate = size.Int64, registered.Int64, ultimate.Int64 != 0
		info.Signatures, info.CA = signatures.String, ca.String
		ids[i] = id.Int64
		return nil
	})
	return ids, err
}

func (s *Snapshot) references(ctx context.Context, ids []int64, infos []closure.PathInfo) error {
	// In a closure, all references are to paths in infos, whose rows are known. A join in
	// the database takes three times as long.
	known := make(map[int64]closure.BaseName, len(ids))
	for i, id := range ids {
		known[id] = infos[i].Name
	}
	var others []int64 // rows
	var from []int     // the infos that reference them
	err := s.each(ctx, ids, `
		SELECT list.key, reference
		FROM json_each(?) list CROSS JOIN Refs ON referrer = list.value`, func(rows *sql.Rows) error {
		var i int
		var id int64
		if err := rows.Scan(&i, &id); err != nil {
			return s.failed(err)
		}
		if name, ok := known[id]; ok {
			infos[i].References = append(infos[i].References, name)
		} else {
			others, from = append(others, id), append(from, i)
		}
		return nil
	})
	if err != nil || others == nil {
		return err
	}
	return s.each(ctx, others, `
		SELECT list.key, v.path
		FROM json_each(?) list LEFT JOIN ValidPaths v ON v.id = list.value`, func(rows *sql.Rows) error {
		var i int
		var path sql.NullString
		if err := rows.Scan(&i, &path); err != nil {
			return s.failed(err)
		}
		info := &infos[from[i]]
		if !path.Valid {
			return s.failed(fmt.Errorf("%s references a path that is not registered; "+
				"`nix-store --verify` mends the database", s.store.Path(info.Name)))
		}
		name, err := s.store.ParseExact(path.String)
		if err != nil {
			return s.failed(fmt.Errorf("a reference of %s: %w", s.store.Path(info.Name), err))
		}
		info.References = append(info.References, name)
		return nil
	})
}

func (s *Snapshot) outputs(ctx context.Context, ids []int64, infos []closure.PathInfo) error {
	return s.each(ctx, ids, `
		SELECT list.key, o.id, o.path
		FROM json_each(?) list CROSS JOIN DerivationOutputs o ON drv = list.value`, func(rows *sql.Rows) error {
		var i int
		var name, path string
		if err := rows.Scan(&i, &name, &path); err != nil {
			return s.failed(err)
		}
		output, err := s.store.ParseExact(path)
		if err != nil {
			return s.failed(fmt.Errorf("output %q of %s: %w", name, s.store.Path(infos[i].Name), err))
		}
		infos[i].Outputs = append(infos[i].Outputs, closure.Output{Name: name, Path: output})
		return nil
	})
}

// each calls scan for each row of a query about a list. The list is the only parameter,
// because SQLite limits the number of parameters.
func (s *Snapshot) each(ctx context.Context, list any, query string, scan func(*sql.Rows) error) error {
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	rows, err := s.tx.QueryContext(ctx, query, string(text))
	if err != nil {
		return s.failed(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return s.failed(err)
	}
	return nil
}

// The schema of version 10, as Nix makes it. The indexes are made after the tables are
// filled: this is faster, and fills their pages.
const (
	tables = `
CREATE TABLE ValidPaths (
	id               integer primary key autoincrement not null,
	path             text unique not null,
	hash             text not null,
	registrationTime integer not null,
	deriver          text,
	narSize          integer,
	ultimate         integer,
	sigs             text,
	ca               text
);
CREATE TABLE Refs (
	referrer  integer not null,
	reference integer not null,
	primary key (referrer, reference),
	foreign key (referrer) references ValidPaths(id) on delete cascade,
	foreign key (reference) references ValidPaths(id) on delete restrict
);
CREATE TABLE DerivationOutputs (
	drv  integer not null,
	id   text not null,
	path text not null,
	primary key (drv, id),
	foreign key (drv) references ValidPaths(id) on delete cascade
);
CREATE TRIGGER DeleteSelfRefs before delete on ValidPaths
begin
	delete from Refs where referrer = old.id and reference = old.id;
end;
`
	indexes = `
CREATE INDEX IndexReferrer on Refs(referrer);
CREATE INDEX IndexReference on Refs(reference);
CREATE INDEX IndexDerivationOutputs on DerivationOutputs(path);
`
)

// WriteRegistration makes a Nix database of exactly these infos, in a new file of mode
// 0600. Nix writes to its database even to read it, so each container needs its own copy.
//
// The infos must be as closure.Restrict returns them. WriteRegistration guarantees that no
// byte of the file comes from a name that the container must not know: a reference, deriver
// or output outside the infos is an error.
//
// The file has no journal beside it and no free page. It is not synced, and a killed
// process leaves an incomplete file: let path be a temporary name, and rename the file
// afterwards. After an error there is no file.
func WriteRegistration(ctx context.Context, path string, store closure.Store, infos []closure.PathInfo) (Err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	defer func() {
		if Err != nil {
			Err = errors.Join(fmt.Errorf("writing %s: %w", path, Err), os.Remove(path))
		}
	}()
	const pragmas = "_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=temp_store(memory)"
	name := url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&" + pragmas}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	return errors.Join(fill(ctx, db, store, infos), db.Close())
}

func fill(ctx context.Context, db *sql.DB, store closure.Store, infos []closure.PathInfo) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, tables); err != nil {
		return err
	}
	if err := insert(ctx, tx, store, infos); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, indexes); err != nil {
		return err
	}
	return tx.Commit()
}

func insert(ctx context.Context, tx *sql.Tx, store closure.Store, infos []closure.PathInfo) error {
	var statements [3]*sql.Stmt // closed with the transaction
	for i, query := range [...]string{
		"INSERT INTO ValidPaths (id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) " +
			"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		"INSERT INTO Refs (referrer, reference) SELECT ?, value FROM json_each(?)",
		"INSERT INTO DerivationOutputs (drv, id, path) VALUES (?, ?, ?)",
	} {
		var err error
		if statements[i], err = tx.PrepareContext(ctx, query); err != nil {
			return err
		}
	}
	paths, references, outputs := statements[0], statements[1], statements[2]

	ids := make(map[closure.BaseName]int, len(infos))
	for i, info := range infos {
		ids[info.Name] = i + 1
	}
	for _, info := range infos {
		id, path := ids[info.Name], store.Path(info.Name)
		foreign := func(what string, name closure.BaseName) error {
			return fmt.Errorf("%s of %s, %s, is not in the registration", what, path, store.Path(name))
		}
		deriver := ""
		if info.Deriver != "" {
			if ids[info.Deriver] == 0 {
				return foreign("the deriver", info.Deriver)
			}
			deriver = store.Path(info.Deriver)
		}
		if _, err := paths.ExecContext(ctx, id, path, info.NarHash, info.Registered, orNull(deriver),
			orNull(info.NarSize), orNull(info.Ultimate), orNull(info.Signatures), orNull(info.CA)); err != nil {
			return err
		}
		referenced := make([]int, len(info.References))
		for i, r := range info.References {
			if referenced[i] = ids[r]; ids[r] == 0 {
				return foreign("a reference", r)
			}
		}
		list, err := json.Marshal(referenced)
		if err != nil {
			return err
		}
		if _, err := references.ExecContext(ctx, id, string(list)); err != nil {
			return err
		}
		for _, o := range info.Outputs {
			if ids[o.Path] == 0 {
				return foreign("an output", o.Path)
			}
			if _, err := outputs.ExecContext(ctx, id, o.Name, store.Path(o.Path)); err != nil {
				return err
			}
		}
	}
	return nil
}

// orNull returns v, or NULL for a zero value, as Nix writes it.
func orNull[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}
