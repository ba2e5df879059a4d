// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"os"
	"strings"
	"testing"
)

func TestParseVolume(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("data", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		in   string
		want Volume
		err  string
	}{
		{in: dir + ":/v", want: Volume{Source: dir, Destination: "/v"}},
		{in: "./data:/v:ro", want: Volume{Source: dir + "/data", Destination: "/v", ReadOnly: true}},
		{in: "./data:/v:rw", want: Volume{Source: dir + "/data", Destination: "/v"}},
		{in: "data:/v", err: "there are no named volumes"},
		{in: dir, err: "not SOURCE:DESTINATION"},
		{in: "", err: "not SOURCE:DESTINATION"},
		{in: ":/v", err: "there are no named volumes"},
		{in: dir + ":/v:z", err: "not SOURCE:DESTINATION"},
		{in: dir + ":/v:ro:rw", err: "not SOURCE:DESTINATION"},
		{in: dir + ":v", err: "the destination is not an absolute path"},
		{in: dir + ":/", err: "the destination is not an absolute path below /"},
		{in: dir + ":/v/..", err: "the destination is not an absolute path below /"},
		{in: "/none:/v", err: "no such file"},
	} {
		got, err := ParseVolume(c.in)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) ||
			err == nil && got != c.want {
			t.Errorf("%q: %+v, %v; want %+v, %s", c.in, got, err, c.want, c.err)
		}
	}
}

func TestParseUser(t *testing.T) {
	for in, want := range map[string]User{"0": {}, "1000": {UID: 1000}, "1000:100": {UID: 1000, GID: 100}} {
		if got, err := ParseUser(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "root", "-1", "1:", ":1", "1:2:3", "4294967295", "1:4294967295", "0x1"} {
		if got, err := ParseUser(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func TestParseCapability(t *testing.T) {
	for in, want := range map[string]string{"net_admin": "CAP_NET_ADMIN", "CAP_SYS_TIME": "CAP_SYS_TIME",
		"Bpf": "CAP_BPF"} {
		if got, err := ParseCapability(in); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if got, err := ParseCapability("all"); err != nil || len(got) < 40 {
		t.Errorf("all: %q, %v", got, err)
	}
	for _, in := range []string{"", "CAP_", "everything", "net admin"} {
		if got, err := ParseCapability(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestNotFound(t *testing.T) {
	for reason, want := range map[string]bool{
		"executable file `/nothing` not found in $PATH: No such file or " +
			"directory": true,
		`unable to start container process: exec: "nothing": executable file not found ` +
			`in $PATH`: true,
		`unable to start container process: exec: "/nothing": stat /nothing: no such file or ` +
			`directory`: true,
		`unable to start container process: exec: "/data": ` +
			`permission denied`: false,
		"error during container init: error running hook #0: error running hook: exit status 1, stderr: " +
			"nix-closure: x": false,
	} {
		if got := (&NotStartedError{Reason: reason}).NotFound(); got != want {
			t.Errorf("%s: %v", reason, got)
		}
	}
}
