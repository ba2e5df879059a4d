// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"strings"
	"testing"
)

// hash has each letter of Nix's base 32 once.
const hash = "0123456789abcdfghijklmnpqrsvwxyz"

var nixStore = Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

// named makes a base name whose hash is all zeros but for its last characters.
func named(name string) BaseName {
	return BaseName(strings.Repeat("0", hashLength) + "-" + name)
}

// each calls f for every byte, with the pattern that has it in place of the NUL.
func each(pattern string, f func(b byte, s string)) {
	before, after, _ := strings.Cut(pattern, "\x00")
	for b := range 256 {
		f(byte(b), before+string([]byte{byte(b)})+after)
	}
}

func TestParseBaseName(t *testing.T) {
	long := strings.Repeat("n", maxNameLength)
	for _, c := range []struct {
		in   string
		want error
	}{
		{hash + "-hello-2.12", nil},
		{hash + "-h", nil},
		{hash + "-" + long, nil},
		{hash + "-hello.drv", nil},
		{hash + "-.a", nil},
		{hash + "-..a", nil},
		{hash + "-...", nil},
		{hash + "-...-a", nil},
		{hash + "-.", ErrName},
		{hash + "-..", ErrName},
		{hash + "-.-", ErrName},
		{hash + "-.-a", ErrName},
		{hash + "-..-", ErrName},
		{hash + "-..-a", ErrName},
		{hash + "--", nil},
		{hash + "--a", nil},
		{hash + "-" + long + "n", ErrName},
		{hash + "-", ErrName},
		{hash + "-héllo", ErrName},
		{hash + "-hel\xfflo", ErrName},
		{hash + "-hello\u00a0", ErrName},
		{hash + "-ｈello", ErrName},
		{hash, ErrHash},
		{hash + "hello", ErrHash},
		{hash + "0-hello", ErrHash},
		{hash[1:] + "-hello", ErrHash},
		{"", ErrHash},
		{"-", ErrHash},
		{".", ErrHash},
		{"..", ErrHash},
		{".links", ErrHash},
		{strings.ToUpper(hash) + "-hello", ErrHash},
		{hash[:31] + "é-hello", ErrHash},
		{"é" + hash[2:] + "-hello", ErrHash},
		{strings.Repeat("-", 40), ErrHash},
		{strings.Repeat("/", 40), ErrHash},
	} {
		got, err := ParseBaseName(c.in)
		if !errors.Is(err, c.want) {
			t.Errorf("%q: error %v, want %v", c.in, err, c.want)
		}
		if want := BaseName(c.in); (err == nil && got != want) || (err != nil && got != "") {
			t.Errorf("%q: %q", c.in, got)
		}
	}
}

// The alphabets, spelled out a second time and in another way than the code's.
func TestAlphabets(t *testing.T) {
	letter := func(b byte) bool { return 'a' <= b && b <= 'z' }
	digit := func(b byte) bool { return '0' <= b && b <= '9' }
	for at := range hashLength {
		each(hash[:at]+"\x00"+hash[at+1:]+"-hello", func(b byte, s string) {
			want := digit(b) || letter(b) && b != 'e' && b != 'o' && b != 'u' && b != 't'
			if _, err := ParseBaseName(s); (err == nil) != want {
				t.Errorf("%q: %v", s, err)
			}
		})
	}
	for _, pattern := range []string{"\x00", "\x00ello", "he\x00lo", "hell\x00"} {
		each(hash+"-"+pattern, func(b byte, s string) {
			want := digit(b) || letter(b|0x20) && b < 0x80 || strings.IndexByte("+-._?=", b) >= 0
			if pattern == "\x00" && b == '.' {
				want = false
			}
			if _, err := ParseBaseName(s); (err == nil) != want {
				t.Errorf("%q: %v", s, err)
			}
		})
	}
}

