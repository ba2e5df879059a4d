// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", longestLine)
	for _, c := range []struct {
		name, text  string
		want        []string
		last, error string
	}{
		{name: "nothing"},
		{name: "one", text: "one\n", want: []string{"one"}, last: "one"},
		{name: "no end", text: "one\ntwo", want: []string{"one"}, last: "one"},
		{name: "empty and blank", text: "\n\r\n \t \none\n\n", want: []string{"one"}, last: "one"},
		{name: "indented", text: "these paths:\n  /nix/store/a  \n", want: []string{"these paths:", "/nix/store/a"},
			last: "/nix/store/a"},
		{name: "written over", text: "1%\r50%\r100%\r\ndone\n", want: []string{"1%", "50%", "100%", "done"},
			last: "done"},
		{name: "error", text: "warning: a\nerror: b\nerror: c\nd\n",
			want: []string{"warning: a", "error: b", "error: c", "d"}, last: "d", error: "b"},
		{name: "error inside", text: "an error: a\nwarning: error: b\n",
			want: []string{"an error: a", "warning: error: b"},
			last: "warning: error: b"},
		{name: "error of nothing", text: "error: \nerror:\n", want: []string{"error:", "error:"}, last: "error:"},
		{name: "as long as is kept", text: long + "\nb\n", want: []string{long, "b"}, last: "b"},
		{name: "longer", text: long + "yz\nb\n", want: []string{long, "b"}, last: "b"},
		{name: "long error", text: "error: " + long + "\n", want: []string{"error: " + long[len("error: "):]},
			last: "error: " + long[len("error: "):], error: long[len("error: "):]},
		{name: "cut off inside a character", text: long[1:] + "ä\n", want: []string{long[1:] + "\xc3"},
			last: long[1:] + "\xc3"},
		{name: "hostile", text: "\x00\x1b[2J\xff\xfe\n\x1b]0;title\x07\u2028x\u202e\n",
			want: []string{"\x00\x1b[2J\xff\xfe", "\x1b]0;title\x07\u2028x\u202e"},
			last: "\x1b]0;title\x07\u2028x\u202e"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// However it comes.
			for _, size := range []int{1, 2, 3, 7, 4096, 1 << 20} {
				var got []string
				l := lines{report: func(line string) { got = append(got, line) }}
				for part := range slices.Chunk([]byte(c.text), size) {
					if n, err := l.Write(part); n != len(part) || err != nil {
						t.Fatalf("%d, %v", n, err)
					}
				}
				if !slices.Equal(got, c.want) || l.last != c.last || l.error != c.error {
					t.Errorf("%d at once: %q, last %q, error %q", size, got, l.last, l.error)
				}
			}
		})
	}
	// Nobody need listen, and a line without an end takes no more memory.
	var l lines
	for range 1000 {
		_, _ = l.Write([]byte(long))
	}
	if cap(l.begun) > 2*longestLine {
		t.Errorf("keeps %d bytes of a line", cap(l.begun))
	}
}

