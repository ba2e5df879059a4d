// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestNew(t *testing.T) {
	a, b, c := named("a"), named("b"), named("c")
	given := []BaseName{c, a, b, a, c}
	got := New(nixStore, given)
	if want := []BaseName{a, b, c}; !slices.Equal(got.Names, want) {
		t.Errorf("names %q, want %q", got.Names, want)
	}
	if want := []BaseName{c, a, b, a, c}; !slices.Equal(given, want) {
		t.Errorf("the caller's list became %q", given)
	}
	if want := "/nix/store\n" + string(a) + "\n" + string(b) + "\n" + string(c) + "\n"; got.Text() != want {
		t.Errorf("text %q, want %q", got.Text(), want)
	}
	// By sha256sum, of that text: what is remembered on a host outlives the
	// program's version.
	const digest = "335fc3bbdc9f139580276e3b293a38da1e436a1fc43044b98801e15c5e1d48ce"
	if got.Digest() != digest {
		t.Errorf("digest %s, want %s", got.Digest(), digest)
	}
	if !IsDigest(got.Digest()) {
		t.Errorf("%s is no digest", got.Digest())
	}
}

func TestDigestTellsClosuresApart(t *testing.T) {
	a, b := named("a"), named("b")
	closures := []Closure{
		New(nixStore, nil),
		New(nixStore, []BaseName{a}),
		New(nixStore, []BaseName{b}),
		New(nixStore, []BaseName{a, b}),
		New(nixStore, []BaseName{a + b}),
		New(Store{Dir: "/gnu/store"}, []BaseName{a, b}),
		// Another state directory is the same store.
	}
	seen := map[string]string{}
	for _, c := range closures {
		if other, ok := seen[c.Digest()]; ok {
			t.Errorf("one digest for %q and %q", other, c.Text())
		}
		seen[c.Digest()] = c.Text()
	}
}

func TestDigestIgnoresOrder(t *testing.T) {
	var names []BaseName
	for i := range 50 {
		names = append(names, named(strings.Repeat("n", i+1)))
	}
	want := New(nixStore, names).Digest()
	for range 20 {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		if got := New(nixStore, append(names, names[0])).Digest(); got != want {
			t.Fatalf("another order has digest %s, want %s", got, want)
		}
	}
}

func TestParseText(t *testing.T) {
	a, b := string(named("a")), string(named("b"))
	for _, c := range []struct {
		name, text string
		ok         bool
	}{
		{"two", "/nix/store\n" + a + "\n" + b + "\n", true},
		{"none", "/nix/store\n", true},
		{"empty", "", false},
		{"no line break after the store", "/nix/store", false},
		{"another store", "/gnu/store\n" + a + "\n", false},
		{"a store that begins the same", "/nix/storeX\n" + a + "\n", false},
		{"not sorted", "/nix/store\n" + b + "\n" + a + "\n", false},
		{"twice", "/nix/store\n" + a + "\n" + a + "\n", false},
		{"last line cut off", "/nix/store\n" + a + "\n" + b, false},
		{"empty line", "/nix/store\n" + a + "\n\n", false},
		{"empty first line", "/nix/store\n\n" + a + "\n", false},
		{"carriage return", "/nix/store\n" + a + "\r\n", false},
		{"whole path", "/nix/store\n/nix/store/" + a + "\n", false},
		{"below a store path", "/nix/store\n" + a + "/bin\n", false},
		{"dots", "/nix/store\n..\n", false},
		{"NUL", "/nix/store\n" + a + "\x00\n", false},
	} {
		got, err := Parse(nixStore, c.text)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil && !errors.Is(err, ErrText) {
			t.Errorf("%s: %v does not wrap ErrText", c.name, err)
		}
		if err != nil && (got.Text() != "" || len(got.Names) > 0) {
			t.Errorf("%s: %q with an error", c.name, got.Names)
		}
		if err == nil && got.Text() != c.text {
			t.Errorf("%s: text %q", c.name, got.Text())
		}
	}
}

// However a text is cut off, it is an error or has another digest.
func TestCutOff(t *testing.T) {
	whole := New(nixStore, []BaseName{named("a"), named("b"), named("c")})
	for i := range len(whole.Text()) {
		got, err := Parse(nixStore, whole.Text()[:i])
		if err == nil && (got.Digest() == whole.Digest() || whole.Text()[i-1] != '\n') {
			t.Errorf("the first %d bytes are taken for %q", i, got.Names)
		}
	}
	again, err := Parse(nixStore, whole.Text())
	if err != nil || again.Digest() != whole.Digest() || !slices.Equal(again.Names, whole.Names) {
		t.Errorf("not the same after a round trip: %q, %v", again.Names, err)
	}
}

func FuzzClosureText(f *testing.F) {
	a, b := named("a"), named("b")
	text := New(nixStore, []BaseName{a, b}).Text()
	for _, s := range []string{
		text, text[:len(text)-1], text[:len(text)-20], "/nix/store\n", "",
		"/nix/store\n" + string(b) + "\n" + string(a) + "\n",
		"/nix/store\n" + string(a) + "/bin\n", strings.ReplaceAll(text, "\n", "\r\n"),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Parse(nixStore, s)
		if err != nil {
			return
		}
		if c.Text() != s {
			t.Errorf("%q became %q", s, c.Text())
		}
		// Only one text stands for a set of names.
		if made := New(nixStore, c.Names); made.Text() != s || made.Digest() != c.Digest() {
			t.Errorf("%q: made anew it is %q", s, made.Text())
		}
		for _, n := range c.Names {
			if _, err := ParseBaseName(string(n)); err != nil {
				t.Errorf("%q: %q: %v", s, n, err)
			}
		}
	})
}
