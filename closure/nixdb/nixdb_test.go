// SPDX-License-Identifier: Apache-2.0

package nixdb

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/settle"
)

// schema is Nix's own (src/libstore/schema.sql).
const schema = `
create table if not exists ValidPaths (
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
create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
`

// writing tells a child of this test that it is the writer; its value is the
// database.
const writing = "NIX_CLOSURE_TEST_WRITE"

func TestMain(m *testing.M) {
	if path := os.Getenv(writing); path != "" {
		if err := writeGenerations(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(settle.Run(m.Run))
}

func named(format string, args ...any) closure.BaseName {
	return closure.BaseName(strings.Repeat("0", 32) + "-" + fmt.Sprintf(format, args...))
}

// open opens a database as Nix does.
func open(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+path+
		"?_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(off)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// newStore makes a store with an empty database, and a connection to it that
// stays open for the test's duration.
func newStore(t *testing.T) (closure.Store, *sql.DB) {
	t.Helper()
	dir := t.TempDir()
	store := closure.Store{Dir: "/nix/store", StateDir: dir}
	if err := os.Mkdir(filepath.Dir(store.DatabasePath()), 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := open(store.DatabasePath())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	mustExec(t, db, schema)
	return store, db
}

func mustExec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// register registers store paths that were not valid, and what they reference,
// in one transaction, as Nix does. References may be among the names.
func register(ctx context.Context, db *sql.DB, at int64, graph map[closure.BaseName][]closure.BaseName) (Err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if Err != nil {
			_ = tx.Rollback()
		}
	}()
	for name := range graph {
		if _, err := tx.ExecContext(ctx,
			"insert into ValidPaths (path, hash, registrationTime) values (?, 'sha256:0', ?)",
			"/nix/store/"+string(name), at); err != nil {
			return err
		}
	}
	for name, references := range graph {
		for _, r := range references {
			if _, err := tx.ExecContext(ctx,
				"insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path = ? and b.path = ?",
				"/nix/store/"+string(name), "/nix/store/"+string(r)); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

func mustRegister(t *testing.T, db *sql.DB, at int64, graph map[closure.BaseName][]closure.BaseName) {
	t.Helper()
	if err := register(t.Context(), db, at, graph); err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t *testing.T, store closure.Store) *Snapshot {
	t.Helper()
	s, err := Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// mustClose closes a database, so that its log goes into it.
func mustClose(t *testing.T, db *sql.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// bigGraph is a root with a thousand paths: a tree of references, each path with
// one to itself, and some back towards the root; and as many that the root does
// not reference.
func bigGraph() (graph map[closure.BaseName][]closure.BaseName, want []closure.BaseName) {
	const n = 1000
	graph = map[closure.BaseName][]closure.BaseName{}
	for i := range n {
		name := named("p%d", i)
		references := []closure.BaseName{name}
		for _, to := range []int{3*i + 1, 3*i + 2, 3*i + 3, i - 7} {
			if to >= 0 && to < n {
				references = append(references, named("p%d", to))
			}
		}
		graph[name] = references
		want = append(want, name)
		graph[named("other%d", i)] = []closure.BaseName{name, named("other%d", (i+1)%n)}
	}
	slices.Sort(want)
	return graph, want
}

func TestClosure(t *testing.T) {
	store, db := newStore(t)
	graph, all := bigGraph()
	mustRegister(t, db, 1700000000, graph)
	leaf := named("p999")
	for _, c := range []struct {
		name  string
		roots []closure.BaseName
		max   int
		want  []closure.BaseName
	}{
		{name: "a thousand", roots: []closure.BaseName{named("p0")}, max: 50000, want: all},
		{name: "as many as allowed", roots: []closure.BaseName{named("p0")}, max: 1000, want: all},
		{name: "roots that are among each other's references", roots: []closure.BaseName{leaf, named("p0"), leaf},
			max: 1000, want: all},
		{name: "every path as a root", roots: all, max: 1000, want: all},
		{name: "no root", max: 1},
	} {
		got, err := mustOpen(t, store).Closure(t.Context(), c.roots, c.max)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %d paths, want %d; %v", c.name, len(got), len(c.want), err)
		}
	}
	var large *closure.TooLargeError
	for _, max := range []int{999, 1, 0} {
		got, err := mustOpen(t, store).Closure(t.Context(), []closure.BaseName{named("p0")}, max)
		if !errors.As(err, &large) || large.Max != max || got != nil {
			t.Errorf("at most %d: %d paths, %v", max, len(got), err)
		}
	}
}

func TestVersions(t *testing.T) {
	store, db := newStore(t)
	a, b, gone := named("a"), named("b"), named("gone")
	mustRegister(t, db, 1700000001, map[closure.BaseName][]closure.BaseName{a: {a}})
	mustRegister(t, db, 1700000002, map[closure.BaseName][]closure.BaseName{b: {a}})
	s := mustOpen(t, store)
	got, err := s.Versions(t.Context(), []closure.BaseName{b, a, b})
	want := []closure.RowVersion{{Row: 2, Time: 1700000002}, {Row: 1, Time: 1700000001}, {Row: 2, Time: 1700000002}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := s.Versions(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("of none: %v, %v", got, err)
	}
	// Of `a` begins the same and is not.
	for _, names := range [][]closure.BaseName{{gone}, {a, gone}, {a + "a"}, {a[:len(a)-1]}} {
		var invalid *closure.NotValidError
		missing := store.Path(names[len(names)-1])
		if got, err := s.Versions(t.Context(), names); !errors.As(err, &invalid) || invalid.Path != missing ||
			got != nil {
			t.Errorf("versions of %q: %v, %v", names, got, err)
		}
		if got, err := s.Closure(t.Context(), names, 50); !errors.As(err, &invalid) || invalid.Path != missing ||
			got != nil {
			t.Errorf("closure of %q: %v, %v", names, got, err)
		}
	}
	// A path that is collected and comes back has another row.
	mustExec(t, db, "delete from ValidPaths where path = ?", store.Path(b))
	mustRegister(t, db, 1700000002, map[closure.BaseName][]closure.BaseName{b: {a}})
	if got, err := mustOpen(t, store).Versions(t.Context(), []closure.BaseName{b}); err != nil || got[0] == want[0] {
		t.Errorf("came back as %v, %v", got, err)
	}
}

// writeGenerations replaces, until it is killed, a root and the two paths that it
// references by ones of the next generation, each time in one transaction, and
// says so once it began.
func writeGenerations(path string) error {
	db, err := open(path)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for g := 0; ; g++ {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for _, query := range []string{
			"delete from Refs", "delete from ValidPaths",
			fmt.Sprintf("insert into ValidPaths (path, hash, registrationTime) values ('/nix/store/%s', '', %d)",
				named("root"), g),
			fmt.Sprintf("insert into ValidPaths (path, hash, registrationTime) values ('/nix/store/%s', '', %d)",
				named("a%d", g), g),
			fmt.Sprintf("insert into ValidPaths (path, hash, registrationTime) values ('/nix/store/%s', '', %d)",
				named("b%d", g), g),
			fmt.Sprintf("insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path = "+
				"'/nix/store/%s'", named("root")),
		} {
			if _, err := tx.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		if g == 0 {
			fmt.Println("began")
		}
	}
}

// startWriter runs writeGenerations in a process of its own.
func startWriter(t *testing.T, store closure.Store) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), writing+"="+store.DatabasePath())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the writer says %q, %v", line, err)
	}
}

// While another process writes all the time, what a snapshot says is of one
// moment.
func TestSnapshotIsConsistent(t *testing.T) {
	store, _ := newStore(t)
	startWriter(t, store)
	root := []closure.BaseName{named("root")}
	seen := map[int64]bool{}
	// However fast the writer is: until enough was seen of what it writes.
	const generations = 20
	for until := time.Now().Add(time.Minute); len(seen) < generations && time.Now().Before(until); {
		s, err := Open(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		var first []closure.BaseName
		for i := range 3 {
			versions, err := s.Versions(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			g := versions[0].Time
			seen[g] = true
			got, err := s.Closure(t.Context(), root, 3)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if want := []closure.BaseName{named("a%d", g), named("b%d", g), named("root")}; !slices.Equal(got, want) {
				t.Fatalf("the root of generation %d has closure %q", g, got)
			}
			if i == 0 {
				first = got
			} else if !slices.Equal(got, first) {
				t.Fatalf("%q became %q in one snapshot", first, got)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < generations {
		t.Errorf("only generations %v were seen: the writer did not write", seen)
	}
}

// A transaction of Nix that is not committed holds nobody up, and does not show.
func TestWriterHoldsNobodyUp(t *testing.T) {
	store, db := newStore(t)
	mustRegister(t, db, 1700000000, map[closure.BaseName][]closure.BaseName{named("a"): nil})
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), "insert into ValidPaths (path, hash, registrationTime) values (?, '', 1)",
		store.Path(named("b"))); err != nil {
		t.Fatal(err)
	}
	// If it held anybody up, that would be an error: the transaction is open until the
	// end of the test.
	s := mustOpen(t, store)
	if got, err := s.Closure(t.Context(), []closure.BaseName{named("a")}, 5); err != nil || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
	var invalid *closure.NotValidError
	if _, err := s.Versions(t.Context(), []closure.BaseName{named("b")}); !errors.As(err, &invalid) {
		t.Errorf("what is not committed is valid: %v", err)
	}
}

// The stamp is of before the snapshot: what is written after it was opened makes
// it stale.
func TestStamp(t *testing.T) {
	store, db := newStore(t)
	s := mustOpen(t, store)
	now, err := closure.TakeStamp(store)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stamp(); got.Files != now.Files || got.Taken == 0 || got.Taken > now.Taken {
		t.Errorf("the stamp is %+v, and nothing was written until %+v", got, now)
	}
	tick(t, store.StateDir)
	mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{named("a"): nil})
	if now, err = closure.TakeStamp(store); err != nil || now.Files == s.Stamp().Files {
		t.Errorf("the stamp did not become stale: %+v, %v", now, err)
	}
}

// tick waits until the kernel's clock, which moves in ticks, gives files another time.
func tick(t *testing.T, dir string) {
	t.Helper()
	modified := func() time.Time {
		t.Helper()
		err := os.WriteFile(dir+"/tick", []byte("x"), 0o600)
		info, statErr := os.Stat(dir + "/tick")
		if err := errors.Join(err, statErr); err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	for before := modified(); !modified().After(before); {
		time.Sleep(time.Millisecond)
	}
}

// dump is everything that a database holds.
func dump(t *testing.T, path string) string {
	t.Helper()
	db, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var all strings.Builder
	for _, query := range []string{
		"select group_concat(sql) from sqlite_schema",
		"select group_concat(id || path || hash || registrationTime) from ValidPaths",
		"select group_concat(referrer || ' ' || reference) from Refs",
		"select group_concat(name || seq) from sqlite_sequence", "pragma user_version",
	} {
		var text sql.NullString
		if err := db.QueryRowContext(t.Context(), query).Scan(&text); err != nil {
			t.Fatal(err)
		}
		all.WriteString(text.String + "\n")
	}
	return all.String()
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return text
}

// Nix's database is Nix's.
func TestReadOnly(t *testing.T) {
	for _, name := range []string{"in use by Nix", "in use by nobody"} {
		t.Run(name, func(t *testing.T) {
			store, db := newStore(t)
			mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{named("a"): {named("b")}, named("b"): nil})
			if name == "in use by nobody" {
				mustClose(t, db)
			}
			path := store.DatabasePath()
			before, beforeLog := readFile(t, path), readFile(t, path+"-wal")
			s := mustOpen(t, store)
			if _, err := s.Closure(t.Context(), []closure.BaseName{named("a")}, 5); err != nil {
				t.Fatal(err)
			}
			for _, query := range []string{
				"delete from Refs", "insert into ValidPaths (path, hash, registrationTime) values ('x', '', 1)",
				"create table t (x)", "create temp table t (x)",
				"pragma user_version = 7", "pragma query_only(0)", "pragma journal_mode = delete", "vacuum",
			} {
				_, _ = s.tx.ExecContext(t.Context(), query)
			}
			if _, err := s.tx.ExecContext(t.Context(), "delete from Refs"); err == nil {
				t.Error("the snapshot can be written to")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(readFile(t, path), before) || !bytes.Equal(readFile(t, path+"-wal"), beforeLog) {
				t.Error("the database's files changed")
			}
			if got := dump(t, path); strings.Contains(got, "create temp table") ||
				!strings.Contains(got, "1 2") && !strings.Contains(got, "2 1") {
				t.Errorf("the database has %s", got)
			}
			// Nix goes on.
			again, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			mustRegister(t, again, 2, map[closure.BaseName][]closure.BaseName{named("c"): {named("a")}})
		})
	}
}

// A database in the mode that Nix has with use-sqlite-wal = false.
func TestRollbackJournal(t *testing.T) {
	store, db := newStore(t)
	mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{named("a"): nil})
	mustExec(t, db, "pragma journal_mode = truncate")
	mustClose(t, db)
	if got, err := mustOpen(t, store).Closure(t.Context(), []closure.BaseName{named("a")}, 5); err != nil ||
		len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
}

// The database's path is not taken for options of SQLite.
func TestPathOfTheDatabase(t *testing.T) {
	for _, name := range []string{"a b", "a?mode=memory", "a#b", "a%41", "a%2e%2e", "ä", "a&_pragma=query_only(0)",
		":memory:", "a'b"} {
		store, db := newStore(t)
		mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{named("a"): nil})
		mustClose(t, db)
		moved := closure.Store{Dir: store.Dir, StateDir: store.StateDir + "/" + name}
		if err := os.Mkdir(moved.StateDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Dir(store.DatabasePath()), filepath.Dir(moved.DatabasePath())); err != nil {
			t.Fatal(err)
		}
		if _, err := mustOpen(t, moved).Versions(t.Context(), []closure.BaseName{named("a")}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What cannot be read is an error that names the file: it is never an empty store.
func TestNoDatabase(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(path string) error
		is   error // wrapped
	}{
		{"missing", func(string) error { return nil }, fs.ErrNotExist},
		{"missing directory", func(path string) error { return os.Remove(filepath.Dir(path)) }, fs.ErrNotExist},
		{"a link that leads nowhere", func(path string) error { return os.Symlink("nowhere", path) }, fs.ErrNotExist},
		{"empty", func(path string) error { return os.WriteFile(path, nil, 0o644) }, nil},
		{"no database", func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 8192), 0o644) },
			nil},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o755) }, nil},
		{"a database of another program", func(path string) error {
			db, err := open(path)
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.ExecContext(context.Background(), "create table Other (x)")
			return err
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := closure.Store{Dir: "/nix/store", StateDir: t.TempDir()}
			path := store.DatabasePath()
			if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), c.make(path)); err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), store)
			if err == nil {
				_ = s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), path) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v", err)
			}
			// Looking did not make a database.
			if _, err := os.Stat(path); c.is != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is one now: %v", err)
			}
		})
	}
}

