// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon makes GC roots by Nix's daemon, without a process of Nix's: nix-store takes longer
// to start than all else that an ordinary user's container needs. It speaks the little of
// the daemon's protocol that this takes, of the versions that Nix has had since 2.4.
type Daemon struct{ Store Store }

// daemonTimeout bounds what the daemon is waited for. A daemon waits too, for a garbage
// collector of Nix before 2.6; nix-store has the rest of the time for that.
const daemonTimeout = 5 * time.Second

// DaemonCall is a connection to the daemon.
type DaemonCall struct {
	store Store
	conn  *daemonConn // nil: there is none, or it was used
	// failed is why there is none; nil: it was used, or Root has said it.
	failed error
}

// Call connects to the daemon and waits for nothing: the daemon opens its database while
// the caller does other things. Close the call after use. If there is no daemon, Root says
// so. If the daemon has no time to take the call, Root calls again.
func (d Daemon) Call() *DaemonCall {
	c := &DaemonCall{store: d.Store}
	if c.conn, c.failed = call(c.socket(), time.Time{}); errors.Is(c.failed, unix.EAGAIN) {
		c.failed = nil
	}
	return c
}

func (c *DaemonCall) socket() string { return c.store.StateDir + "/daemon-socket/socket" }

// Close ends a call that Root was not called for.
func (c *DaemonCall) Close() {
	if c.conn != nil {
		unix.Close(c.conn.fd)
		c.conn = nil
	}
}

// Root makes the names GC roots, by links with their names in rootsDir, which must be an
// absolute path, and tells a running garbage collector about them, so that the collector
// leaves them alone until it ends. It does the same as NixStore.Realise. A path that is not
// valid is a NotValidError. After any other error, let NixStore.Realise do it. Root can be
// called again.
func (c *DaemonCall) Root(ctx context.Context, names []BaseName, rootsDir string) error {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	conn, err := c.conn, c.failed
	c.conn, c.failed = nil, nil
	deadline, _ := ctx.Deadline()
	if conn == nil && err == nil {
		conn, err = call(c.socket(), deadline)
	}
	if err == nil {
		defer unix.Close(conn.fd)
		conn.deadline = deadline
		err = conn.root(c.store, names, rootsDir)
	}
	if notValid := (*NotValidError)(nil); err != nil && !errors.As(err, &notValid) {
		return fmt.Errorf("asking Nix's daemon at %s: %w", c.socket(), err)
	}
	return err
}

// atOnce is how many names the daemon is asked for before its answers are read. It has
// room for these answers, so it never waits for this program while this program waits
// for it.
const atOnce = 64

func (c *daemonConn) root(store Store, names []BaseName, rootsDir string) error {
	if err := c.greeted(); err != nil {
		return err
	}
	for some := range slices.Chunk(names, atOnce) {
		if err := c.rootSome(store, some, rootsDir); err != nil {
			return err
		}
	}
	return nil
}

func (c *daemonConn) rootSome(store Store, names []BaseName, rootsDir string) error {
	c.messages = 0
	var request []byte
	for _, name := range names {
		request = append(request, operation(opAddTempRoot, store.Path(name))...)
		request = append(request, operation(opIsValidPath, store.Path(name))...)
	}
	if err := c.send(request); err != nil {
		return err
	}
	request = nil
	for _, name := range names {
		path := store.Path(name)
		// The collector knows it from here on, for as long as the connection lasts.
		if err := c.confirmed(opAddTempRoot, path); err != nil {
			return err
		}
		if valid, err := c.answered(); err != nil {
			return err
		} else if valid == 0 {
			return &NotValidError{path}
		}
		link := rootsDir + "/" + string(name)
		if err := linkTo(path, link); err != nil {
			return err
		}
		request = append(request, operation(opAddIndirectRoot, link)...)
	}
	if err := c.send(request); err != nil {
		return err
	}
	for _, name := range names {
		if err := c.confirmed(opAddIndirectRoot, rootsDir+"/"+string(name)); err != nil {
			return err
		}
	}
	return nil
}

// linkTo makes a symbolic link, which may be there already.
func linkTo(path, link string) error {
	err := os.Symlink(path, link)
	if errors.Is(err, os.ErrExist) {
		if target, readErr := os.Readlink(link); readErr == nil && target == path {
			return nil
		}
	}
	return err
}

