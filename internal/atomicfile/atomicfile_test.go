// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/owndir"
	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

// A reader sees one text or the other, and after a failure nothing is left.
func TestWrite(t *testing.T) {
	dir := owndir.At(t.TempDir())
	defer dir.Close()
	texts := [2][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if err := Write(dir, "file", texts[0]); err != nil {
		t.Fatal(err)
	}
	if st, err := dir.Lstat("file"); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; err == nil && i < 200; i++ {
			err = Write(dir, "file", texts[i%2])
		}
		done <- err
	}()
	for reading := true; reading; {
		select {
		case err := <-done:
			if reading = false; err != nil {
				t.Error(err)
			}
		default:
		}
		got, err := dir.ReadFile("file")
		if err != nil || !bytes.Equal(got, texts[0]) && !bytes.Equal(got, texts[1]) {
			t.Fatalf("half a file is seen: %d bytes, %v", len(got), err)
		}
	}
	// A failure leaves nothing.
	if err := os.MkdirAll(dir.Name()+"/directory/full", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, "directory", texts[0]); err == nil {
		t.Error("a directory was replaced")
	}
	entries, err := os.ReadDir(dir.Name())
	if err != nil || len(entries) != 2 {
		t.Errorf("there are %v, %v", entries, err)
	}
}

func TestWriteBy(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"one", "another, and longer", ""} {
		// What a writer left that was killed is in nobody's way.
		if err := os.WriteFile(dir+"/.file", []byte("half, and longer than any"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := WriteBy(dir+"/file", dir+"/.file", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(dir + "/file"); string(got) != text || err != nil {
			t.Errorf("%q, %v, want %q", got, err, text)
		}
	}
	if err := os.Symlink("elsewhere", dir+"/.link"); err != nil {
		t.Fatal(err)
	}
	if err := WriteBy(dir+"/link", dir+"/.link", nil); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link was followed: %v", err)
	}
	if err := WriteBy(dir, dir+"/.x", nil); err == nil {
		t.Error("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 { // file, .link
		t.Errorf("there are %v, %v", entries, err)
	}
}

func TestReplace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make a file of somebody else's")
	}
	dir := t.TempDir()
	path := dir + "/config.json"
	if err := Replace(path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made: %v", err)
	}
	if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.Chmod(path, 0o640), os.Chown(path, 12, 34),
		os.Symlink("config.json", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dir + "/link"} {
		if err := Replace(p, []byte("new")); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Mode != unix.S_IFREG|0o640 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("%s: %+v, %v", p, st, err)
		}
		if got, err := os.ReadFile(p); string(got) != "new" || err != nil {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("there are %v, %v", entries, err)
	}
}
