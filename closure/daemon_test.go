// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// theDaemon answers a connection with a text, and then says no more.
func theDaemon(t *testing.T, says []byte) *daemonConn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	if _, err := unix.Write(fds[1], says); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(fds[1], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	return &daemonConn{fd: fds[0], deadline: time.Now().Add(time.Second)}
}

// sent returns numbers and texts as the daemon sends them.
func sent(parts ...any) (text []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			text = binary.LittleEndian.AppendUint64(text, uint64(p))
		case string:
			text = binary.LittleEndian.AppendUint64(text, uint64(len(p)))
			text = append(text, p+strings.Repeat("\x00", (8-len(p)%8)%8)...)
		}
	}
	return text
}

const daemonStore, daemonPath = "/nix/store", "00000000000000000000000000000000-one"

// greeted is a greeting of Nix 2.18, which says its version and whether it trusts us.
var greeted = string(sent(daemonMagic, 1<<8|37, "2.18.1", 2, sendsLast))

func TestDaemon(t *testing.T) {
	for _, c := range []struct {
		name, says, err string
	}{
		{"made", greeted + string(sent(sendsLast, 1, sendsLast, 1, sendsLast, 1)), ""},
		{"with messages", greeted + string(sent(sendsNext, "evaluating",
			sendsStartActivity, 1, 2, 3, "text", 2, 0, 7, 1, "field", 0,
			sendsResult, 1, 2, 1, 1, "field", sendsStopActivity, 1,
			sendsLast, 1, sendsLast, 1, sendsLast, 1)), ""},
		{"Nix 2.4", string(sent(daemonMagic, 1<<8|32, sendsLast, sendsLast, 1, sendsLast, 1, sendsLast, 1)), ""},
		{"not valid", greeted + string(sent(sendsLast, 1, sendsLast, 0)),
			daemonStore + "/" + daemonPath + " is not valid"},
		{"refused", greeted + string(sent(sendsError, "Error", 0, "", "no\nsuch", 0, 0)), `it refuses: "no\nsuch"`},
		{"not confirmed", greeted + string(sent(sendsLast, 0)), "operation 11 on "},
		{"the root not confirmed", greeted + string(sent(sendsLast, 1, sendsLast, 1, sendsLast, 0)),
			"operation 12 on "},
		{"no truth value", greeted + string(sent(sendsLast, 1, sendsLast, 2)), "answer 0x2 is neither 0 nor 1"},
		{"nothing", "", "unexpected EOF"},
		{"an end in between", greeted + string(sent(sendsLast)), "unexpected EOF"},
		{"another protocol", string(sent(daemonMagic, 0x10100|35)), "its protocol is 257.35"},
		{"too many messages", greeted + strings.Repeat(string(sent(sendsStopActivity, 1)), mostMessages+1),
			"it sent more than 1000 messages"},
		{"too many fields", greeted + string(sent(sendsResult, 1, 2, 1<<40)), "a message has 1099511627776 fields"},
		{"a field of another kind", greeted + string(sent(sendsResult, 1, 2, 1, 2)),
			"field of kind 2 is not understood"},
		{"a long text", greeted + string(sent(sendsNext, longestText+1)),
			"a text has 65537 bytes; at most 65536 are read"},
		{"no zeros", greeted + string(sent(sendsNext, 1)) + "xxxxxxxx", "a text is not filled up with zeros"},
		{"a negative length", greeted + string(sent(sendsNext, -1)), "a text has 18446744073709551615 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			err := theDaemon(t, []byte(c.says)).root(Store{Dir: daemonStore}, []BaseName{daemonPath}, dir)
			if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Fatalf("%v, want %q", err, c.err)
			}
			if errors.Is(err, ErrNotValid) != (c.name == "not valid") {
				t.Errorf("%v: is %v", err, ErrNotValid)
			}
			if target, err := os.Readlink(dir + "/" + daemonPath); c.err == "" && target != daemonStore+"/"+daemonPath {
				t.Errorf("the link leads to %q: %v", target, err)
			}
		})
	}
}

// A daemon that says nothing is waited for until the deadline.
func TestDaemonHangs(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	began := time.Now()
	c := &daemonConn{fd: fds[0], deadline: began.Add(100 * time.Millisecond)}
	err = c.root(Store{Dir: daemonStore}, []BaseName{daemonPath}, t.TempDir())
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < 100*time.Millisecond {
		t.Errorf("%v after %v", err, took)
	}
}

func FuzzDaemon(f *testing.F) {
	f.Add([]byte(greeted + string(sent(sendsLast, 1, sendsLast, 1, sendsLast, 1))))
	f.Add([]byte(greeted + string(sent(sendsStartActivity, 1, 2, 3, "text", 2, 0, 7, 1, "field", 0, sendsLast, 1))))
	f.Add([]byte(greeted + string(sent(sendsError, "Error", 0, "", "message", 0, 0))))
	f.Fuzz(func(t *testing.T, says []byte) {
		dir := t.TempDir()
		err := theDaemon(t, says[:min(len(says), 64<<10)]).root(Store{Dir: daemonStore}, []BaseName{daemonPath}, dir)
		if _, statErr := os.Lstat(dir + "/" + daemonPath); err == nil && statErr != nil {
			t.Errorf("%q: no error, and no link: %v", says, statErr)
		}
	})
}

// A call greets the daemon at once, and asks when it has something to ask. It can ask
// again, over a new connection.
func TestDaemonCall(t *testing.T) {
	state := t.TempDir()
	if err := os.Mkdir(state+"/daemon-socket", 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", state+"/daemon-socket/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	greeting := make(chan error)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			want := sent(clientMagic, protocolMajor<<8|ownMinor, 0, 0)
			got := make([]byte, len(want))
			if _, err = io.ReadFull(c, got); err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("the greeting is %q", got)
			}
			greeting <- err
			_, _ = c.Write([]byte(greeted + string(sent(sendsLast, 1, sendsLast, 1, sendsLast, 1))))
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	call := Daemon{Store{Dir: daemonStore, StateDir: state}}.Call()
	defer call.Close()
	if err := <-greeting; err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := call.Root(t.Context(), []BaseName{daemonPath}, dir); err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := <-greeting; err != nil {
			t.Error(err)
		}
	}()
	if err := call.Root(t.Context(), []BaseName{daemonPath}, dir); err != nil {
		t.Errorf("again: %v", err)
	}
}

// Without a daemon, a call says so when it is asked.
func TestNoDaemon(t *testing.T) {
	call := Daemon{Store{Dir: daemonStore, StateDir: t.TempDir()}}.Call()
	defer call.Close()
	if err := call.Root(t.Context(), []BaseName{daemonPath}, t.TempDir()); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
}
