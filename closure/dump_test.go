// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The SHA-256 of nothing, in every form that Nix writes.
const (
	hexHash    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	base32Hash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
	sriHash    = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	dbHash     = "sha256:" + hexHash
)

func TestParseDump(t *testing.T) {
	a, b, c := nixStore.Path(named("a")), nixStore.Path(named("b")), nixStore.Path(named("c"))
	drv := nixStore.Path(named("a.drv"))
	text := func(l ...string) string { return strings.Join(l, "\n") + "\n" }
	many := make([]string, 1000)
	for i := range many {
		many[i] = nixStore.Path(named(fmt.Sprintf("r%03d", 999-i)))
	}
	withMany := func(count string) string {
		return text(append([]string{a, dbHash, "1", "", count}, many...)...)
	}
	everything := []BaseName{named("a"), named("b"), named("c")}
	for i := range many {
		everything = append(everything, named(fmt.Sprintf("r%03d", i)))
	}
	two := everything[:2]
	for _, c := range []struct {
		name, text string
		closure    []BaseName // nil: everything
		want       []PathInfo
		err        string
	}{
		{name: "closureInfo's", closure: two,
			text: text(a, "sha256:"+base32Hash, "120", "", "0", b, sriHash, "7", "", "2", b, a), want: []PathInfo{
				{Name: named("a"), NarHash: dbHash, NarSize: 120},
				{Name: named("b"), NarHash: dbHash, NarSize: 7, References: two},
			}},
		{name: "nix-store --dump-db's", closure: two,
			text: text(a, hexHash, "120", b, "1", b, b, hexHash, "1", "", "0"), want: []PathInfo{
				{Name: named("a"), NarHash: dbHash, NarSize: 120, Deriver: named("b"), References: two[1:]},
				{Name: named("b"), NarHash: dbHash, NarSize: 1},
			}},
		{name: "a deriver that is not in the closure", closure: two[:1],
			text: text(a, hexHash, "120", drv, "0"), want: []PathInfo{
				{Name: named("a"), NarHash: dbHash, NarSize: 120},
			}},
		{name: "the order of the text does not matter", closure: two,
			text: text(b, hexHash, "1", "", "0", a, hexHash, "1", "", "0"), want: []PathInfo{
				{Name: named("a"), NarHash: dbHash, NarSize: 1}, {Name: named("b"), NarHash: dbHash, NarSize: 1},
			}},
		{name: "size of nothing", closure: two[:1],
			text: text(a, hexHash, "0", "", "0"), want: []PathInfo{{Name: named("a"), NarHash: dbHash}}},
		{name: "greatest size", closure: two[:1],
			text: text(a, hexHash, "9223372036854775807", "", "0"), want: []PathInfo{
				{Name: named("a"), NarHash: dbHash, NarSize: 9223372036854775807},
			}},

		{name: "a path is missing", closure: two, text: text(b, hexHash, "1", "", "0"),
			err: a + " is in the closure, but not registered"},
		{name: "the last path is missing", closure: two, text: text(a, hexHash, "1", "", "0"),
			err: b + " is in the closure, but not registered"},
		{name: "a path too many", closure: two, text: text(a, hexHash, "1", "", "0", c, hexHash),
			err: "line 6: " + c + " is registered, but not in the closure"},
		{name: "reference out of it", closure: two, text: text(a, hexHash, "1", "", "2", b, c),
			err: "line 7: " + a + " references " + c + ", which is not in the closure"},
		{name: "more references than paths", closure: two, text: text(a, hexHash, "1", "", "3", a, b, b),
			err: "line 5: 3 references, but the closure has 2 paths"},
		{name: "long line", text: text(a, hexHash, "1", "", "1", a+strings.Repeat("a", longestLine)),
			err: "line 6: longer than 4096 bytes"},
		{name: "long first line", text: strings.Repeat("a", 1<<20), err: "line 1: longer than 4096 bytes"},
		{name: "longest line", text: text(strings.Repeat("a", longestLine-1)), err: `line 1: "aaaa`},

		{name: "empty", text: "", err: "registers no store path"},
		{name: "line break", text: "\n", err: `line 1: "": not below the store directory /nix/store`},
		{name: "line break before", text: "\n" + text(a, hexHash, "1", "", "0"), err: "line 1: "},
		{name: "line break after", text: text(a, hexHash, "1", "", "0") + "\n", err: `line 6: "": not below`},
		{name: "line break between", text: text(a, hexHash, "1", "", "0", "", b, hexHash, "1", "", "0"),
			err: "line 6: "},
		{name: "junk after", text: text(a, hexHash, "1", "", "0", "junk"), err: `line 6: "junk": not below`},
		{name: "store-paths", text: text(a, b, c), err: `line 2: "` + b + `": not a SHA-256`},

		{name: "cut off after the path", text: text(a), err: "line 2: missing: the text ends"},
		{name: "cut off after the hash", text: text(a, hexHash), err: "line 3: missing"},
		{name: "cut off after the size", text: text(a, hexHash, "1"), err: "line 4: missing"},
		{name: "cut off after the deriver", text: text(a, hexHash, "1", ""), err: "line 5: missing"},
		{name: "cut off after the number", text: text(a, hexHash, "1", "", "1"), err: "line 6: missing"},
		{name: "cut off in a path", text: a, err: `line 1: "` + a + `": without a line break`},
		{name: "cut off in a hash", text: text(a) + hexHash, err: "line 2: "},
		{name: "cut off in a size", text: text(a, hexHash) + "12", err: `line 3: "12": without a line break`},
		{name: "cut off in a number", text: text(a, hexHash, "1", "") + "0", err: `line 5: "0": without a line break`},
		{name: "cut off in a reference", text: text(a, hexHash, "1", "", "2", b) + c,
			err: `line 7: "` + c + `": without a line break`},
		{name: "cut off in the next path", text: text(a, hexHash, "1", "", "1", b) + c,
			err: `line 7: "` + c + `": without a line break`},

		{name: "below a store path", text: text(a+"/bin", hexHash, "1", "", "0"),
			err: `line 1: "` + a + `/bin": below a store path, not one`},
		{name: "slash at the end", text: text(a+"/", hexHash, "1", "", "0"), err: "line 1: "},
		{name: "base name", text: text(string(named("a")), hexHash, "1", "", "0"), err: "line 1: "},
		{name: "store directory", text: text("/nix/store", hexHash, "1", "", "0"), err: "line 1: "},
		{name: "another store", text: text("/gnu/store/"+string(named("a")), hexHash, "1", "", "0"), err: "line 1: "},
		{name: "database", text: text("/nix/var/nix/db/db.sqlite", hexHash, "1", "", "0"), err: "line 1: "},
		{name: "NUL", text: text(a+"\x00", hexHash, "1", "", "0"), err: "line 1: "},
		{name: "quote", text: text(a+"'", hexHash, "1", "", "0"), err: "line 1: "},
		{name: "carriage returns", text: strings.ReplaceAll(text(a, hexHash, "1", "", "0"), "\n", "\r\n"),
			err: "line 1: "},
		{name: "twice", text: text(a, hexHash, "1", "", "0", b, hexHash, "1", "", "0", a, hexHash, "1", "", "0"),
			err: "line 11: " + a + " is registered a second time"},

		{name: "no hash", text: text(a, "", "1", "", "0"), err: `line 2: "": not a SHA-256`},
		{name: "weak hash", text: text(a, "md5:d41d8cd98f00b204e9800998ecf8427e", "1", "", "0"), err: "line 2: "},

		{name: "no size", text: text(a, hexHash, "", "", "0"), err: `line 3: "": not a number`},
		{name: "negative size", text: text(a, hexHash, "-1", "", "0"), err: `line 3: "-1": not a number`},
		{name: "minus nothing", text: text(a, hexHash, "-0", "", "0"), err: "line 3: "},
		{name: "size with a sign", text: text(a, hexHash, "+1", "", "0"), err: "line 3: "},
		{name: "size with a space", text: text(a, hexHash, " 1", "", "0"), err: "line 3: "},
		{name: "size in hexadecimal", text: text(a, hexHash, "0x1", "", "0"), err: "line 3: "},
		{name: "size with an underscore", text: text(a, hexHash, "1_0", "", "0"), err: "line 3: "},
		{name: "size with a leading zero", text: text(a, hexHash, "01", "", "0"), err: "line 3: "},
		{name: "size with a fraction", text: text(a, hexHash, "1.0", "", "0"), err: "line 3: "},
		{name: "size too great", text: text(a, hexHash, "9223372036854775808", "", "0"), err: "line 3: "},
		{name: "other digits", text: text(a, hexHash, "١", "", "0"), err: "line 3: "},

		{name: "deriver elsewhere", text: text(a, hexHash, "1", "/etc/passwd", "0"),
			err: `line 4: "/etc/passwd": not below`},
		{name: "deriver unknown", text: text(a, hexHash, "1", "unknown-deriver", "0"), err: "line 4: "},
		{name: "deriver with a space", text: text(a, hexHash, "1", " ", "0"), err: "line 4: "},
		{name: "deriver left out", text: text(a, hexHash, "1", "0"), err: `line 4: "0": not below`},

		{name: "no number", text: text(a, hexHash, "1", "", ""), err: `line 5: "": not a number`},
		{name: "negative number", text: text(a, hexHash, "1", "", "-1"), err: "line 5: "},
		{name: "number too great", text: withMany("1001"), err: "line 1006: missing"},
		{name: "greatest number", text: withMany("9223372036854775807"),
			err: "line 5: 9223372036854775807 references, but the closure has 1003 paths"},
		{name: "number beyond", text: withMany("99999999999999999999"), err: "line 5: "},
		{name: "number too small", text: withMany("999"), err: "line 1006: missing"},
		{name: "number too small by more", text: withMany("998"), err: `line 1005: "` + many[999] + `": not a SHA-256`},

		{name: "reference elsewhere", text: text(a, hexHash, "1", "", "2", b, "/etc"),
			err: `line 7: "/etc": not below`},
		{name: "empty reference", text: text(a, hexHash, "1", "", "2", b, ""), err: "line 7: "},
		{name: "reference below a store path", text: text(a, hexHash, "1", "", "1", b+"/bin"), err: "line 6: "},
		{name: "reference twice", text: text(a, hexHash, "1", "", "3", b, a, b),
			err: "line 8: " + a + " references " + b + " twice"},
	} {
		if c.closure == nil {
			c.closure = everything
		}
		got, err := parse(New(nixStore, c.closure), c.text)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\n\r") {
			t.Errorf("%s: the message has more than a line: %q", c.name, err)
		}
	}

	var rest strings.Builder
	for _, name := range everything[1:] {
		rest.WriteString(text(nixStore.Path(name), hexHash, "1", "", "0"))
	}
	got, err := parse(New(nixStore, everything), withMany("1000")+rest.String())
	if err != nil || len(got) != len(everything) || !slices.Equal(got[0].References, everything[3:]) {
		t.Errorf("a thousand references: %v", err)
	}
}

