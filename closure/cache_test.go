// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// cacheOf is an empty cache, and a store with a database that is some bytes.
func cacheOf(t *testing.T) Cache {
	t.Helper()
	dir := t.TempDir()
	store := Store{Dir: dir + "/store", StateDir: dir + "/var"}
	write(t, store.DatabasePath(), "database")
	closures := owndir.At(mkdir(t, dir+"/closures"))
	t.Cleanup(closures.Close)
	return Cache{Dir: closures, Store: store}
}

func entryOf(c Closure, pins ...BaseName) entry {
	e := entry{Digest: c.Digest(), Paths: len(c.Names), Pins: pins}
	for i := range pins {
		e.Versions = append(e.Versions, RowVersion{Row: int64(i + 1), Time: 1700000000})
	}
	return e
}

func TestCache(t *testing.T) {
	m := cacheOf(t)
	a, b := named("a"), named("b")
	c := New(m.Store, []BaseName{a, b})
	q := Query{Roots: []BaseName{a}}
	if e, ok := m.lookup(q); ok {
		t.Errorf("an empty cache remembers %v", e)
	}
	if _, err := m.Load(c.Digest()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty cache loads: %v", err)
	}
	want := entryOf(c, a)
	want.Stamp = trusted(t, m.Store)
	if err := errors.Join(m.store(c), m.save(q, want)); err != nil {
		t.Fatal(err)
	}
	got, ok := m.lookup(q)
	if !ok || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("looked up %v, %v; want %v", got, ok, want)
	}
	loaded, err := m.Load(c.Digest())
	if err != nil || loaded.Text() != c.Text() || !slices.Equal(loaded.Names, c.Names) {
		t.Errorf("loaded %q, %v", loaded.Text(), err)
	}
	res, ok := m.Remembered(q)
	if !ok || res.Digest != c.Digest() || res.Paths != 2 || !slices.Equal(res.Pins, []BaseName{a}) {
		t.Errorf("remembered %+v, %v", res, ok)
	}
	for range 2 { // the second time there is nothing to forget
		if err := m.Forget(q, c.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	if entries, _ := m.Dir.Names(); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

// Queries are told apart, and only by what they ask for.
func TestCacheOfQueries(t *testing.T) {
	m := cacheOf(t)
	a, b := named("a"), named("b")
	other := m
	other.Store.Dir += "2"
	moved := m
	moved.Store.StateDir += "2"
	seen := map[string]int{}
	for i, name := range []string{
		m.file(Query{Roots: []BaseName{a}}),
		m.file(Query{Roots: []BaseName{b}}),
		m.file(Query{Roots: []BaseName{a, b}}),
		m.file(Query{Info: a}),
		m.file(Query{Info: b}),
		m.file(Query{Info: a, Roots: []BaseName{b}}),
		other.file(Query{Roots: []BaseName{a}}),
		moved.file(Query{Roots: []BaseName{a}}),
	} {
		if j, ok := seen[name]; ok {
			t.Errorf("queries %d and %d have one file", i, j)
		}
		seen[name] = i
	}
	if m.file(Query{Roots: []BaseName{a, b}}) != m.file(Query{Roots: []BaseName{b, a, b}}) {
		t.Error("the order of the roots makes another file")
	}
}

// without is a text without the lines that begin with a word.
func without(text []byte, word string) string {
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, word) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// What is read is what was written, to the letter.
func FuzzCache(f *testing.F) {
	store := Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}
	e := entryOf(New(store, []BaseName{named("a")}), named("a"), named("b"))
	f.Add(e.text())
	f.Add([]byte(lastLine))
	f.Add([]byte("closure x 1 1\nstamp 0 0 0 0 0 0 0\nend\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, ok := parseEntry(text)
		if ok && (string(e.text()) != string(text) || len(e.Pins) != len(e.Versions)) {
			t.Errorf("%q is read as %+v", text, e)
		}
	})
}

// What is not whole is not remembered, and it is no error: it is made anew.
func TestCacheDamaged(t *testing.T) {
	m := cacheOf(t)
	a := named("a")
	c := New(m.Store, []BaseName{a})
	q := Query{Roots: []BaseName{a}}
	good := entryOf(c, a)
	good.Stamp = trusted(t, m.Store)
	text := good.text()
	changed := func(change func(e *entry)) string {
		e := good
		e.Pins, e.Versions = slices.Clone(e.Pins), slices.Clone(e.Versions)
		change(&e)
		return string(e.text())
	}
	for _, d := range []struct {
		name, text string
		ok         bool
	}{
		{"whole", string(text), true},
		{"empty", "", false},
		{"null", "null", false},
		{"cut off", string(text[:len(text)-1]), false},
		{"twice", string(text) + string(text), false},
		{"zeros", strings.Repeat("\x00", len(text)), false},
		{"no pins", changed(func(e *entry) { e.Pins, e.Versions = nil, nil }), false},
		{"cut off after a pin", strings.TrimSuffix(string(text), lastLine), false},
		{"a pin without a registration",
			strings.Replace(string(text), lastLine, "pin "+string(named("b"))+"\n"+lastLine, 1), false},
		{"more behind a pin", strings.Replace(string(text), lastLine, "x"+lastLine, 1), false},
		{"a number with a sign", strings.Replace(string(text), "stamp ", "stamp +", 1), false},
		{"two spaces", strings.Replace(string(text), "stamp ", "stamp  ", 1), false},
		{"no stamp", without(text, "stamp"), false},
		{"JSON", `{"digest":"x"}`, false},
		{"a pin that is no base name", changed(func(e *entry) { e.Pins[0] = "../../etc" }), false},
		{"an empty pin", changed(func(e *entry) { e.Pins[0] = "" }), false},
		{"no digest", changed(func(e *entry) { e.Digest = "" }), false},
		{"a digest that is a path", changed(func(e *entry) { e.Digest = strings.Repeat("../", 21) + "x" }), false},
		{"a digest in capitals", changed(func(e *entry) { e.Digest = strings.ToUpper(e.Digest) }), false},
	} {
		if err := atomicfile.Write(m.Dir, m.file(q), []byte(d.text)); err != nil {
			t.Fatal(err)
		}
		if _, ok := m.lookup(q); ok != d.ok {
			t.Errorf("%s: looked up: %v", d.name, ok)
		}
		if _, ok := m.Remembered(q); ok != d.ok {
			t.Errorf("%s: remembered: %v", d.name, ok)
		}
	}
	if err := errors.Join(m.Dir.Remove(m.file(q)), m.Dir.Mkdir(m.file(q), 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.lookup(q); ok {
		t.Error("a directory is remembered")
	}
}

// A list that was damaged is an error, and never a smaller closure.
func TestLoadDamaged(t *testing.T) {
	m := cacheOf(t)
	c := New(m.Store, []BaseName{named("a"), named("b"), named("c")})
	text, digest := c.Text(), c.Digest()
	for _, d := range []struct{ name, text string }{
		{"empty", ""},
		{"a line missing at the end", text[:strings.LastIndex(text[:len(text)-1], "\n")+1]},
		{"no line", m.Store.Dir + "\n"},
		{"cut off in a line", text[:len(text)-3]},
		{"a byte changed", strings.Replace(text, "-b\n", "-d\n", 1)},
		{"a line more", text + string(named("d")) + "\n"},
		{"another store", strings.Replace(text, m.Store.Dir, "/nix/store", 1)},
		{"another closure", New(m.Store, []BaseName{named("a")}).Text()},
		{"zeros", strings.Repeat("\x00", len(text))},
	} {
		if err := os.WriteFile(m.Dir.Name()+"/"+digest, []byte(d.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := m.Load(digest)
		if !errors.Is(err, ErrText) {
			t.Errorf("%s: error %v", d.name, err)
		}
		if len(got.Names) > 0 {
			t.Errorf("%s: %q with an error", d.name, got.Names)
		}
	}
	// What store finds cut off, it makes anew.
	if err := errors.Join(os.WriteFile(m.Dir.Name()+"/"+digest, []byte(text[:50]), 0o600), m.store(c)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Load(digest); err != nil {
		t.Error(err)
	}
}
