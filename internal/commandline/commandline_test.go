// SPDX-License-Identifier: Apache-2.0

package commandline

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const unread = "not every runtime would read it alike"
	for _, c := range []struct {
		line  string // arguments, separated by single spaces
		want  Arguments
		doubt string
	}{
		// As engines write them.
		{line: "--root /r --log /l/log.json --log-format json create --bundle /b --pid-file /p web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b", Root: "/r", Log: "/l/log.json", LogFormat: "json"}},
		{line: "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p " +
			"--console-socket /s --no-pivot --no-new-keyring --preserve-fds 2 web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b", Root: "/r", Log: "/l", LogFormat: "json",
				PreserveFDs: "2"}},
		{line: "--systemd-cgroup --log-format=json --log /l create --bundle /b --pid-file /p web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b", Log: "/l", LogFormat: "json"}},
		{line: "--cgroup-manager cgroupfs --log-level debug --rootless auto --criu /c " +
			"run --keep --no-subreaper --pidfd-socket /s -b /b web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b"}},
		// As people do.
		{line: "run web", want: Arguments{Makes: true, ID: "web"}},
		{line: "run -d web", want: Arguments{Makes: true, ID: "web"}},
		{line: "run web --bundle /b", want: Arguments{Makes: true, ID: "web", Bundle: "/b"}},
		{line: "run web -b /b --detach", want: Arguments{Makes: true, ID: "web", Bundle: "/b"}},
		{line: "create --bundle= web", want: Arguments{Makes: true, ID: "web"}},
		{line: "create --bundle  web", want: Arguments{Makes: true, ID: "web"}}, // an empty argument
		{line: "create --bundle=a=b --no-pivot=false web", want: Arguments{Makes: true, ID: "web", Bundle: "a=b"}},
		{line: "create --bundle /a -b /b --bundle=/c web", want: Arguments{Makes: true, ID: "web", Bundle: "/c"}},
		{line: "create --pid-file create --bundle run create",
			want: Arguments{Makes: true, ID: "create", Bundle: "run"}},
		{line: "create ", want: Arguments{Makes: true}}, // an empty id
		{line: "create -", want: Arguments{Makes: true, ID: "-"}},
		{line: "--log= create web", want: Arguments{Makes: true, ID: "web"}},
		{line: "--log - create web",
			want:  Arguments{Makes: true, ID: "web"},
			doubt: "option --log: has no value, or one that begins with a hyphen"},
		{line: "--debug=false --help=false create web", want: Arguments{Makes: true, ID: "web"}},
		// No container is made.
		{line: ""},
		{line: "state web"},
		{line: "--log /l --log-format text state create", want: Arguments{Log: "/l", LogFormat: "text"}},
		{line: "--log create state web", want: Arguments{Log: "create"}},
		{line: "exec -b run web create"},
		{line: "--unknown state web", doubt: unread},
		{line: "- create"},
		{line: "-- state web", doubt: unread},
		{line: "--root", doubt: "option --root: has no value"},
		{line: "-v"},
		{line: "--version"},
		// Whether one is made, or of which bundle, is in doubt.
		{line: "--unknown create web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "--log /l --unknown create state web",
			want: Arguments{Makes: true, ID: "web", Log: "/l"}, doubt: unread},
		{line: "-root /r create web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "--program-name x create web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "-- create web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "-vb create", want: Arguments{Makes: true, ID: "create"}, doubt: unread},
		{line: "-v=x create", want: Arguments{Makes: true, ID: "create"}, doubt: unread},
		{line: "create --bundle /b --unknown x web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b"}, doubt: unread},
		{line: "create --bundle=/b --unknown=x web",
			want: Arguments{Makes: true, ID: "web", Bundle: "/b"}, doubt: unread},
		{line: "create -b=/b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create -b/b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create -bundle /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create --bun /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create --b /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create ---bundle /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create --Bundle /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "run -db /b web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create -f /x.json web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create --config=/x.json web", want: Arguments{Makes: true, ID: "web"}, doubt: unread},
		{line: "create --bundle /b -- web", want: Arguments{Makes: true, ID: "web", Bundle: "/b"}, doubt: unread},
		{line: "create --pid-file --bundle=/b web",
			want:  Arguments{Makes: true, ID: "web"},
			doubt: "option --pid-file: has no value, or one that begins with a hyphen"},
		{line: "create /b web --bundle",
			want: Arguments{Makes: true, ID: "--bundle"}, doubt: "option --bundle: has no value"}, // runc: /b
		{line: "create",
			want:  Arguments{Makes: true, ID: "create"},
			doubt: "0 arguments are no options, and the container's id alone is expected"},
		{line: "create web db", want: Arguments{Makes: true, ID: "db"}, doubt: "2 arguments are no options"},
		{line: "restore --bundle /b web",
			want:  Arguments{Makes: true, ID: "web"},
			doubt: "a container with a closure cannot be restored from a checkpoint"},
	} {
		var args []string
		if c.line != "" {
			args = strings.Split(c.line, " ")
		}
		before := slices.Clone(args)
		got := Parse(args)
		if (got.Doubt == nil) != (c.doubt == "") || got.Doubt != nil && !strings.Contains(got.Doubt.Error(), c.doubt) {
			t.Errorf("%q: doubt %v, want %q", args, got.Doubt, c.doubt)
		}
		if got.Doubt = nil; got != c.want {
			t.Errorf("%q: %+v\nwant %+v", args, got, c.want)
		}
		if !slices.Equal(args, before) {
			t.Errorf("%q became %q", before, args)
		}
	}
}