func parse(c Closure, text string) ([]PathInfo, error) {
	return ParseDump(nixStore, c, strings.NewReader(text))
}

// A number in the text reserves no memory, and no text is kept.
func TestParseDumpMemory(t *testing.T) {
	path := nixStore.Path(named("a"))
	head := path + "\n" + hexHash + "\n1\n"
	for _, c := range []struct{ text, err string }{
		{head + "\n1000000" + strings.Repeat("\n", 1000001), "line 5: "},
		{head + strings.Repeat("x", 1<<24), "line 4: longer"},
		{head + "\n0\n" + strings.Repeat(head+"\n0\n", 1<<16), "line 6: "},
	} {
		closure := New(nixStore, []BaseName{named("a")})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := parse(closure, c.text); err == nil || !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("error %v, want %q", err, c.err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<16 {
			t.Errorf("%s: %d bytes for a text of %d", c.err, used, len(c.text))
		}
	}
}

func FuzzParseDump(f *testing.F) {
	a, b := nixStore.Path(named("a")), nixStore.Path(named("b"))
	for _, s := range []string{
		a + "\n" + dbHash + "\n120\n" + b + "\n2\n" + b + "\n" + a + "\n" + b + "\nsha256:" + base32Hash + "\n0\n\n0\n",
		a + "\n" + sriHash + "\n1\n\n0\n", a + "\n" + hexHash + "\n1\n\n18446744073709551615\n",
		a + "\n" + base32Hash + "\n-1\n\n0\n", "", "\n", a + "\n\n\n\n\n",
	} {
		f.Add(s)
	}
	closures := []Closure{
		New(nixStore, nil), New(nixStore, []BaseName{named("a")}), New(nixStore, []BaseName{named("a"), named("b")}),
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, closure := range closures {
			fuzzParseDump(t, closure, s)
		}
	})
}

