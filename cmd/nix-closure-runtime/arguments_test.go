// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string // files that no whole argument names
	}{
		{"create web", nil},
		{"create -b=/x web", []string{"/x/config.json", "=/x/config.json"}},
		{"create --bundle=/b=c web", []string{"/b=c/config.json"}},
		{"run -dbfb x", []string{"fb/config.json", "/config.json", "b"}},
		{"create -f x.json web", []string{"x.json"}},
		{"create -fx.json web", []string{"x.json"}},
		{"create --conf x.json web", []string{"x.json"}},
		{"create --config=x.json web", []string{"x.json/config.json", "x.json"}},
		{"create web --config", []string{""}},
	} {
		args := strings.Split(c.line, " ")
		want := []string{"./config.json"}
		for _, arg := range args {
			want = append(want, arg+"/config.json")
		}
		want = append(want, c.want...)
		got := configFiles(args)
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
}

// check fails if a runtime would create a container from a config.json that this program
// does not check. reads is the runtime's reading of the command line.
func check(t *testing.T, args []string) {
	t.Helper()
	a := parse(args)
	for name, reads := range readings {
		file, makes := reads(args)
		switch {
		case !makes:
		case !a.Makes:
			t.Errorf("%q: %s makes a container of %q, and it was not looked at", args, name, file)
		case a.Doubt == nil:
			own := "./config.json"
			if a.Bundle != "" {
				own = a.Bundle + "/config.json"
			}
			if own != file {
				t.Errorf("%q: %s makes a container of %q, and %q was looked at", args, name, file, own)
			}
		case !slices.Contains(configFiles(args), file):
			t.Errorf("%q: %s makes a container of %q, and %q were looked at", args, name, file, configFiles(args))
		}
	}
}

// lines are command lines that some runtime reads in an odd way.
var lines = []string{
	"", "create", "create ID", "run ID", "create --bundle A ID", "create --bundle=A ID", "create -b A ID",
	"create -b=A ID", "create -bA ID",
	"create -bundle A ID", "create -bundle=A ID", "create --b A ID", "create --b=A ID", "create --bu A ID",
	"create --bun=A ID", "create ---bundle A ID",
	"create ID --bundle A", "create ID --bundle=A", "create ID -b A", "create A ID --bundle", "create A ID -b",
	"create --bundle=B A ID --bundle",
	"create ID --bundle A --bundle B", "create --bundle A --bundle B ID", "create -b A --bundle B ID",
	"create -b A -b B ID",
	"create --bundle= ID", "create --bundle  ID", "create -b  ID", "create -b= ID", "create -b", "create --bundle",
	"create ID --bundle",
	"create --pid-file --bundle A ID", "create --pid-file --bundle=A ID", "create --pid-file=--bundle A ID",
	"create ID --pid-file --bundle",
	"create --pid-file -b A ID", "create --pid-file -- ID", "create --pid-file - --bundle A ID",
	"create --no-pivot ID --bundle A", "create --no-pivot --bundle A ID", "create --bundle A --no-pivot ID",
	"create --no-pivot A --bundle=B",
	"create --no-pivot=true --bundle A ID", "create --no-pivot=x --bundle A ID", "create --no-pivot -- ID",
	"create --no-pivot -- --bundle=A",
	"create -- ID", "create -- --bundle A ID", "create --bundle A -- ID", "create ID -- --bundle A",
	"create --bundle -- ID", "create ID --",
	"create --bundle A ID --unknown", "create --unknown --bundle A ID", "create --unknown=x --bundle A ID",
	"create --unknown", "create --bundle A --unknown ID",
	"run -d ID", "run -d --bundle A ID", "run -db A ID", "run -dbA ID", "run -d -b A ID", "run --detach ID --bundle A",
	"run --detach=false -b A ID", "run -bd ID", "run -bdA ID",
	"create -f c.json ID", "create --config c.json ID", "create --config=c.json ID", "create -fc.json ID",
	"create --conf c.json ID", "create --con c.json ID", "create --c=c.json ID",
	"create --bundle A -f c.json ID", "create -f c.json -b A ID", "create -f config.json -b A ID",
	"create -f A/config.json ID", "run -df c.json ID", "run -dfc.json ID", "run -fbA ID",
	"create --config= ID", "create -f  ID", "create --confi=A/config.json --bundle B ID",
	"create --console-socket s --bundle A ID", "create --cons=s -b A ID",
	"--debug create --bundle A ID", "--debug=false create --bundle A ID", "--root R create --bundle A ID",
	"--root=R create -b A ID", "-root R create -b A ID", "-root=R create -b A ID",
	"--log l create --bundle A ID", "--log create create --bundle A ID", "--log create --bundle A ID",
	"--log --debug create -b A ID", "--lo l create -b A ID", "--log-f json create -b A ID",
	"-- create --bundle A ID", "--debug -- create --bundle A ID", "- create --bundle A ID", " create --bundle A ID",
	"--unknown create --bundle A ID", "--unknown=x create -b A ID",
	"--rootless true create -b A ID", "--rootless create -b A ID", "--systemd-cgroup state create",
	"--program-name x create -b A ID", "--program-name=x create -b A ID", "--HANG create -b A ID",
	"--HANG=0 create -b A ID",
	"create --program-name x -b A ID", "create --pr=x -b A ID", "create --pre=1 -b A ID",
	"create --preserve-fds 1 -b A ID", "create --preserve-fds -b A ID",
	"--help create -b A ID", "--help=false create -b A ID", "create --help -b A ID", "create --help=false -b A ID",
	"-h=false create -b A ID", "--version=false create -b A ID", "-v create -b A ID", "--usage create -b A ID",
	"help create -b A ID", "state -b A ID", "create create", "create run -b A", "run create -b A", "CREATE -b A ID",
	"creat -b A ID", "create -b A I D", "create -b A \x00",
	"restore ID", "restore --bundle A ID", "restore A ID --bundle", "restore --image-path i -b=A ID",
	"restore --empty-ns n -b A ID", "restore --tcp-established ID -b A", "restore ID OTHER",
}

func TestNoneIsMissed(t *testing.T) {
	for _, l := range lines {
		check(t, strings.Split(l, " "))
	}
}

// FuzzParse checks that for any arguments, separated by NUL as in /proc/*/cmdline, no
// runtime creates a container that is not checked.
func FuzzParse(f *testing.F) {
	for _, l := range lines {
		f.Add(strings.ReplaceAll(l, " ", "\x00"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		check(t, strings.Split(line, "\x00"))
	})
}