// A damaged page is an error, and not the end of a closure.
func TestDamagedDatabase(t *testing.T) {
	whole, db := newStore(t)
	graph, all := bigGraph()
	mustRegister(t, db, 1, graph)
	mustClose(t, db)
	text := readFile(t, whole.DatabasePath())
	const page = 4096
	failed := 0
	for at := page; at < len(text); at += page * 7 {
		store := closure.Store{Dir: "/nix/store", StateDir: t.TempDir()}
		if err := os.Mkdir(filepath.Dir(store.DatabasePath()), 0o755); err != nil {
			t.Fatal(err)
		}
		damaged := slices.Clone(text)
		copy(damaged[at:at+page], bytes.Repeat([]byte{0xff}, page))
		if err := os.WriteFile(store.DatabasePath(), damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), store)
		if err != nil {
			failed++
			continue
		}
		got, err := s.Closure(t.Context(), []closure.BaseName{named("p0")}, 50000)
		if err != nil {
			failed++
		} else if slices.Sort(got); !slices.Equal(got, all) {
			t.Errorf("page %d: %d paths and no error", at/page, len(got))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if failed == 0 {
		t.Error("no damage was found: the test damages nothing that is read")
	}
}

// Rows that no Nix wrote are an error, and no mount.
func TestHostileRows(t *testing.T) {
	a := named("a")
	for _, path := range []any{
		"/etc", "/nix/store", "/nix/store/", "/nix/store/.links", "/nix/store/..", "/nix/store/../../etc",
		"/nix/storeX/" + string(a), "", ".",
		"/nix/store/" + string(a) + "/bin", "/nix/store/" + string(a) + "/", "/nix/store/" + string(a) + "\n",
		"/nix/store/" + strings.Repeat("E", 32) + "-a",
		"/nix/store/" + string(a) + "\x00", []byte("/nix/var/nix"), 7,
	} {
		store, db := newStore(t)
		mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{a: nil})
		mustExec(t, db, "insert into ValidPaths (path, hash, registrationTime) values (?, '', 1)", path)
		mustExec(t, db, "insert into Refs values (1, 2)")
		got, err := mustOpen(t, store).Closure(t.Context(), []closure.BaseName{a}, 50)
		if err == nil || got != nil {
			t.Errorf("%q: %q, %v", path, got, err)
		} else if !strings.Contains(err.Error(), store.DatabasePath()) {
			t.Errorf("%q: the message does not name the database: %v", path, err)
		}
	}
	store, db := newStore(t)
	mustExec(t, db, "insert into ValidPaths (path, hash, registrationTime) values (?, '', 'yesterday')", store.Path(a))
	if got, err := mustOpen(t, store).Versions(t.Context(), []closure.BaseName{a}); err == nil {
		t.Errorf("a time that is none: %v", got)
	}
}