// The protocol's numbers. Every number takes eight bytes, the lowest first; a text is its
// length and its bytes, filled up with zeros to a multiple of eight.
const (
	clientMagic = 0x6e697863
	daemonMagic = 0x6478696f

	protocolMajor = 1
	oldestMinor   = 26 // Nix 2.4: errors have the form that is read here
	ownMinor      = 35 // the newest form of a greeting that is understood
	versionMinor  = 33 // the daemon says its version
	trustMinor    = 35 // the daemon says whether it trusts the user

	opIsValidPath     = 1
	opAddTempRoot     = 11
	opAddIndirectRoot = 12

	// What the daemon sends before an answer.
	sendsLast          = 0x616c7473 // the answer follows
	sendsError         = 0x63787470 // there is no answer
	sendsNext          = 0x6f6c6d67
	sendsStartActivity = 0x53545254
	sendsStopActivity  = 0x53544f50
	sendsResult        = 0x52534c54

	// longestText and mostMessages bound what is read of a daemon: it sends a few short
	// messages.
	longestText  = 64 << 10
	mostMessages = 1000
)

// daemonConn is a connection to the daemon. It does without package net, whose start costs
// more than the connection.
type daemonConn struct {
	fd       int
	deadline time.Time
	begun    []byte // read, and not taken yet
	messages int
	failed   error // the first error of reading; nothing is read after it
}

func (c *daemonConn) fail(err error) error {
	if c.failed == nil {
		c.failed = err
	}
	return c.failed
}