func fuzzParseDump(t *testing.T, closure Closure, s string) {
	infos, err := parse(closure, s)
	if err != nil {
		if infos != nil {
			t.Errorf("%q: %v with an error", s, infos)
		}
		return
	}
	if restricted, err := Restrict(closure, infos); err != nil || cmp.Diff(infos, restricted) != "" {
		t.Errorf("%q: read as %v, restricted to %v, %v", s, infos, restricted, err)
	}
	// Nothing of the text was left out or made up, but for the form of the hash,
	// derivers from outside the closure, and the order.
	var b strings.Builder
	for _, info := range infos {
		if len(info.NarHash) != 71 || info.NarSize < 0 {
			t.Errorf("%q: %+v", s, info)
		}
		deriver := ""
		if info.Deriver != "" {
			deriver = nixStore.Path(info.Deriver)
		}
		fmt.Fprintf(&b, "%s\n%s\n%d\n%s\n%d\n",
			nixStore.Path(info.Name), info.NarHash, info.NarSize, deriver, len(info.References))
		for _, r := range info.References {
			b.WriteString(nixStore.Path(r) + "\n")
		}
	}
	again, err := parse(closure, b.String())
	if diff := cmp.Diff(infos, again); err != nil || diff != "" {
		t.Errorf("%q: written anew it is read as %v:\n%s", s, err, diff)
	}
	if len(infos) == 0 || strings.Count(b.String(), "\n") != strings.Count(s, "\n") {
		t.Errorf("%q was read as %q", s, b.String())
	}
}

