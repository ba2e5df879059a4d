// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// terminal opens a terminal of a width, and the end that a person looks at.
func terminal(t *testing.T, width int) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = person.Close() })
	must(t, unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	must(t, err)
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = program.Close() })
	must(t, unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: 24}))
	return person, program
}

const shownPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello-2.12"

// A table fits a terminal, by its width or by COLUMNS, and has colours there unless
// NO_COLOR says no. Elsewhere it is whole.
func TestScreen(t *testing.T) {
	rows := table{
		columns: []column{{name: "SIZE", right: true}, {name: "PATH", shorten: true}},
		rows:    [][]string{{"1B", shownPath}},
		colours: []colour{red},
	}
	const short = "/nix/store/0123456789abcd…-hello-2.12"
	for _, c := range []struct {
		name                    string
		width                   int // 0: no terminal
		columns, noColour, term string
		want                    string
	}{
		{name: "no terminal", columns: "20", term: "xterm", want: "  1B  " + shownPath},
		{name: "wide", width: 100, term: "xterm", want: "  \x1b[31m1B\x1b[0m  " + shownPath},
		{name: "just wide enough", width: 6 + len(shownPath), term: "xterm", want: "  \x1b[31m1B\x1b[0m  " + shownPath},
		{name: "narrow", width: 6 + utf8.RuneCountInString(short), term: "xterm",
			want: "  \x1b[31m1B\x1b[0m  " + short},
		{name: "COLUMNS", width: 200, columns: fmt.Sprint(6 + utf8.RuneCountInString(short)), term: "xterm",
			want: "  \x1b[31m1B\x1b[0m  " + short},
		{name: "COLUMNS that is no number", width: 200, columns: "many", term: "xterm",
			want: "  \x1b[31m1B\x1b[0m  " + shownPath},
		{name: "very narrow", width: 3, term: "xterm", want: "  \x1b[31m1B\x1b[0m  /nix/st…"},
		{name: "NO_COLOR", width: 100, noColour: "1", term: "xterm", want: "  1B  " + shownPath},
		{name: "dumb", width: 100, term: "dumb", want: "  1B  " + shownPath},
	} {
		t.Setenv("COLUMNS", c.columns)
		t.Setenv("NO_COLOR", c.noColour)
		t.Setenv("TERM", c.term)
		var person, program *os.File
		if c.width > 0 {
			person, program = terminal(t, c.width)
		} else {
			var err error
			person, program, err = os.Pipe()
			must(t, err)
		}
		must(t, newScreen(program).printTable(rows))
		must(t, program.Close())
		// A terminal that nobody writes to any more ends with EIO.
		text, err := io.ReadAll(person)
		if err != nil && !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		lines := strings.Split(strings.ReplaceAll(string(text), "\r", ""), "\n")
		if len(lines) != 3 || lines[0] != "SIZE  PATH" || lines[1] != c.want {
			t.Errorf("%s: %q; want %q", c.name, lines, c.want)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{shownPath, 100, shownPath},
		{shownPath, len(shownPath) - 1, "/nix/store/0123456789abcdfghijklmnpqrsvwx…-hello-2.12"},
		{shownPath, 29, "/nix/store/012345…-hello-2.12"},
		{shownPath, 28, "/nix/store/012345…-hello-2.…"},
		{"├── " + shownPath, 33, "├── /nix/store/012345…-hello-2.12"},
		{"share/a-file-of-a-long-name", 10, "share/a-f…"},
		{"1.2.3, 1.2.4 → 1.3", 12, "1.2.3, 1.2.…"},
	} {
		got := shorten(c.text, c.width)
		if got != c.want || utf8.RuneCountInString(got) > c.width {
			t.Errorf("%q in %d: %q; want %q", c.text, c.width, got, c.want)
		}
	}
}

func TestSplitName(t *testing.T) {
	for text, want := range map[string][2]string{
		"hello-2.12":                {"hello", "2.12"},
		"hello":                     {"hello", ""},
		"glibc-2.38-44-bin":         {"glibc", "2.38-44-bin"},
		"python3.11-pip-23.0":       {"python3.11-pip", "23.0"},
		"nixos-system-host-23.11.2": {"nixos-system-host", "23.11.2"},
		"unit-a-.service":           {"unit-a", ".service"},
		"ends-":                     {"ends-", ""},
		"X-Y-1":                     {"X-Y", "1"},
	} {
		base, err := closure.ParseBaseName(strings.Repeat("0", 32) + "-" + text)
		must(t, err)
		if name, version := splitName(base); name != want[0] || version != want[1] {
			t.Errorf("%s: %q %q", text, name, version)
		}
	}
}

func TestEscapes(t *testing.T) {
	for _, c := range []struct{ path, systemd, appArmor string }{
		{"/run/view", `/run/view`, `/run/view`},
		{"/run/a view", `"/run/a view"`, `/run/a view`},
		{"/run/100%", `/run/100%%`, `/run/100%`},
		{`/run/a:b\c`, `/run/a\:b\\c`, `/run/a:b\\c`},
		{`/it's "one"`, `"/it\'s \"one\""`, `/it's \"one\"`},
		{"/a?b*c[d]{e,f}^@{HOME}", "/a?b*c[d]{e,f}^@{HOME}", `/a\?b\*c\[d\]\{e,f\}\^\@\{HOME\}`},
	} {
		got, err := systemdPaths(c.path)
		if err != nil || got != c.systemd {
			t.Errorf("systemd: %q: %s %v; want %s", c.path, got, err, c.systemd)
		}
		if got := appArmorText(c.path); got != c.appArmor {
			t.Errorf("AppArmor: %q: %s; want %s", c.path, got, c.appArmor)
		}
	}
	if _, err := systemdPaths("/a\nExecStart=/bin/sh"); err == nil {
		t.Error("a line break is no error")
	}
	if got, err := systemdPaths("/view", "/nix/store"); err != nil || got != "/view:/nix/store" {
		t.Errorf("%s %v", got, err)
	}
}