func TestParse(t *testing.T) {
	base := hash + "-hello-2.12"
	path := "/nix/store/" + base
	odd := Store{Dir: "/gnu/store with space"}
	for _, c := range []struct {
		store Store
		in    string
		want  error
	}{
		{nixStore, path, nil},
		{nixStore, path + "/", nil},
		{nixStore, path + "/bin/hello", nil},
		{nixStore, path + "/bin/hello/", nil},
		{nixStore, path + "/.hidden/...", nil},
		{nixStore, path + "/é/\xff", nil},
		{nixStore, path + "/" + base, nil},
		{odd, odd.Dir + "/" + base, nil},

		{nixStore, "", ErrOutside},
		{nixStore, "/", ErrOutside},
		{nixStore, base, ErrOutside},
		{nixStore, "./" + base, ErrOutside},
		{nixStore, "nix/store/" + base, ErrOutside},
		{nixStore, "/nix/store", ErrOutside},
		{nixStore, "/nix/storeX/" + base, ErrOutside},
		{nixStore, "/nix/storeX" + base, ErrOutside},
		{nixStore, "/nix/stor/" + base, ErrOutside},
		{nixStore, "/NIX/STORE/" + base, ErrOutside},
		{nixStore, "//nix/store/" + base, ErrOutside},
		{nixStore, "/nix//store/" + base, ErrOutside},
		{nixStore, "/nix/./store/" + base, ErrOutside},
		{nixStore, "/nix/var/../store/" + base, ErrOutside},
		{nixStore, " " + path, ErrOutside},
		{nixStore, "\n" + path, ErrOutside},
		{nixStore, "file://" + path, ErrOutside},
		{nixStore, "/mnt" + path, ErrOutside},
		{nixStore, odd.Dir + "/" + base, ErrOutside},
		{odd, path, ErrOutside},

		{nixStore, "/nix/store/", ErrHash},
		{nixStore, "/nix/store//" + base, ErrHash},
		{nixStore, "/nix/store/.", ErrHash},
		{nixStore, "/nix/store/..", ErrHash},
		{nixStore, "/nix/store/../store/" + base, ErrHash},
		{nixStore, "/nix/store/./" + base, ErrHash},
		{nixStore, "/nix/store/.links/" + base, ErrHash},
		{nixStore, "/nix/store/.links", ErrHash},
		{nixStore, "/nix/store/" + hash, ErrHash},
		{nixStore, "/nix/store/" + strings.ToUpper(hash) + "-hello", ErrHash},
		{nixStore, "/nix/store/\x00" + base, ErrHash},

		{nixStore, "/nix/store/" + hash + "-", ErrName},
		{nixStore, "/nix/store/" + hash + "-/bin", ErrName},
		{nixStore, "/nix/store/" + hash + "-..", ErrName},
		{nixStore, path + "\n", ErrName},
		{nixStore, path + " ", ErrName},
		{nixStore, path + "\x00", ErrName},
		{nixStore, path + "\x00/bin", ErrName},
		{nixStore, path + "," + path, ErrName},
		{nixStore, path + ":" + path, ErrName},
		{nixStore, path + "\\bin", ErrName},
		{nixStore, path + "!out", ErrName},
		{nixStore, path + "^out", ErrName},
		{nixStore, path + "\u2044bin", ErrName},

		{nixStore, path + "/..", ErrSubpath},
		{nixStore, path + "/../", ErrSubpath},
		{nixStore, path + "/.", ErrSubpath},
		{nixStore, path + "/bin/../../" + base, ErrSubpath},
		{nixStore, path + "/bin/..", ErrSubpath},
		{nixStore, path + "//bin", ErrSubpath},
		{nixStore, path + "/bin//hello", ErrSubpath},
		{nixStore, path + "/bin//", ErrSubpath},
		{nixStore, path + "///", ErrSubpath},
		{nixStore, path + "/bin\x00/hello", ErrSubpath},
		{nixStore, path + "/\x00", ErrSubpath},
	} {
		got, err := c.store.Parse(c.in)
		if !errors.Is(err, c.want) {
			t.Errorf("%q: error %v, want %v", c.in, err, c.want)
		}
		want := BaseName("")
		if c.want == nil {
			want = BaseName(base)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", c.in, got, want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\n") {
			t.Errorf("%q: the message has more than a line: %q", c.in, err)
		}
	}
}

// What is accepted is a store path, or lies below it by plain components.
func FuzzStorePath(f *testing.F) {
	base := hash + "-hello-2.12"
	for _, s := range []string{
		"/nix/store/" + base, "/nix/store/" + base + "/bin/hello", "/nix/store/" + base + "/",
		"/nix/storeX" + base, "/nix/store/../" + base, "/nix/store/" + base + "/../x", "/nix/store/" + hash + "-.-",
		"/nix/store/" + strings.ToUpper(base), "/nix/store/" + base + "\n", "/nix/store//" + base, "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		base, err := nixStore.Parse(s)
		if err != nil {
			if base != "" {
				t.Errorf("%q: %q with an error", s, base)
			}
			return
		}
		rest, ok := strings.CutPrefix(s, nixStore.Path(base))
		if !ok || rest != "" && rest[0] != '/' {
			t.Fatalf("%q is neither %q nor below it", s, nixStore.Path(base))
		}
		for part := range strings.SplitSeq(rest, "/") {
			if part == ".." || part == "." || strings.Contains(part, "\x00") {
				t.Errorf("%q: component %q", s, part)
			}
		}
		if len(base) < 34 || len(base) > 244 || strings.ContainsAny(string(base), "/\\:, \t\n\x00'\"$`") {
			t.Errorf("%q: base name %q", s, base)
		}
		if again, err := ParseBaseName(string(base)); err != nil || again != base {
			t.Errorf("%q: its base name %q is not one: %v", s, base, err)
		}
	})
}