// What is reported while nix-store runs, and what its error is.
func TestNixStoreWatch(t *testing.T) {
	for _, c := range []struct {
		name, script string
		out, err     string // err: after the program's name
		reported     []string
	}{
		{name: "both", script: "echo out; echo one >&2; echo two >&2", out: "out\n", reported: []string{"one", "two"}},
		{name: "no end of a line", script: "printf 'out'; printf 'one\ntwo' >&2", out: "out",
			reported: []string{"one", "two"}},
		{name: "fails", script: "echo out; echo one >&2; exit 3", err: ": exit status 3: one",
			reported: []string{"one"}},
		{name: "fails and says nothing", script: "echo out; exit 1", err: ": exit status 1"},
		{name: "fails and says why", script: "echo warning: a >&2; echo error: b >&2; echo error: c >&2; echo d " +
			">&2; exit 1", err: ": exit status 1: b",
			reported: []string{"warning: a", "error: b", "error: c", "d"}},
		{name: "fails in the middle of a line", script: "printf 'one\nerror: two' >&2; exit 1",
			err: ": exit status 1: two", reported: []string{"one", "error: two"}},
		{name: "is killed", script: "echo one >&2; kill -9 $$", err: ": signal: killed: one",
			reported: []string{"one"}},
	} {
		n := NixStore{Program: script(t, c.script), Store: nixStore}
		var reported []string
		var printed strings.Builder
		err := n.watch(t.Context(), &printed, func(line string) { reported = append(reported, line) })
		said, out := "", printed.String()
		if err != nil {
			said = strings.TrimPrefix(err.Error(), n.Program)
		}
		if err == nil && out != c.out || said != c.err || !slices.Equal(reported, c.reported) {
			t.Errorf("%s: %q, %q, reported %q", c.name, out, said, reported)
		}
	}
	_, err := NixStore{Program: "/nowhere/nix-store", Store: nixStore}.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/nowhere/nix-store") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// A line is reported when it is written, and not when the program ends.
func TestNixStoreWatchMeanwhile(t *testing.T) {
	fifo := t.TempDir() + "/go"
	n := NixStore{Program: script(t, "echo one >&2\nuntil [ -e "+fifo+" ]; do sleep 0.01; done\n"), Store: nixStore}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.watch(ctx, io.Discard, func(string) { write(t, fifo, "") }); err != nil {
		t.Errorf("the line is not reported: %v", err)
	}
}

// The output of --dump-db is read while nix-store runs, a part after the other.
func TestNixStoreInfos(t *testing.T) {
	names := make([]BaseName, chunkSize+1)
	for i := range names {
		names[i] = named(fmt.Sprintf("p%05d", i))
	}
	c := New(nixStore, names)
	const each = `shift; for p; do printf '%s\n'` + " \"$p\" " + hexHash + ` 1 '' 1 "$p"; done`
	last := nixStore.Path(names[chunkSize])
	for _, of := range []struct{ name, script, err string }{
		{"whole", each, ""},
		{"fails after it", each + "; echo error: no >&2; exit 1", ": exit status 1: no"},
		{"a path is missing", "case $2 in " + last + ") exec printf '%s\\n' " + last + "x; esac; " + each,
			"the output of nix-store --dump-db: line 1: " + last + "x is registered, but not in the closure"},
		{"a path again", each + `; printf '%s\n'` + " $1 " + hexHash + " 1 '' 0",
			fmt.Sprintf("the output of nix-store --dump-db: line %d: %s is registered a second time",
				6*chunkSize+1, nixStore.Path(names[0]))},
		{"nothing", "", "the output of nix-store --dump-db: registers no store path"},
		{"not what was asked for", "yes | head -c 10000000",
			`the output of nix-store --dump-db: line 1: "y": not below`},
		{"no answer", "exit 3", ": exit status 3"},
	} {
		n := NixStore{Program: script(t, of.script), Store: nixStore}
		infos, err := n.Infos(t.Context(), c)
		if of.err != "" {
			if err == nil || !strings.HasPrefix(strings.TrimPrefix(err.Error(), n.Program), of.err) || infos != nil {
				t.Errorf("%s: %v, want %q", of.name, err, of.err)
			}
			continue
		}
		if err != nil || len(infos) != len(names) {
			t.Errorf("%s: %d, %v", of.name, len(infos), err)
		}
		for i, info := range infos {
			want := PathInfo{Name: names[i], NarHash: dbHash, NarSize: 1, References: names[i : i+1]}
			if diff := cmp.Diff(want, info); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", of.name, diff)
			}
		}
	}
}

// When its time is over, nix-store is asked to end, and if it does not, it is
// ended. Who started whom does not matter. None of these would end by itself.
func TestNixStoreTimeout(t *testing.T) {
	for _, c := range []struct {
		name, script string
		cleans       bool
	}{
		{"ends in order", "trap 'touch $0.cleaned; exit 1' TERM\necho begun >&2\nwhile :; do sleep 0.01; done", true},
		{"does not end", "trap '' TERM\necho begun >&2\nwhile :; do sleep 0.01; done", false},
		{"leaves a child", "sleep 600 & echo $! >$0.child\necho begun >&2\nwait", false},
	} {
		n := NixStore{Program: script(t, c.script), Store: nixStore}
		ctx := newEndable()
		err := n.watch(ctx, io.Discard, func(string) { ctx.end() })
		if !errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), ": begun") {
			t.Errorf("%s: %v", c.name, err)
		}
		if cleaned := fileExists(n.Program + ".cleaned"); cleaned != c.cleans {
			t.Errorf("%s: cleaned up: %v", c.name, cleaned)
		}
		if fileExists(n.Program + ".child") {
			end(t, strings.TrimSpace(read(t, n.Program+".child")))
		}
	}
}

// endable is a context whose time is over when end is called.
type endable struct {
	over chan struct{}
	end  func()
}

func newEndable() endable {
	over := make(chan struct{})
	return endable{over, sync.OnceFunc(func() { close(over) })}
}

func (endable) Deadline() (time.Time, bool) { return time.Time{}, false }

func (endable) Value(any) any { return nil }

func (e endable) Done() <-chan struct{} { return e.over }

func (e endable) Err() error {
	select {
	case <-e.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// Nothing of a container's or an operator's environment reaches Nix.
func TestNixStoreEnvironment(t *testing.T) {
	for _, v := range []string{"LD_PRELOAD", "PATH", "HOME", "NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_REMOTE",
		"NIX_CONFIG", "NIX_CONF_DIR", "LC_ALL"} {
		t.Setenv(v, "/image")
	}
	out := t.TempDir()
	n := NixStore{Program: script(t, "tr '\\0' '\\n' </proc/$$/environ >"+out+"/env\npwd >"+out+"/pwd\n"),
		Store: Store{Dir: "/s/store", StateDir: "/s/var"}}
	if _, err := n.Versions(t.Context(), names("a")); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(read(t, out+"/env"), "\n"), "\n")
	slices.Sort(got)
	want := []string{
		"HOME=/var/empty", "LC_ALL=C", "NIX_STATE_DIR=/s/var", "NIX_STORE_DIR=/s/store",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the environment is %q, want %q", got, want)
	}
	if got := read(t, out+"/pwd"); got != "/\n" {
		t.Errorf("the directory is %q", got)
	}
}
