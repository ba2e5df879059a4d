// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os/exec"
	"strings"
	"testing"

	_ "embed"
)

//go:embed testdata/inotify.py
var inotifyScript string

// Two containers of one closure do not see each other's opens or locks in
// overlay mode: each overlay has inodes of its own. Bind mounts share them, as
// the documentation says; that the same script sees it there shows that it
// would see it.
func TestNothingCrosses(t *testing.T) {
	want := map[string]string{
		"overlay": "events 0 locked True\n",
		"bind":    "events 1 locked False\n",
	}
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		c := container{runtime: runtime, mode: mode, root: "env"}
		one, other := c.start(t), c.start(t)
		python := store["env"] + "/bin/python3"
		watcher := exec.Command("podman", "exec", "--interactive", one, python, "-B", "-c", inotifyScript, "watch",
			store["data"])
		in, err := watcher.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out, errs strings.Builder
		ready := &line{first: make(chan struct{}), rest: &out}
		watcher.Stdout, watcher.Stderr = ready, &errs
		if err := watcher.Start(); err != nil {
			t.Fatal(err)
		}
		<-ready.first
		locked := execute(t, other, python, "-B", "-c", inotifyScript, "use", store["data"])
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := watcher.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, errs.String())
		}
		if got := strings.TrimSpace(out.String()) + " " + locked; got != want[mode] {
			t.Errorf("%q, want %q", got, want[mode])
		}
	})
}

// line closes first when a line was written, and keeps what follows it.
type line struct {
	first chan struct{}
	done  bool
	rest  *strings.Builder
}

func (l *line) Write(p []byte) (int, error) {
	n := len(p)
	if !l.done {
		_, after, ok := strings.Cut(string(p), "\n")
		if !ok {
			return n, nil
		}
		l.done = true
		close(l.first)
		p = []byte(after)
	}
	l.rest.Write(p)
	return n, nil
}
