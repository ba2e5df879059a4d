// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/commandline"
)

// readings are the runtimes' readings of a command line: the config.json that they create
// a container from, as it is named, and whether they create any. They may accept what a
// runtime refuses for another reason, such as a value that is not a number.
var readings = map[string]func(args []string) (file string, makes bool){"runc": runcReads, "crun": crunReads}

// runcReads reads as urfave/cli, version 1, does with Go's package flag.
func runcReads(args []string) (file string, makes bool) {
	global := goFlags("log", "log-format", "root", "criu", "rootless", "-debug", "-systemd-cgroup", "-help", "-h",
		"-version", "-v")
	if global.Parse(args) != nil || isSet(global, "help", "h", "version", "v") || global.NArg() == 0 ||
		!commandline.IsMaker(global.Arg(0)) {
		return "", false
	}
	names := []string{"bundle", "b", "console-socket", "pid-file", "pidfd-socket", "preserve-fds", "-no-new-keyring",
		"-no-pivot", "-help", "-h"}
	switch global.Arg(0) {
	case "run":
		names = append(names, "-detach", "-d", "-keep", "-no-subreaper")
	case "restore":
		names = append(names, "-detach", "-d", "-no-subreaper", "image-path", "work-path", "manage-cgroups-mode",
			"empty-ns", "lsm-profile", "lsm-mount-context",
			"-tcp-established", "-ext-unix-sk", "-shell-job", "-file-locks", "-auto-dedup", "-lazy-pages")
	}
	own := goFlags(names...)
	if own.Parse(reordered(own, global.Args()[1:])) != nil || isSet(own, "help", "h") || own.NArg() != 1 {
		return "", false
	}
	given := map[byte]int{} // options that also have a letter, by letter
	bundle := ""
	own.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "bundle", "b":
			bundle = f.Value.String()
			given['b']++
		case "detach", "d":
			given['d']++
		}
	})
	if given['b'] > 1 || given['d'] > 1 {
		return "", false // two forms of one option
	}
	return cmp.Or(bundle, ".") + "/config.json", true
}

// goFlags returns a flag set with string flags. A name with a hyphen before it is a
// switch.
func goFlags(names ...string) *flag.FlagSet {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	for _, n := range names {
		if n, isSwitch := strings.CutPrefix(n, "-"); isSwitch {
			f.Bool(n, false, "")
		} else {
			f.String(n, "", "")
		}
	}
	return f
}

func isSet(f *flag.FlagSet, names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return f.Lookup(n).Value.String() == "true" })
}

// reordered puts flags before operands. An argument that follows a flag and is not a flag
// counts as the flag's value, and moves with it.
func reordered(f *flag.FlagSet, args []string) []string {
	isFlag := func(arg string) bool {
		if arg == "-" || arg == "--" || !strings.HasPrefix(arg, "-") {
			return false
		}
		// urfave/cli treats three hyphens as two, and the flag package refuses those.
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "--"), "-"), "=")
		return f.Lookup(name) != nil
	}
	var flags, others []string
	value := false
	for i, arg := range args {
		switch {
		case value && !isFlag(arg):
			value = false
			flags = append(flags, arg)
			continue
		case arg == "--":
			return slices.Concat(flags, []string{"--"}, others, args[i+1:])
		case isFlag(arg):
			flags = append(flags, arg)
			value = !strings.Contains(arg, "=")
		default:
			others = append(others, arg)
		}
	}
	return slices.Concat(flags, others)
}

// crunReads reads as argp does with getopt_long, and stops at the first operand.
func crunReads(args []string) (file string, makes bool) {
	global := getopt{long: []string{"debug", "cgroup-manager=", "systemd-cgroup", "log=", "log-format=", "log-level=",
		"root=", "rootless=", "version"}, short: "vV"}
	rest, ok := global.parse(args)
	if !ok || global.has("version", "v", "V") || len(rest) == 0 || !commandline.IsMaker(rest[0]) {
		return "", false
	}
	own := getopt{long: []string{"bundle=", "config=", "console-socket=", "preserve-fds=", "pid-file=", "no-subreaper",
		"no-new-keyring", "no-pivot"}, short: "b:f:"}
	most := 1
	switch rest[0] {
	case "run":
		own.long, own.short = append(own.long, "detach", "keep"), "b:f:d"
	case "restore":
		most = 2
		own = getopt{
			long: []string{"bundle=", "image-path=", "work-path=", "tcp-established", "ext-unix-sk", "shell-job",
				"detach", "pid-file=", "console-socket=", "file-locks", "manage-cgroups-mode="}, short: "b:d",
		}
	}
	if rest, ok = own.parse(rest[1:]); !ok || len(rest) < 1 || len(rest) > most {
		return "", false
	}
	bundle, config := ".", "config.json"
	for _, o := range own.given {
		switch o.name {
		case "bundle", "b":
			bundle = o.value
		case "config", "f":
			config = o.value
		}
	}
	if bundle == "" || config == "" {
		return "", false // realpath fails
	}
	if config == "config.json" {
		config = bundle + "/config.json"
	}
	return config, true
}

