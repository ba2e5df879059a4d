// SPDX-License-Identifier: Apache-2.0

package nopoll

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestReadFile(t *testing.T) {
	file := t.TempDir() + "/file"
	for _, size := range []int{0, 1, firstBuffer - 1, firstBuffer, firstBuffer + 1, 10 * firstBuffer} {
		text := bytes.Repeat([]byte("x"), size)
		must(t, os.WriteFile(file, text, 0o600))
		if got, err := ReadFile(file, 0); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d: %d bytes, %v", size, len(got), err)
		}
	}
	f, err := Open(file, unix.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	if text, err := Read(int(f.Fd()), file, firstBuffer); err != nil || len(text) <= firstBuffer {
		t.Errorf("no more than %d bytes of a larger file, %v", len(text), err)
	}
	if text, err := ReadFile("/proc/self/status", 0); err != nil || len(text) < 100 {
		t.Errorf("a file of /proc: %q, %v", text, err)
	}
	must(t, os.Symlink(file, file+"-link"))
	if _, err := ReadFile(file+"-link", 0); err != nil {
		t.Error(err)
	}
	if _, err := ReadFile(file+"-link", unix.O_NOFOLLOW); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link was followed: %v", err)
	}
	if _, err := ReadFile(file+"-none", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 1000 { // more than one read
		name := fmt.Sprintf("name-%04d", i)
		want = append(want, name)
		must(t, os.WriteFile(dir+"/"+name, nil, 0o600))
	}
	got, err := Names(dir)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names, %v", len(got), err)
	}
	must(t, os.Symlink(dir, dir+"/link"))
	for _, path := range []string{dir + "/link", dir + "/name-0000"} {
		if names, err := Names(path); err == nil {
			t.Errorf("%s: %d names", path, len(names))
		}
	}
	if _, err := Names(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}