// call connects, and says which protocol this program speaks. If the daemon does not take
// the call, it waits until the deadline; without one, that is EAGAIN.
func call(socket string, deadline time.Time) (_ *daemonConn, err error) {
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if deadline.IsZero() {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	c := &daemonConn{fd: fd, deadline: deadline}
	if !deadline.IsZero() {
		if err := c.wait(unix.SO_SNDTIMEO); err != nil {
			return nil, err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	if deadline.IsZero() {
		if err := unix.SetNonblock(fd, false); err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		c.deadline = time.Now().Add(daemonTimeout)
	}
	// No processor of its own and no reserved space, as Nix itself says. Every version that
	// is understood reads all of it. A new connection has room for it.
	if err := c.send(number(clientMagic), number(protocolMajor<<8|ownMinor), number(0), number(0)); err != nil {
		return nil, err
	}
	return c, nil
}

// wait bounds the next system call of a direction by the deadline.
func (c *daemonConn) wait(direction int) error {
	left := time.Until(c.deadline)
	if left <= 0 {
		return context.DeadlineExceeded
	}
	timeout := unix.NsecToTimeval(int64(left + time.Microsecond)) // 0 would be without an end
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, direction, &timeout))
}

// greeted reads which version of the protocol the daemon speaks.
func (c *daemonConn) greeted() error {
	if magic, err := c.number(); err != nil {
		return err
	} else if magic != daemonMagic {
		return errors.New("it does not answer as Nix's daemon does")
	}
	version, err := c.number()
	if err != nil {
		return err
	}
	minor := min(version&0xff, ownMinor)
	if version>>8 != protocolMajor || minor < oldestMinor {
		return fmt.Errorf("its protocol is %d.%d; %d.%d or later is understood",
			version>>8, version&0xff, protocolMajor, oldestMinor)
	}
	if minor >= versionMinor {
		if _, err := c.text(); err != nil {
			return err
		}
	}
	if minor >= trustMinor {
		if _, err := c.number(); err != nil {
			return err
		}
	}
	return c.answer()
}

// operation asks the daemon to do something with a path.
func operation(kind uint64, path string) []byte { return append(number(kind), text(path)...) }

// answered reads the daemon's answer to an operation, a number.
func (c *daemonConn) answered() (uint64, error) {
	if err := c.answer(); err != nil {
		return 0, err
	}
	n, err := c.number()
	if err == nil && n > 1 {
		err = fmt.Errorf("answer %#x is neither 0 nor 1", n)
	}
	return n, err
}

// confirmed is answered for an operation whose answer is always 1.
func (c *daemonConn) confirmed(operation uint64, path string) error {
	n, err := c.answered()
	if err == nil && n != 1 {
		err = fmt.Errorf("operation %d on %s is not confirmed", operation, path)
	}
	return err
}

// answer reads what the daemon sends before its answer.
func (c *daemonConn) answer() error {
	for {
		if c.messages++; c.messages > mostMessages {
			return fmt.Errorf("it sent more than %d messages", mostMessages)
		}
		kind, err := c.number()
		if err != nil {
			return err
		}
		switch kind {
		case sendsLast:
			return nil
		case sendsError:
			return c.error()
		case sendsNext:
			_, err = c.text()
		case sendsStopActivity:
			_, err = c.number()
		case sendsStartActivity: // number, level, kind, text, fields, parent
			err = cmp.Or(c.numbers(3), c.skipText(), c.fields(), c.numbers(1))
		case sendsResult: // number, kind, fields
			err = cmp.Or(c.numbers(2), c.fields())
		default:
			err = fmt.Errorf("message %#x is not understood", kind)
		}
		if err != nil {
			return err
		}
	}
}

// error reads the daemon's error: class, level, name, message, and places, which say no
// more.
func (c *daemonConn) error() error {
	if err := cmp.Or(c.skipText(), c.numbers(1), c.skipText()); err != nil {
		return err
	}
	message, err := c.text()
	if err != nil {
		return err
	}
	return fmt.Errorf("it refuses: %q", message)
}

// fields reads the values of a message, each a number or a text.
func (c *daemonConn) fields() error {
	count, err := c.number()
	if err == nil && count > mostMessages {
		err = c.fail(fmt.Errorf("a message has %d fields", count))
	}
	for ; err == nil && count > 0; count-- {
		var kind uint64
		if kind, err = c.number(); err != nil {
			break
		}
		switch kind {
		case 0:
			err = c.numbers(1)
		case 1:
			err = c.skipText()
		default:
			err = c.fail(fmt.Errorf("field of kind %d is not understood", kind))
		}
	}
	return err
}

func (c *daemonConn) numbers(count int) error {
	_, err := c.take(8 * count)
	return err
}

func (c *daemonConn) number() (uint64, error) {
	bytes, err := c.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(bytes), nil
}

func (c *daemonConn) skipText() error {
	_, err := c.text()
	return err
}

func (c *daemonConn) text() (string, error) {
	length, err := c.number()
	if err != nil {
		return "", err
	}
	if length > longestText {
		return "", c.fail(fmt.Errorf("a text has %d bytes; at most %d are read", length, longestText))
	}
	padded, err := c.take(int(length+7) &^ 7)
	if err != nil {
		return "", err
	}
	if strings.Trim(string(padded[length:]), "\x00") != "" {
		return "", c.fail(errors.New("a text is not filled up with zeros"))
	}
	return string(padded[:length]), nil
}

// take returns the next bytes that the daemon sends. They count until the next call.
func (c *daemonConn) take(count int) ([]byte, error) {
	for len(c.begun) < count {
		if c.failed != nil {
			return nil, c.failed
		}
		if err := c.wait(unix.SO_RCVTIMEO); err != nil {
			return nil, c.fail(err)
		}
		buffer := make([]byte, 4096)
		n, err := unix.Read(c.fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, c.fail(context.DeadlineExceeded)
		case err != nil:
			return nil, c.fail(os.NewSyscallError("read", err))
		case n == 0:
			return nil, c.fail(io.ErrUnexpectedEOF)
		}
		c.begun = append(c.begun, buffer[:n]...)
	}
	taken := c.begun[:count]
	c.begun = c.begun[count:]
	return taken, nil
}

// send writes a message as a whole.
func (c *daemonConn) send(parts ...[]byte) error {
	var message []byte
	for _, p := range parts {
		message = append(message, p...)
	}
	for len(message) > 0 {
		if err := c.wait(unix.SO_SNDTIMEO); err != nil {
			return err
		}
		// Without a signal if the daemon has closed the connection.
		n, err := unix.SendmsgN(c.fd, message, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return context.DeadlineExceeded
		}
		if err != nil {
			return os.NewSyscallError("send", err)
		}
		message = message[n:]
	}
	return nil
}

func number(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

func text(s string) []byte {
	padding := (8 - len(s)%8) % 8
	return append(append(number(uint64(len(s))), s...), make([]byte, padding)...)
}
