// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestLog(t *testing.T) {
	h := newHost(t)
	newLog(h.dir+"/log", "createRuntime", "web").WithField("key", "\x1b").Error("one\ntwo")
	newLog(h.dir+"/log", "poststop", "db").Info("three")
	lines := h.log(t)
	if len(lines) != 2 || lines[0]["stage"] != "createRuntime" || lines[0]["container"] != "web" ||
		lines[0]["msg"] != "one\ntwo" || lines[0]["key"] != "\x1b" ||
		lines[1]["stage"] != "poststop" || lines[1]["level"] != "info" {
		t.Errorf("%v", lines)
	}
	if st, err := os.Stat(h.dir + "/log"); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Containers start even if the log cannot be written.
	newLog(h.dir+"/nowhere/log", "createRuntime", "web").Error("lost")
	newLog(h.dir, "createRuntime", "web").Error("lost")
}

// A log that has become too large is renamed once, and a new one begins.
func TestLogIsBounded(t *testing.T) {
	h := newHost(t)
	path := h.dir + "/log"
	must(t, os.WriteFile(path, []byte("first\n"), 0o600), os.Truncate(path, maxLog))
	newLog(path, "createRuntime", "web").Info("fits")
	if _, err := os.Lstat(path + oldLog); err == nil {
		t.Error("a log that is not too large was renamed")
	}
	// The file with the older log's name is replaced, and no link is followed.
	must(t, os.Symlink(h.config, path+oldLog))
	for range 2 {
		newLog(path, "createRuntime", "web").Info("anew")
	}
	if lines := h.log(t); len(lines) != 2 || lines[0]["msg"] != "anew" || lines[1]["msg"] != "anew" {
		t.Errorf("in the log: %v", lines)
	}
	st, err := os.Lstat(path + oldLog)
	if err != nil || !st.Mode().IsRegular() || st.Size() <= maxLog {
		t.Errorf("the older log: %v %v", st, err)
	}
	if text, err := os.ReadFile(path + oldLog); err != nil || !bytes.HasPrefix(text, []byte("first\n")) ||
		!bytes.Contains(text, []byte("fits")) || bytes.Contains(text, []byte("anew")) {
		t.Errorf("the older log is another: %v", err)
	}

	// A log that cannot be renamed grows.
	must(t, os.Remove(path+oldLog), os.Mkdir(path+oldLog, 0o700), os.Truncate(path, maxLog+1))
	newLog(path, "createRuntime", "web").Info("grows")
	if st, err := os.Lstat(path); err != nil || st.Size() <= maxLog+1 {
		t.Errorf("a log that cannot be renamed: %v %v", st, err)
	}
}

// Many hooks find the log too large; one renames it. No line is lost.
func TestLogIsBoundedAtOnce(t *testing.T) {
	const most, writers, rounds = 4096, 64, 100
	path := t.TempDir() + "/log"
	for round := range rounds {
		before := strings.Repeat("x", most) + "\n"
		must(t, os.WriteFile(path, []byte(before), 0o600))
		start := make(chan struct{})
		var wait sync.WaitGroup
		for i := range writers {
			wait.Go(func() {
				<-start
				f, err := openLog(path, most)
				if err == nil {
					_, err = fmt.Fprintf(f, "line %d\n", i)
					f.Close()
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wait.Wait()
		older, err := os.ReadFile(path + oldLog)
		must(t, err)
		text, ok := strings.CutPrefix(string(older), before)
		if !ok {
			t.Fatalf("round %d: the older log begins with %.20q", round, older)
		}
		if newer, err := os.ReadFile(path); err == nil {
			text += string(newer)
		}
		for i := range writers {
			if n := strings.Count(text, fmt.Sprintf("line %d\n", i)); n != 1 {
				t.Fatalf("round %d: line %d is there %d times", round, i, n)
			}
		}
		must(t, os.Remove(path+oldLog))
	}
}

// Another user's link is not followed; this user's own link is.
func TestLogIsALink(t *testing.T) {
	dir := t.TempDir()
	path, target := dir+"/log", dir+"/target"
	must(t, os.WriteFile(target, nil, 0o600), os.Symlink(target, path))
	size := func() int64 {
		st, err := os.Stat(target)
		must(t, err)
		return st.Size()
	}
	newLog(path, "createRuntime", "web").Info("a line")
	if size() == 0 {
		t.Error("the user's own link was not followed")
	}
	must(t, os.Truncate(target, maxLog+1))
	newLog(path, "createRuntime", "web").Info("a line")
	if st, err := os.Lstat(path); err != nil || st.Mode()&fs.ModeSymlink == 0 || size() <= maxLog+1 {
		t.Errorf("a link was renamed: %v %v", st, err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to give a link to another user")
	}
	must(t, os.Lchown(path, 12345, 12345), os.Truncate(target, 0))
	newLog(path, "createRuntime", "web").Info("a line")
	if size() != 0 {
		t.Error("another user's link was followed")
	}
}

// A line is what logrus writes, whichever of the two wrote it.
func TestPlainLine(t *testing.T) {
	for _, c := range []struct {
		fields logrus.Fields
		plain  bool
	}{
		{logrus.Fields{}, true},
		{logrus.Fields{"mode": "overlay", "paths": 7, "why": "a \"quote\" \\ <ä>\n\x01\u2028"}, true},
		{logrus.Fields{"msg": "taken"}, false},
		{logrus.Fields{"level": "taken"}, false},
		{logrus.Fields{"records": []string{"a"}}, false},
		{logrus.Fields{"error": errors.New("an error")}, false},
		{logrus.Fields{"nothing": nil}, false},
	} {
		log := logTo(io.Discard, "createRuntime", "web")
		e := log.WithFields(c.fields)
		e.Time, e.Message, e.Level = time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC), "attached", logrus.InfoLevel
		want, err := (&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano}).Format(e)
		must(t, err)
		if got, err := (utcFormatter{}).Format(e); err != nil || string(got) != string(want) {
			t.Errorf("%v: %v\n%s, want\n%s", c.fields, err, got, want)
		}
		if _, ok := plainLine(e); ok != c.plain {
			t.Errorf("%v: plain: %v", c.fields, ok)
		}
	}
}
