// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStorePaths(t *testing.T) {
	a, b := nixStore.Path(named("a")), nixStore.Path(named("b"))
	for _, c := range []struct {
		name, text string
		want       []BaseName
		err        string
	}{
		{name: "two", text: a + "\n" + b + "\n", want: []BaseName{named("a"), named("b")}},
		{name: "order is kept", text: b + "\n" + a + "\n", want: []BaseName{named("b"), named("a")}},
		{name: "no line break at the end", text: a + "\n" + b, want: []BaseName{named("a"), named("b")}},
		{name: "empty", text: "", err: "lists no store path"},
		{name: "line break", text: "\n", err: `line 1: "": not below the store directory /nix/store`},
		{name: "two line breaks at the end", text: a + "\n\n",
			err: `line 2: "": not below the store directory /nix/store`},
		{name: "empty line", text: a + "\n\n" + b + "\n", err: `line 2: "": not below`},
		{name: "below a store path", text: a + "\n" + b + "/bin\n",
			err: `line 2: "` + b + `/bin": below a store path, not one`},
		{name: "slash at the end", text: a + "/\n", err: "line 1: "},
		{name: "slashes at the end", text: a + "//\n", err: "line 1: "},
		{name: "base name", text: string(named("a")) + "\n", err: "line 1: "},
		{name: "store directory", text: "/nix/store\n", err: "line 1: "},
		{name: "up", text: "/nix/store/..\n", err: "line 1: "},
		{name: "links", text: "/nix/store/.links\n", err: "line 1: "},
		{name: "another store", text: "/gnu/store/" + string(named("a")) + "\n", err: "line 1: "},
		{name: "carriage return", text: a + "\r\n" + b + "\r\n", err: "line 1: "},
		{name: "space", text: " " + a + "\n", err: "line 1: "},
		{name: "NUL", text: a + "\x00" + b + "\n", err: "line 1: "},
		{name: "comment", text: a + "\n# " + b + "\n", err: "line 2: "},
		{name: "two on a line", text: a + " " + b + "\n", err: "line 1: "},
		{name: "long line", text: a + "\n" + strings.Repeat("a", longestLine+1), err: "line 2: longer than 4096 bytes"},
		{name: "too many", text: a + "\n" + b + "\n" + a + "\n", err: "the closure has more than 2 store paths"},
	} {
		got, err := ParseStorePaths(nixStore, strings.NewReader(c.text), 2)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
	}
}

// A closure-info is made by whoever may add to the store. Nothing in it may lead
// out of it, or hold the container's start up.
func TestReadInfoOfAHostileStore(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	name := named("closure-info")
	dir := store.Path(name)
	file := dir + "/store-paths"
	list := store.Path(named("a")) + "\n"
	elsewhere := t.TempDir()
	write(t, elsewhere+"/store-paths", list)

	for _, c := range []struct {
		name string
		make func() error
		err  string // empty: it is read
	}{
		{"well-formed", func() error {
			return os.WriteFile(mkdir(t, dir)+"/store-paths", []byte(list), 0o444)
		}, ""},
		{"missing", func() error { return nil }, dir + ": does not exist"},
		{"empty directory", func() error { return os.Mkdir(dir, 0o755) },
			dir + ": has no file `store-paths`, so it is not the output of nixpkgs' closureInfo"},
		{"a file", func() error { return os.WriteFile(dir, []byte(list), 0o444) },
			dir + ": not a directory, so not the output of nixpkgs' closureInfo"},
		{"a symbolic link to a good one", func() error { return os.Symlink(elsewhere, dir) },
			dir + ": not a directory, so not the output of nixpkgs' closureInfo"},
		{"a symbolic link to itself", func() error { return os.Symlink(dir, dir) },
			dir + ": not a directory, so not the output of nixpkgs' closureInfo"},
		{"a FIFO", func() error { return syscall.Mkfifo(dir, 0o644) },
			dir + ": not a directory, so not the output of nixpkgs' closureInfo"},
		{"file is a symbolic link to a good one", func() error {
			return os.Symlink(elsewhere+"/store-paths", mkdir(t, dir)+"/store-paths")
		}, file + ": a symbolic link"},
		{"file is a symbolic link that leads nowhere", func() error {
			return os.Symlink("nowhere", mkdir(t, dir)+"/store-paths")
		}, file + ": a symbolic link"},
		{"file is a directory", func() error { return os.Mkdir(mkdir(t, dir)+"/store-paths", 0o755) },
			file + ": not a regular file"},
		{"file is a FIFO", func() error { return syscall.Mkfifo(mkdir(t, dir)+"/store-paths", 0o644) },
			file + ": not a regular file"},
		{"file is a socket", func() error {
			return syscall.Mknod(mkdir(t, dir)+"/store-paths", syscall.S_IFSOCK|0o644, 0)
		}, "open " + file},
		{"file is huge", func() error {
			// Sparse.
			return os.Truncate(write(t, mkdir(t, dir)+"/store-paths", list), maxStorePathsFile+1)
		}, file + ": larger than 64 MiB"},
		{"file is empty", func() error { return os.WriteFile(mkdir(t, dir)+"/store-paths", nil, 0o444) },
			file + ": lists no store path"},
		{"file is binary", func() error {
			return os.WriteFile(mkdir(t, dir)+"/store-paths", []byte("\x7fELF\x00\xff\n"), 0o444)
		}, file + ": line 1: "},
		{"a line is the database", func() error {
			return os.WriteFile(mkdir(t, dir)+"/store-paths", []byte(list+"/nix/var/nix/db/db.sqlite\n"), 0o444)
		}, file + ": line 2: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := c.make(); err != nil {
				t.Fatal(err)
			}
			type result struct {
				names []BaseName
				err   error
			}
			done := make(chan result, 1)
			go func() {
				names, err := ReadInfo(store, name, 1)
				done <- result{names, err}
			}()
			var r result
			select {
			case r = <-done:
			case <-time.After(5 * time.Second):
				t.Fatal("hangs")
			}
			if c.err == "" {
				if r.err != nil || !slices.Equal(r.names, []BaseName{named("a")}) {
					t.Errorf("%q, %v", r.names, r.err)
				}
				return
			}
			if r.err == nil || !strings.HasPrefix(r.err.Error(), c.err) {
				t.Errorf("error %v, want %q", r.err, c.err)
			}
			if r.names != nil {
				t.Errorf("%q with an error", r.names)
			}
		})
	}
}

func FuzzStorePaths(f *testing.F) {
	a, b := nixStore.Path(named("a")), nixStore.Path(named("b"))
	for _, s := range []string{
		a + "\n" + b + "\n", a, "", "\n", "\n\n", a + "\n\n", a + "/\n", a + "/bin\n", a + "\r\n", "/nix/store/..\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := ParseStorePaths(nixStore, strings.NewReader(s), 1000)
		if err != nil {
			if names != nil {
				t.Errorf("%q: %q with an error", s, names)
			}
			return
		}
		// Nothing of the text was left out or made up.
		var b strings.Builder
		for _, n := range names {
			if _, err := ParseBaseName(string(n)); err != nil {
				t.Errorf("%q: %q: %v", s, n, err)
			}
			b.WriteString(nixStore.Path(n) + "\n")
		}
		if len(names) == 0 || b.String() != strings.TrimSuffix(s, "\n")+"\n" {
			t.Errorf("%q was read as %q", s, b.String())
		}
	})
}

// mkdir makes a directory and those above it, and returns its path.
func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// write makes a file and the directories above it, and returns its path.
func write(t *testing.T, path, text string) string {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
