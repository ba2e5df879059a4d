// SPDX-License-Identifier: Apache-2.0

package nixdb

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nix-closure/nix-closure/closure"
)

// derivationOutputs is the rest of Nix's schema.
const derivationOutputs = `
create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null,
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
`

var narHash = "sha256:" + strings.Repeat("0f", 32)

// insertPath registers a path as Nix does: what is nil is NULL.
func insertPath(t *testing.T, db *sql.DB, store closure.Store, name closure.BaseName, hash string, registered int64,
	deriver, size, ultimate, sigs, ca any) {
	t.Helper()
	mustExec(t, db, "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) "+
		"values (?, ?, ?, ?, ?, ?, ?, ?)",
		store.Path(name), hash, registered, deriver, size, ultimate, sigs, ca)
}

func insertReference(t *testing.T, db *sql.DB, store closure.Store, from, to closure.BaseName) {
	t.Helper()
	mustExec(t, db, "insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path = ? and "+
		"b.path = ?", store.Path(from), store.Path(to))
}

func TestInfos(t *testing.T) {
	store, db := newStore(t)
	mustExec(t, db, derivationOutputs)
	a, b, c, drv, foreign := named("a"), named("b"), named("c"), named("a.drv"), named("foreign")
	insertPath(t, db, store, foreign, narHash, 5, store.Path(drv), 1, 1, "key:foreign", "foreign")
	insertPath(t, db, store, b, narHash, 1700000001, nil, nil, nil, nil, nil)
	insertPath(t, db, store, a, narHash, 1700000002, store.Path(drv), 120, 1, "key-1:AA== key-2:BB==",
		"fixed:r:sha256:x")
	insertPath(t, db, store, c, narHash, 1, "", 0, 0, "", "")
	insertPath(t, db, store, drv, narHash, 2, nil, 7, nil, nil, "text:sha256:x")
	insertReference(t, db, store, a, b)
	insertReference(t, db, store, a, a)
	insertReference(t, db, store, c, foreign)
	insertReference(t, db, store, foreign, a)
	mustExec(t, db, "insert into DerivationOutputs select id, 'out', ? from ValidPaths where path = ?", store.Path(a),
		store.Path(drv))
	mustExec(t, db, "insert into DerivationOutputs select id, 'dev', ? from ValidPaths where path = ?",
		store.Path(named("gone")), store.Path(drv))

	of := map[closure.BaseName]closure.PathInfo{
		a: {Name: a, NarHash: narHash, NarSize: 120, Registered: 1700000002, Deriver: drv, Ultimate: true,
			Signatures: "key-1:AA== key-2:BB==", CA: "fixed:r:sha256:x", References: []closure.BaseName{a, b}},
		b: {Name: b, NarHash: narHash, Registered: 1700000001},
		c: {Name: c, NarHash: narHash, Registered: 1, References: []closure.BaseName{foreign}},
		drv: {Name: drv, NarHash: narHash, NarSize: 7, Registered: 2, CA: "text:sha256:x",
			Outputs: []closure.Output{{Name: "dev", Path: named("gone")}, {Name: "out", Path: a}}},
	}
	for _, names := range [][]closure.BaseName{nil, {a, b, drv}, {b, a, b}, {c}, {drv, c, b, a}} {
		got, err := mustOpen(t, store).Infos(t.Context(), names)
		if err != nil || len(got) != len(names) {
			t.Fatalf("%q: %v, %v", names, got, err)
		}
		for i, name := range names {
			slices.Sort(got[i].References)
			if diff := cmp.Diff(of[name], got[i]); diff != "" {
				t.Errorf("%q of %q (-want +got):\n%s", name, names, diff)
			}
		}
	}

	for _, names := range [][]closure.BaseName{{named("gone")}, {a, named("gone")}, {a + "a"}, {a[:len(a)-1]}} {
		var invalid *closure.NotValidError
		missing := store.Path(names[len(names)-1])
		if got, err := mustOpen(t, store).Infos(t.Context(), names); !errors.As(err, &invalid) ||
			invalid.Path != missing || got != nil {
			t.Errorf("%q: %v, %v", names, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := mustOpen(t, store).Infos(ctx, []closure.BaseName{a}); err == nil {
		t.Errorf("%v after the deadline", got)
	}
}

// Rows that no Nix wrote are an error, which names the database.
func TestInfosOfHostileRows(t *testing.T) {
	a := named("a")
	for _, query := range []string{
		"update ValidPaths set hash = ''",
		"update ValidPaths set hash = 'md5:d41d8cd98f00b204e9800998ecf8427e'",
		"update ValidPaths set hash = 7",
		"update ValidPaths set deriver = '/etc/passwd'",
		"update ValidPaths set deriver = '/nix/store/'",
		"update ValidPaths set deriver = path || '/x'",
		"update ValidPaths set deriver = 7",
		"update ValidPaths set narSize = 'large'",
		"update ValidPaths set registrationTime = 'yesterday'",
		"insert into DerivationOutputs select id, 'out', '/etc/passwd' from ValidPaths",
		"insert into DerivationOutputs select id, 'out', path || '/' from ValidPaths",
		"pragma foreign_keys = off; insert into Refs select id, 99 from ValidPaths",
		"insert into ValidPaths (path, hash, registrationTime) values ('/etc', '', 1); insert into Refs values (1, 2)",
		"drop table DerivationOutputs",
	} {
		store, db := newStore(t)
		mustExec(t, db, derivationOutputs)
		insertPath(t, db, store, a, narHash, 1, nil, nil, nil, nil, nil)
		if _, err := mustOpen(t, store).Infos(t.Context(), []closure.BaseName{a}); err != nil {
			t.Fatal(err)
		}
		mustExec(t, db, query)
		got, err := mustOpen(t, store).Infos(t.Context(), []closure.BaseName{a})
		if err == nil || got != nil {
			t.Errorf("%s: %v, %v", query, got, err)
		} else if !strings.Contains(err.Error(), store.DatabasePath()) {
			t.Errorf("%s: the message does not name the database: %v", query, err)
		}
	}
}

// writeRegistration makes the registration the database of a new store.
func writeRegistration(t *testing.T, infos []closure.PathInfo) closure.Store {
	t.Helper()
	store := closure.Store{Dir: "/nix/store", StateDir: t.TempDir()}
	if err := os.Mkdir(filepath.Dir(store.DatabasePath()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteRegistration(t.Context(), store.DatabasePath(), store, infos); err != nil {
		t.Fatal(err)
	}
	return store
}

func someInfos() []closure.PathInfo {
	a, b, drv := named("a"), named("b"), named("c.drv")
	return []closure.PathInfo{
		{Name: a, NarHash: narHash, NarSize: 120, Registered: 1700000002, Deriver: drv, Ultimate: true,
			Signatures: "key-1:AA==", CA: "fixed:r:sha256:x", References: []closure.BaseName{a, b}},
		{Name: b, NarHash: narHash},
		{Name: drv, NarHash: narHash, NarSize: 7, Registered: 2, References: []closure.BaseName{b},
			Outputs: []closure.Output{{Name: "dev", Path: b}, {Name: "out", Path: a}}},
	}
}

// rows is what the query has, a line a row, with NULL where it is.
func rows(t *testing.T, path, query string) string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	columns, err := found.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for found.Next() {
		row := make([]any, len(columns))
		for i := range row {
			row[i] = new(any)
		}
		if err := found.Scan(row...); err != nil {
			t.Fatal(err)
		}
		for _, v := range row {
			v := *v.(*any)
			if v == nil {
				v = "NULL"
			}
			fmt.Fprint(&text, "|", v)
		}
		text.WriteString("|\n")
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestWriteRegistration(t *testing.T) {
	store := writeRegistration(t, someInfos())
	path := store.DatabasePath()

	st, err := os.Lstat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if beside, err := os.ReadDir(filepath.Dir(path)); err != nil || len(beside) != 1 {
		t.Errorf("in its directory are %v, %v", beside, err)
	}
	// As Nix writes it, NULL and all.
	prefix := "/nix/store/" + strings.Repeat("0", 32)
	for query, want := range map[string]string{
		"select * from ValidPaths order by id": "" +
			"|1|" + prefix + "-a|" + narHash + "|1700000002|" + prefix + "-c.drv|120|1|key-1:AA==|fixed:r:sha256:x|\n" +
			"|2|" + prefix + "-b|" + narHash + "|0|NULL|NULL|NULL|NULL|NULL|\n" +
			"|3|" + prefix + "-c.drv|" + narHash + "|2|NULL|7|NULL|NULL|NULL|\n",
		"select * from Refs order by 1, 2":              "|1|1|\n|1|2|\n|3|2|\n",
		"select * from DerivationOutputs order by 1, 2": "|3|dev|" + prefix + "-b|\n|3|out|" + prefix + "-a|\n",
		"select * from sqlite_sequence":                 "|ValidPaths|3|\n",
		"select distinct typeof(referrer), typeof(reference) " +
			"from Refs": "|integer|integer|\n",
		"select distinct typeof(path), typeof(narSize), typeof(ultimate) from ValidPaths order by 2 " +
			"limit 1": "|text|integer|integer|\n",
		"pragma freelist_count":    "|0|\n",
		"pragma integrity_check":   "|ok|\n",
		"pragma foreign_key_check": "",
		"pragma journal_mode":      "|delete|\n",
		"pragma user_version":      "|0|\n",
		"pragma encoding":          "|UTF-8|\n",
		"pragma page_size":         "|4096|\n",
		"pragma auto_vacuum":       "|0|\n",
	} {
		if diff := cmp.Diff(want, rows(t, path, query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	// Read back as what Nix wrote is read.
	got, err := mustOpen(t, store).Infos(t.Context(), []closure.BaseName{named("a"), named("b"), named("c.drv")})
	if diff := cmp.Diff(someInfos(), got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	// The same for the same infos: it can be kept by its name.
	if again := writeRegistration(t, someInfos()); !bytes.Equal(readFile(t, path), readFile(t, again.DatabasePath())) {
		t.Error("written again it is another file")
	}
}

// The schema is Nix's, whatever its layout.
func TestRegistrationSchema(t *testing.T) {
	nix, db := newStore(t)
	mustExec(t, db, derivationOutputs)
	const query = "select type, name, tbl_name, sql from sqlite_schema order by type, name"
	plain := func(path string) string { return strings.Join(strings.Fields(rows(t, path, query)), " ") }
	want := plain(nix.DatabasePath())
	if strings.Count(want, "CREATE") != 8 {
		t.Errorf("the test's own schema is not whole: %s", want)
	}
	if diff := cmp.Diff(want, plain(writeRegistration(t, nil).DatabasePath())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Nix can write to it: it adds a path, and deletes one that references itself.
func TestRegistrationIsNixs(t *testing.T) {
	store := writeRegistration(t, someInfos())
	db, err := open(store.DatabasePath())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	mustRegister(t, db, 1700000003, map[closure.BaseName][]closure.BaseName{named("new"): {named("a")}})
	got, err := mustOpen(t, store).Closure(t.Context(), []closure.BaseName{named("new")}, 5)
	if slices.Sort(got); err != nil || !slices.Equal(got, []closure.BaseName{named("a"), named("b"), named("new")}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := mustOpen(t, store).Versions(t.Context(), []closure.BaseName{named("new")}); err != nil ||
		got[0].Row != 4 {
		t.Errorf("%v, %v", got, err)
	}
	mustExec(t, db, "delete from ValidPaths where path = ?", store.Path(named("new")))
	mustExec(t, db, "delete from ValidPaths where path = ?", store.Path(named("a")))
	if _, err := db.ExecContext(t.Context(), "delete from ValidPaths where path = ?",
		store.Path(named("b"))); err == nil {
		t.Error("a path that is referenced was deleted")
	}
}

// A name that is not registered is in no byte of the file: what Restrict leaves
// out is not written, and what it would refuse is refused here too.
func TestRegistrationHasNoForeignName(t *testing.T) {
	foreign := closure.BaseName(strings.Repeat("z", 32) + "-tenant")
	store := closure.Store{Dir: "/nix/store", StateDir: t.TempDir()}
	path := filepath.Join(store.StateDir, "registration")
	for _, c := range []struct {
		change func(infos []closure.PathInfo)
		err    string
	}{
		{func(infos []closure.PathInfo) { infos[1].References = []closure.BaseName{foreign} },
			"a reference of " + store.Path(named("b"))},
		{func(infos []closure.PathInfo) { infos[1].Deriver = foreign }, "the deriver of " + store.Path(named("b"))},
		{func(infos []closure.PathInfo) { infos[2].Outputs[1].Path = foreign },
			"an output of " + store.Path(named("c.drv"))},
	} {
		infos := someInfos()
		c.change(infos)
		err := WriteRegistration(t.Context(), path, store, infos)
		if err == nil || !strings.Contains(err.Error(),
			c.err+", "+store.Path(foreign)+", is not in the registration") || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %q", err, c.err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file was left behind: %v", c.err, err)
		}
	}

	infos := someInfos()
	infos[1].Deriver = foreign
	infos[2].Outputs = append(infos[2].Outputs, closure.Output{Name: "doc", Path: foreign})
	infos, err := closure.Restrict(closure.New(store, []closure.BaseName{named("a"), named("b"), named("c.drv")}),
		infos)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteRegistration(t.Context(), path, store, infos); err != nil {
		t.Fatal(err)
	}
	text := readFile(t, path)
	for _, word := range []string{"tenant", strings.Repeat("z", 8), "doc"} {
		if bytes.Contains(text, []byte(word)) {
			t.Errorf("%q is in the file", word)
		}
	}
	if !bytes.Contains(text, []byte(store.Path(named("a")))) {
		t.Error("the test finds no name at all")
	}
}

// Nothing that is there is written to, and nothing is left behind.
func TestWriteRegistrationFails(t *testing.T) {
	dir := t.TempDir()
	store := closure.Store{Dir: "/nix/store", StateDir: dir}
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "new"), filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"victim", "link", "dangling"} {
		if err := WriteRegistration(t.Context(), filepath.Join(dir, name), store, someInfos()); !errors.Is(err,
			fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := WriteRegistration(t.Context(), filepath.Join(dir, "none", "x"), store, someInfos()); !errors.Is(err,
		fs.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteRegistration(ctx, filepath.Join(dir, "x"), store, someInfos()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	twice := append(someInfos(), someInfos()[0])
	if err := WriteRegistration(t.Context(), filepath.Join(dir, "x"), store, twice); err == nil {
		t.Error("a path twice is no error")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("%v, %v", left, err)
	}
	if text := readFile(t, victim); len(text) != 0 {
		t.Errorf("%d bytes were written through a link", len(text))
	}
	// The path is not taken for options of SQLite.
	odd := filepath.Join(dir, "a?mode=memory&_pragma=x#b%41'")
	if err := WriteRegistration(t.Context(), odd, store, someInfos()); err != nil || len(readFile(t, odd)) == 0 {
		t.Error(err)
	}
}

// As large as a closure may be, by default, within a factor: from Nix's database
// to the container's.
func TestLargeRegistration(t *testing.T) {
	host, db := newStore(t)
	mustExec(t, db, derivationOutputs)
	const n = 20000
	var want []closure.PathInfo
	var names []closure.BaseName
	for i := range n {
		name := named("p%05d", i)
		info := closure.PathInfo{Name: name, NarHash: narHash, NarSize: int64(i), Registered: 1700000000,
			Signatures: "cache-1:" + strings.Repeat("A", 88)}
		for _, to := range []int{i / 2, i / 3, i} {
			info.References = append(info.References, named("p%05d", to))
		}
		slices.Sort(info.References)
		info.References = slices.Compact(info.References)
		names, want = append(names, name), append(want, info)
	}
	// What is not of the closure is between its rows.
	mustExec(t, db, `with recursive i(n) as (select 0 union all select n + 1 from i where n < 2 * ? - 1)
		insert into ValidPaths select
			n + 1, printf('/nix/store/%s-%s%05d', ?, iif(n % 2, 'p', 'other'), n / 2),
			?, 1700000000, NULL, nullif(n / 2, 0), NULL, ?, NULL from i`,
		n, strings.Repeat("0", 32), narHash, "cache-1:"+strings.Repeat("A", 88))
	for _, divisor := range []int{1, 2, 3} {
		mustExec(t, db, "insert or ignore into Refs select id, 2 * (((id - 2) / 2) / ?) + 2 from ValidPaths where id "+
			"% 2 = 0", divisor)
	}
	infos, err := mustOpen(t, host).Infos(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	if infos, err = closure.Restrict(closure.New(host, names), infos); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, infos) {
		t.Fatalf("(-want +got):\n%.2000s", cmp.Diff(want, infos))
	}
	store := writeRegistration(t, infos)
	got, err := mustOpen(t, store).Infos(t.Context(), names)
	if err != nil || !reflect.DeepEqual(want, got) {
		t.Errorf("%v (-want +got):\n%.2000s", err, cmp.Diff(want, got))
	}
	for _, query := range []string{"pragma freelist_count",
		"select count(*) from ValidPaths where path like '%other%'"} {
		if got := rows(t, store.DatabasePath(), query); got != "|0|\n" {
			t.Errorf("%s: %s", query, got)
		}
	}
	if bytes.Contains(readFile(t, store.DatabasePath()), []byte("other")) {
		t.Error("the file has a foreign name")
	}
}
