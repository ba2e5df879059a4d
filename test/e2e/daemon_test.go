// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// inFrontOfDaemon takes the place of Nix's daemon, which must run, for the length of a
// test. other has the first connections, and Nix's daemon all that follow.
func inFrontOfDaemon(t *testing.T, first int, other func(c net.Conn)) {
	t.Helper()
	const socket, behind = "/nix/var/nix/daemon-socket/socket", "/nix/var/nix/daemon-socket/behind"
	if err := os.Rename(socket, behind); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err == nil {
		err = os.Chmod(socket, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for n := 0; ; n++ {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				if n < first {
					other(c)
					return
				}
				daemon, err := net.Dial("unix", behind)
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(daemon, c)
					_ = daemon.Close() // which ends the daemon's process for this connection
				}()
				_, _ = io.Copy(c, daemon)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		if err := os.Rename(behind, socket); err != nil {
			t.Error(err)
		}
	})
}

// says writes numbers as Nix's protocol has them, and then waits for the other side.
func says(numbers ...uint64) func(net.Conn) {
	return func(c net.Conn) {
		var text []byte
		for _, n := range numbers {
			text = binary.LittleEndian.AppendUint64(text, n)
		}
		if _, err := c.Write(text); err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
	}
}

// magic is what Nix's daemon says first.
const magic = 0x6478696f

// Where Nix's daemon does not do what the hook asks of it, nix-store makes the GC root, and
// the log says why.
func TestDaemonDoesNot(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	for _, c := range []struct {
		name  string
		other func(net.Conn)
		why   string
		takes time.Duration
	}{
		{name: "older", other: says(magic, 1<<8|25), why: "its protocol is 1.25; 1.26 or later is understood"},
		{name: "other", other: says(magic, 2<<8|35), why: "its protocol is 2.35; 1.26 or later is understood"},
		{name: "none", other: says(0x2e2e2e2e), why: "it does not answer as Nix's daemon does"},
		{name: "closed", other: func(c net.Conn) { _ = c.Close() }},
		{name: "garbage", other: says(magic, 1<<8|32, 0x2e2e2e2e), why: "message 0x2e2e2e2e is not understood"},
		{name: "a text without an end", other: says(magic, 1<<8|34, 1<<40), why: "a text has 1099511627776 bytes"},
		{name: "hangs", other: says(magic), why: "context deadline exceeded", takes: 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFrontOfDaemon(t, 1, c.other)
			before, began := len(alice.log(t)), time.Now()
			id := alice.start(t, container{runtime: "crun", root: "env"})
			if took := time.Since(began); took < c.takes || took > c.takes+10*time.Second {
				t.Errorf("it took %v", took)
			}
			root := alice.own + "/gcroots/" + id + "/roots-1 -> " + store["env"]
			if got := rootsBelow(t, alice.own); !slices.Equal(got, []string{root}) {
				t.Errorf("the GC roots are %q, want %q", got, root)
			}
			warned := slices.ContainsFunc(alice.log(t)[before:], func(l logLine) bool {
				return l.Level == "warning" && strings.Contains(l.Error, c.why)
			})
			if !warned {
				t.Errorf("%q is not in the log: %v", c.why, alice.log(t)[before:])
			}
			if got := alice.names(t, id, "env"); !slices.Equal(got, closureOf(t, store["env"])) {
				t.Errorf("the store has %q", got)
			}
			alice.remove(t, id)
			alice.nothingLeft(t)
		})
	}
}

// A closure that the daemon does not vouch for is refused, whoever is asked.
func TestDaemonLies(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	const last = 0x616c7473
	// The version of protocol 1.34 is followed by the daemon's own, and the answers are:
	// greeted, the path is known to the collector, it is not valid.
	inFrontOfDaemon(t, 100, says(magic, 1<<8|34, 0, last, last, 1, last, 0))
	_, stderr, err := alice.run(container{runtime: "runc", root: "env"}, store["env"]+"/bin/true")
	if err == nil || !strings.Contains(stderr, "the store changed meanwhile") {
		t.Errorf("%v\n%s", err, stderr)
	}
	alice.nothingLeft(t)
}

// While Nix's collector runs, again and again, an ordinary user's containers have their
// whole closure.
func TestRootlessCollectorLoop(t *testing.T) {
	nixDaemon(t)
	alice := user(t, "alice")
	want := closureOf(t, store["env"])
	stop := over(t, "nix-store", "--gc")
	for range 6 {
		id := alice.start(t, container{runtime: "crun", root: "env"})
		if got := alice.names(t, id, "env"); !slices.Equal(got, want) {
			t.Errorf("the store has %q\nwant %q", got, want)
		}
		link := alice.own + "/gcroots/" + id + "/" + filepath.Base(store["env"])
		if _, err := os.Lstat(link); errors.Is(err, os.ErrNotExist) {
			t.Logf("nix-store made the GC root of %s", id)
		} else if err != nil {
			t.Error(err)
		}
		alice.remove(t, id)
	}
	if times, failed := stop(); times < 2 || len(failed) > 0 {
		t.Errorf("collected %d times: %q", times, failed)
	}
	alice.nothingLeft(t)
}
