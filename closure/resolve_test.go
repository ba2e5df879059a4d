// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
)

// registry is a Registry in memory.
type registry struct {
	store      Store
	references map[BaseName][]BaseName
	rows       map[BaseName]RowVersion // of the valid ones
	blind      bool                    // cannot tell versions apart, as nix-store
	stamp      Stamp
	closures   int // how often Closure was called
}

func (r *registry) Stamp() Stamp { return r.stamp }

func (r *registry) Versions(_ context.Context, names []BaseName) ([]RowVersion, error) {
	all := make([]RowVersion, len(names))
	for i, n := range names {
		row, ok := r.rows[n]
		if !ok {
			return nil, &NotValidError{r.store.Path(n)}
		}
		if !r.blind {
			all[i] = row
		}
	}
	return all, nil
}

func (r *registry) Closure(ctx context.Context, names []BaseName, max int) ([]BaseName, error) {
	r.closures++
	if _, err := r.Versions(ctx, names); err != nil {
		return nil, err
	}
	all := slices.Clone(names)
	for i := 0; i < len(all); i++ {
		for _, n := range r.references[all[i]] {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	if len(all) > max {
		return nil, &TooLargeError{max}
	}
	return all, nil
}

// registryOf registers the names, each after what it references: `a: b c`.
func registryOf(store Store, lines ...string) *registry {
	r := &registry{store: store, references: map[BaseName][]BaseName{}, rows: map[BaseName]RowVersion{}}
	for i, line := range lines {
		name, references, _ := strings.Cut(line, ":")
		r.rows[named(name)] = RowVersion{Row: int64(i + 1), Time: 1700000000}
		for n := range strings.FieldsSeq(references) {
			r.references[named(name)] = append(r.references[named(name)], named(n))
		}
	}
	return r
}

func names(s string) []BaseName {
	var all []BaseName
	for n := range strings.FieldsSeq(s) {
		all = append(all, named(n))
	}
	return all
}

// makeInfo makes a closure-info that lists the names.
func makeInfo(t *testing.T, store Store, info, list string) {
	t.Helper()
	var text strings.Builder
	for _, n := range names(list) {
		text.WriteString(store.Path(n) + "\n")
	}
	write(t, store.Path(named(info))+"/store-paths", text.String())
}

func TestResolve(t *testing.T) {
	// A cycle, a reference to itself, a diamond, and what nothing references.
	graph := []string{"a: b c a", "b: d", "c: d e", "d:", "e: e", "x: y", "y: x", "lonely:", "info: a lonely", "bare:",
		"liar: a"}
	for _, c := range []struct {
		name  string
		query Query
		info  [2]string // a closure-info and what it lists
		max   int
		want  string
		pins  string
		err   string // a part of it; the store directory is STORE
	}{
		{name: "a root", query: Query{Roots: names("a")}, max: 50, want: "a b c d e", pins: "a"},
		{name: "a leaf", query: Query{Roots: names("d")}, max: 1, want: "d", pins: "d"},
		{name: "a cycle", query: Query{Roots: names("x")}, max: 50, want: "x y", pins: "x"},
		{name: "roots", query: Query{Roots: names("x d b")}, max: 50, want: "b d x y", pins: "x d b"},
		{name: "as many as allowed", query: Query{Roots: names("a")}, max: 5, want: "a b c d e", pins: "a"},
		{name: "too many", query: Query{Roots: names("a")}, max: 4, err: "the closure has more than 4 store paths"},
		{name: "not valid", query: Query{Roots: names("gone")}, max: 50,
			err: "STORE/" + string(named("gone")) + " is not valid"},
		{name: "one not valid", query: Query{Roots: names("a gone")}, max: 50,
			err: "STORE/" + string(named("gone")) + " is not valid"},

		{name: "closure-info", query: Query{Info: named("info")}, info: [2]string{"info", "a b c d e lonely"}, max: 50,
			want: "a b c d e lonely", pins: "info"},
		{name: "closure-info of less than it references", query: Query{Info: named("info")},
			info: [2]string{"info", "b d"}, max: 50,
			want: "b d", pins: "info"},
		{name: "closure-info that does not reference what it lists", query: Query{Info: named("bare")},
			info: [2]string{"bare", "x y b d"}, max: 50,
			want: "b d x y", pins: "bare x y b d"},
		{name: "closure-info that references a part of what it lists", query: Query{Info: named("liar")},
			info: [2]string{"liar", "a b c d e x y"}, max: 50,
			want: "a b c d e x y", pins: "liar x y"},
		{name: "closure-info that lists itself", query: Query{Info: named("bare")}, info: [2]string{"bare", "bare d"},
			max:  50,
			want: "bare d", pins: "bare d"},
		{name: "closure-info that lists one twice", query: Query{Info: named("info")}, info: [2]string{"info", "d d"},
			max:  50,
			want: "d", pins: "info"},
		{name: "closure-info, as many as allowed", query: Query{Info: named("info")},
			info: [2]string{"info", "a b c d e lonely"}, max: 6,
			want: "a b c d e lonely", pins: "info"},
		{name: "closure-info, not closed", query: Query{Info: named("info")}, info: [2]string{"info", "a b c d lonely"},
			max: 50,
			err: "STORE/" + string(named("info")) + "/store-paths is no closure: STORE/" + string(named("e")) +
				" is referenced, but not listed"},
		{name: "closure-info, not closed and as large as allowed", query: Query{Info: named("bare")},
			info: [2]string{"bare", "x"}, max: 1,
			err: "more than 1 store paths"},
		{name: "closure-info, too many", query: Query{Info: named("info")}, info: [2]string{"info", "a b c d e lonely"},
			max: 5,
			err: "more than 5 store paths"},
		{name: "closure-info, lists what is not valid", query: Query{Info: named("info")},
			info: [2]string{"info", "d gone"}, max: 50,
			err: "STORE/" + string(named("gone")) + " is not valid"},
		{name: "closure-info, not valid itself", query: Query{Info: named("unregistered")},
			info: [2]string{"unregistered", "d"}, max: 50,
			err: "STORE/" + string(named("unregistered")) + " is not valid"},
		{name: "closure-info, not one", query: Query{Info: named("d")}, max: 50,
			err: "STORE/" + string(named("d")) + ": does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cacheOf(t)
			r := registryOf(m.Store, graph...)
			if c.info[0] != "" {
				makeInfo(t, m.Store, c.info[0], c.info[1])
			}
			got, err := m.Resolve(t.Context(), r, c.query, c.max)
			if c.err != "" {
				if want := strings.ReplaceAll(c.err, "STORE", m.Store.Dir); err == nil ||
					!strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q", err, want)
				}
				if _, ok := m.lookup(c.query); ok {
					t.Error("an error is remembered")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := New(m.Store, names(c.want))
			if got.Digest != want.Digest() || got.Paths != len(want.Names) || got.Since == 0 {
				t.Errorf("%+v, want digest %s and %d paths", got, want.Digest(), len(want.Names))
			}
			if !slices.Equal(got.Pins, names(c.pins)) {
				t.Errorf("pins %q, want %q", got.Pins, names(c.pins))
			}
			loaded, err := m.Load(got.Digest)
			if err != nil || !slices.Equal(loaded.Names, names(c.want)) {
				t.Errorf("%q, %v; want %q", loaded.Names, err, names(c.want))
			}
		})
	}
}

// A second look at the same roots asks for their versions, and no more.
func TestResolveAgain(t *testing.T) {
	a := named("a")
	q := Query{Roots: []BaseName{a}}
	for _, c := range []struct {
		name   string
		before func(r *registry)
		change func(t *testing.T, m Cache, r *registry)
		max    int
		asked  bool   // whether the closure is asked for again
		err    string // a part of it
	}{
		{name: "as before", asked: false},
		{name: "another root was registered", change: func(_ *testing.T, _ Cache, r *registry) {
			r.rows[named("z")] = RowVersion{99, 1}
		}, asked: false},
		{name: "another stamp", change: func(_ *testing.T, _ Cache, r *registry) { r.stamp = Stamp{Taken: 7} },
			asked: false},
		{name: "came back in another row", change: func(_ *testing.T, _ Cache, r *registry) {
			r.rows[a] = RowVersion{99, r.rows[a].Time}
		}, asked: true},
		{name: "came back at another time", change: func(_ *testing.T, _ Cache, r *registry) {
			r.rows[a] = RowVersion{r.rows[a].Row, 1800000000}
		}, asked: true},
		{name: "is gone", change: func(_ *testing.T, _ Cache, r *registry) { delete(r.rows, a) }, asked: true,
			err: "is not valid"},
		{name: "registry that cannot tell", before: func(r *registry) { r.blind = true }, asked: true},
		{name: "registry that cannot tell any more",
			change: func(_ *testing.T, _ Cache, r *registry) { r.blind = true },
			asked:  true},
		{name: "more than allowed by now", max: 1, asked: true, err: "more than 1 store paths"},
		{name: "list is gone", change: func(t *testing.T, m Cache, r *registry) {
			digest := New(m.Store, names("a b")).Digest()
			if err := m.Dir.Remove(digest); err != nil {
				t.Fatal(err)
			}
		}, asked: true},
		{name: "entry is damaged", change: func(t *testing.T, m Cache, r *registry) {
			if err := os.WriteFile(m.Dir.Name()+"/"+m.file(q), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, asked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cacheOf(t)
			r := registryOf(m.Store, "a: b", "b:")
			if c.before != nil {
				c.before(r)
			}
			first, err := m.Resolve(t.Context(), r, q, 50)
			if err != nil || first.Since == 0 {
				t.Fatalf("%+v, %v", first, err)
			}
			if c.change != nil {
				c.change(t, m, r)
			}
			if c.max == 0 {
				c.max = 50
			}
			r.closures = 0
			second, err := m.Resolve(t.Context(), r, q, c.max)
			if asked := r.closures > 0; asked != c.asked {
				t.Errorf("asked for the closure: %v", asked)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// What is made of files that may have been replaced is looked at again.
			if (second.Since != first.Since) != c.asked || second.Digest != first.Digest ||
				second.Paths != first.Paths || !slices.Equal(second.Pins, first.Pins) {
				t.Errorf("%+v, then %+v", first, second)
			}
			if _, err := m.Load(second.Digest); err != nil {
				t.Error(err)
			}
		})
	}
}

// The stamp that is remembered is of the last look, so that containers start
// without the database again soon after it changed.
func TestResolveRefreshesTheStamp(t *testing.T) {
	m := cacheOf(t)
	r := registryOf(m.Store, "a: b", "b:")
	r.stamp = trusted(t, m.Store)
	q := Query{Roots: names("a")}
	if _, ok := m.Remembered(q); ok {
		t.Error("remembered before it was resolved")
	}
	if _, err := m.Resolve(t.Context(), r, q, 50); err != nil {
		t.Fatal(err)
	}
	if res, ok := m.Remembered(q); !ok {
		t.Errorf("%+v, %v", res, ok)
	}
	write(t, m.Store.DatabasePath(), "another path was registered")
	if _, ok := m.Remembered(q); ok {
		t.Error("remembered after the database changed")
	}
	r.stamp, r.closures = trusted(t, m.Store), 0
	if res, err := m.Resolve(t.Context(), r, q, 50); err != nil || r.closures > 0 {
		t.Errorf("%+v, %v, %d closures", res, err, r.closures)
	}
	if res, ok := m.Remembered(q); !ok {
		t.Errorf("not remembered with the new stamp: %+v, %v", res, ok)
	}
}

// What nix-store said is never remembered without asking it again.
func TestResolveWithoutStamp(t *testing.T) {
	m := cacheOf(t)
	r := registryOf(m.Store, "a:")
	r.blind = true
	q := Query{Roots: names("a")}
	for range 2 {
		if res, err := m.Resolve(t.Context(), r, q, 50); err != nil || res.Since == 0 {
			t.Errorf("%+v, %v", res, err)
		}
		if _, ok := m.Remembered(q); ok {
			t.Error("remembered")
		}
	}
}
