// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// attemptScript does what its arguments say, one after the other, and prints what came of
// each: nothing, or the name of the error.
const attemptScript = `
import errno, json, os, socket, sys
def attempt(what, *args):
    if what == 'read':
        with open(args[0], 'rb') as f: f.read(1)
    elif what == 'list': os.listdir(args[0])
    elif what == 'write':
        with open(args[0], 'w') as f: f.write('x')
    elif what == 'run':
        pid = os.fork()
        if pid == 0:
            try: os.execv(args[0], [args[0], '-c', 'exit 0'])
            except OSError as e: os._exit(e.errno)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status: raise OSError(status, '')
    elif what == 'connect':
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s: s.connect(('127.0.0.1', int(args[0])))
    elif what == 'listen':
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s: s.bind(('127.0.0.1', int(args[0])))
    elif what == 'signal': os.kill(int(args[0]), 0)
    else: raise ValueError(what)
results = {}
for a in sys.argv[1:]:
    try: attempt(*a.split(' ')); results[a] = ''
    except OSError as e: results[a] = errno.errorcode[e.errno]
print(json.dumps(results))
`

// attempts runs the script in front of which args stand, and compares.
func checkAttempts(t *testing.T, want map[string]string, program string, args ...string) {
	t.Helper()
	args = append(args, store["env"]+"/bin/python3", "-B", "-c", attemptScript)
	for a := range want {
		args = append(args, a)
	}
	out := must(t, program, args...)
	var got map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for a, errno := range want {
		if got[a] != errno {
			t.Errorf("%s: %q, want %q", a, got[a], errno)
		}
	}
}

// listener is a port of this machine that somebody listens on.
func listener(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// The kernel refuses what is not in the closure, also to root, and lets the closure work.
func TestConfine(t *testing.T) {
	port, other := listener(t), listener(t)
	dir := t.TempDir()
	write(t, dir+"/file", []byte("x"))
	write(t, dir+"/program", read(t, "/bin/busybox"))
	foreign := store["foreign"]
	attempts := map[string]string{
		"read " + store["bash"] + "/bin/bash": "",
		"list " + store["env"]:                "",
		"run " + store["bash"] + "/bin/bash":  "",
		"read /etc/shadow":                    "EACCES",
		"list " + storeDir:                    "EACCES",
		"list " + foreign:                     "EACCES",
		"run " + foreign + "/bin/busybox":     "EACCES",
		"list /":                              "EACCES",
		"read /dev/null":                      "EACCES",
		"run /bin/sh":                         "EACCES",
		"write " + dir + "/new":               "EACCES",
		"write " + dir + "/file":              "EACCES",
		"read " + dir + "/file":               "EACCES",
		"run " + dir + "/program":             "EACCES",
		"write " + store["env"] + "/new":      "EACCES",
		fmt.Sprintf("connect %d", port):       "EACCES",
		fmt.Sprintf("connect %d", other):      "EACCES",
		"listen 0":                            "EACCES",
		fmt.Sprintf("signal %d", os.Getpid()): "EPERM",
	}
	program := filepath.Join(*bin, "nix-closure")
	t.Run("nothing allowed", func(t *testing.T) {
		checkAttempts(t, attempts, program, "confine", store["env"], "--")
	})
	t.Run("allowed", func(t *testing.T) {
		allowed := map[string]string{}
		for what, errno := range attempts {
			allowed[what] = errno
		}
		for _, what := range []string{"write " + dir + "/new", "write " + dir + "/file", "read " + dir + "/file",
			fmt.Sprintf("connect %d", port), "read /dev/null"} {
			allowed[what] = ""
		}
		checkAttempts(t, allowed, program, "confine", "--allow-read", "/dev/null", "--allow-write", dir,
			"--allow-connect", fmt.Sprint(port), store["env"], "--")
	})
	t.Run("an ordinary user", func(t *testing.T) {
		alice := userWithoutLogin(t, "carol")
		nixDaemon(t)
		out := alice.must(t, machineProgram(), "confine", store["env"], "--", "python3", "-B", "-c",
			"import os; print(os.listdir('"+store["env"]+
				"'))\ntry: os.listdir('/nix/store')\nexcept PermissionError: print('refused')")
		if !strings.HasSuffix(out, "refused\n") {
			t.Errorf("it says %s", out)
		}
	})
}

func TestConfineStatus(t *testing.T) {
	env := store["env"]
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{env, "--", "bash", "-c", "exit 42"}, 42, ""},
		{[]string{env, "--", "nothing-such"}, 127, "not found in the bin/ of"},
		{[]string{env, "--", env + "/bin/nothing"}, 127, "not found"},
		{[]string{env, "--", env + "/bin"}, 126, "is a directory"},
		{[]string{env, "--", store["foreign"]}, 126, ""},
		{[]string{env, "--", "/bin/sh"}, 126, "permission denied"},
		{[]string{unknown, "--", "sh"}, 125, "is not valid"},
		{[]string{env}, 125, "--"},
		{[]string{"--allow-read", "/none", env, "--", "bash"}, 125, "no such file"},
		{[]string{"--allow-connect", "65536", env, "--", "bash"}, 125, "no port"},
	} {
		_, stderr, err := cli(append([]string{"confine"}, c.args...)...)
		if status(err) != c.status || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: %v %s\nwant %d and %s", c.args, err, stderr, c.status, c.says)
		}
	}
}