// getopt is getopt_long with the options that argp adds. A name is followed by `=`
// or `:` if the option takes a value, and by `?` if it may.
type getopt struct {
	long  []string
	short string
	given []option
}

type option struct{ name, value string }

func (g *getopt) has(names ...string) bool {
	return slices.ContainsFunc(g.given, func(o option) bool { return slices.Contains(names, o.name) })
}

// parse returns false if argp refuses the arguments or prints help.
func (g *getopt) parse(args []string) (rest []string, ok bool) {
	for len(args) > 0 {
		arg := args[0]
		if len(arg) < 2 || arg[0] != '-' {
			return args, true
		}
		args = args[1:]
		if arg == "--" {
			return args, true
		}
		if name, isLong := strings.CutPrefix(arg, "--"); isLong {
			name, value, inline := strings.Cut(name, "=")
			found, ok := g.find(name)
			name, isSwitch := strings.TrimRight(found, "=?"), !strings.ContainsAny(found, "=?")
			if !ok || isSwitch && inline || name == "help" || name == "usage" {
				return nil, false
			}
			if strings.HasSuffix(found, "=") && !inline {
				if len(args) == 0 {
					return nil, false
				}
				value, args = args[0], args[1:]
			}
			g.given = append(g.given, option{name, value})
			continue
		}
		for i := 1; i < len(arg); i++ {
			name := arg[i : i+1]
			at := strings.Index(g.short, name)
			if at < 0 || name == ":" {
				return nil, false
			}
			if at+1 == len(g.short) || g.short[at+1] != ':' {
				g.given = append(g.given, option{name, ""})
				continue
			}
			value := arg[i+1:]
			if value == "" {
				if len(args) == 0 {
					return nil, false
				}
				value, args = args[0], args[1:]
			}
			g.given = append(g.given, option{name, value})
			break
		}
	}
	return nil, true
}

// find returns a long option by its name or by a unique beginning of it.
func (g *getopt) find(name string) (string, bool) {
	var begin []string
	for _, o := range slices.Concat(g.long, []string{"help", "usage", "program-name=", "HANG?"}) {
		if strings.TrimRight(o, "=?") == name {
			return o, true
		}
		if strings.HasPrefix(o, name) {
			begin = append(begin, o)
		}
	}
	if len(begin) != 1 {
		return "", false
	}
	return begin[0], true
}

// The readings match the real runtimes. The test watches which config.json they open.
func TestReadings(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	words := strings.Split("create run create run --bundle --bundle=A -b -b=A -bA --bund A B A B ID ID ID --pid-file "+
		"--pid-file=p --no-pivot --detach -d -- - --log --log=l --debug --conf -f c.json -fc.json --unknown ID -db "+
		"--bundle=B", " ")
	all := slices.Clone(lines)
	for range 100 {
		var l []string
		for range 2 + random.Intn(6) {
			l = append(l, words[random.Intn(len(words))])
		}
		all = append(all, []string{"create", "run"}[random.Intn(2)]+" "+strings.Join(l, " "))
	}
	for name, reads := range readings {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath(name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for _, d := range []string{"A", "B"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			files := []string{"./config.json", "A/config.json", "B/config.json", "c.json"}
			watched := map[int32]string{}
			fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			for _, f := range files {
				if err := os.WriteFile(filepath.Join(dir, f), []byte("{}"), 0o644); err != nil {
					t.Fatal(err)
				}
				wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, f), unix.IN_OPEN)
				if err != nil {
					t.Fatal(err)
				}
				watched[int32(wd)] = f
			}
			made := 0
			for _, l := range all {
				// Restore needs more than a config.json, and --HANG waits for an hour.
				if strings.Contains(l, "\x00") || strings.HasPrefix(l, "restore") || strings.HasPrefix(l, "--HANG") {
					continue
				}
				args := strings.Split(l, " ")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, program, args...)
				cmd.Dir = dir
				text, _ := cmd.CombinedOutput() // it always fails
				got := opened(fd, watched)
				want, makes := reads(args)
				if makes {
					made++
				}
				if !slices.Contains(files, want) || bytes.HasPrefix(text, []byte("realpath ")) {
					want = "" // missing, or crun found no bundle before opening it
				}
				if got != want {
					t.Errorf("%q opened %q; the reading is %q, %t\n%.300s", args, got, want, makes, text)
				}
			}
			t.Logf("of %d command lines %d make a container", len(all), made)
			if made < 20 {
				t.Errorf("only %d command lines make a container", made)
			}
		})
	}
}

// opened returns the last opened file of those that are watched.
func opened(fd int, watched map[int32]string) string {
	last := ""
	var buffer [4096]byte
	for {
		n, err := unix.Read(fd, buffer[:])
		if err != nil || n <= 0 {
			return last
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; at += unix.SizeofInotifyEvent {
			last = watched[int32(buffer[at])|int32(buffer[at+1])<<8|int32(buffer[at+2])<<16|int32(buffer[at+3])<<24]
		}
	}
}