// What is hostile about the directory and the file is as in
// TestReadInfoOfAHostileStore; here is that it is the same for this file.
func TestReadDump(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	name := named("closure-info")
	dir := store.Path(name)
	file := dir + "/registration"
	text := store.Path(named("a")) + "\n" + hexHash + "\n1\n\n0\n"
	for _, c := range []struct {
		name string
		make func() error
		err  string // empty: it is read
	}{
		{"well-formed", func() error { return os.WriteFile(file, []byte(text), 0o444) }, ""},
		{"missing", func() error { return os.WriteFile(dir+"/store-paths", []byte(text), 0o444) },
			dir + ": has no file `registration`, so it is not the output of nixpkgs' closureInfo"},
		{"a symbolic link", func() error { return os.Symlink(write(t, t.TempDir()+"/registration", text), file) },
			file + ": a symbolic link"},
		{"a FIFO", func() error { return syscall.Mkfifo(file, 0o644) }, file + ": not a regular file"},
		{"a directory", func() error { return os.Mkdir(file, 0o755) }, file + ": not a regular file"},
		{"huge", func() error { return os.Truncate(write(t, file, text), maxDump+1) },
			file + ": larger than 96 MiB"},
		{"empty", func() error { return os.WriteFile(file, nil, 0o444) }, file + ": registers no store path"},
		{"cut off", func() error { return os.WriteFile(file, []byte(text[:len(text)-2]), 0o444) },
			file + ": line 5: missing"},
		{"of another closure", func() error {
			return os.WriteFile(file, []byte(strings.ReplaceAll(text, "-a", "-b")), 0o444)
		}, file + ": line 1: " + store.Path(named("b")) + " is registered, but not in the closure"},
	} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		mkdir(t, dir)
		if err := c.make(); err != nil {
			t.Fatal(err)
		}
		infos, err := ReadDump(store, New(store, []BaseName{named("a")}), name)
		if c.err == "" {
			if want := []PathInfo{{Name: named("a"), NarHash: dbHash, NarSize: 1}}; err != nil ||
				cmp.Diff(want, infos) != "" {
				t.Errorf("%s: %+v, %v", c.name, infos, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), c.err) || infos != nil {
			t.Errorf("%s: %+v, error %v, want %q", c.name, infos, err, c.err)
		}
	}
}