func TestCancelled(t *testing.T) {
	store, db := newStore(t)
	mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{named("a"): nil})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := Open(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	cancel()
	if got, err := s.Closure(ctx, []closure.BaseName{named("a")}, 5); err == nil {
		t.Errorf("%q after the deadline", got)
	}
	if s, err := Open(ctx, store); err == nil {
		_ = s.Close()
		t.Error("opened after the deadline")
	}
}

// What begins with a text is found, and nothing else.
func TestBegin(t *testing.T) {
	store, db := newStore(t)
	a, b, c := named("a"), named("a2"), named("b")
	mustRegister(t, db, 1, map[closure.BaseName][]closure.BaseName{a: nil, b: nil, c: nil})
	s := mustOpen(t, store)
	all := []closure.BaseName{a, b, c}
	slices.Sort(all)
	for _, text := range []string{"", "0", "z", "%", "_", "'", string(a), string(a) + "2", string(a[:32]),
		string(b[:33]), "\xff"} {
		var want []closure.BaseName
		for _, name := range all {
			if strings.HasPrefix(string(name), text) {
				want = append(want, name)
			}
		}
		if got, err := s.Begin(t.Context(), text, 10); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	if got, err := s.Begin(t.Context(), "", 2); err != nil || !slices.Equal(got, all[:2]) {
		t.Errorf("two of them: %q, %v", got, err)
	}
}
