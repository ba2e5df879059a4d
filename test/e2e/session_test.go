// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/testhost"
)

var writeSession = flag.Bool("write-session", false, "write the session of docs/cli.md anew")

// small has a closure of three store paths, whose sizes are the same on every machine.
const small = `
let
  text = name: text: derivation {
    inherit name text;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" "printf %s \"$text\" >$out; chmod +x $out" ];
    PATH = "/usr/bin:/bin";
  };
  words = text "words-1.0" "hello world\n";
  config = text "config-1.0" "words = ${words}\n";
in text "hello-2.12" "#!/bin/sh\ncat ${words} ${config}\n"
`

// session is what is typed, in order.
var session = []string{
	"nix-closure resolve --tree --sizes ./result",
	"nix-closure inspect",
	"nix-closure verify",
	"nix-closure doctor; echo $?",
	"rm /usr/share/containers/oci/hooks.d/nix-closure*.json",
	"nix-closure doctor; echo $?",
}

// The session in docs/cli.md is what tmux shows. To write it anew: make all, and in
// test/e2e, go test -run TestSession . -args -bin BIN -write-session.
func TestSession(t *testing.T) {
	goodHost(t)
	dir := t.TempDir()
	path := strings.TrimSpace(must(t, "nix-build", "--quiet", "--expr", small, "--out-link", dir+"/result"))
	id := strings.TrimSpace(must(t, "podman", append(append([]string{"--runtime", "runc", "run", "--detach",
		"--name", "web"}, flags(roots(path))...), ordinaryImage(t), "/bin/busybox", "sleep", "600")...))
	t.Cleanup(func() { remove(t, id) })
	socket := filepath.Join(testhost.Dir(), "tmux")
	tmux := func(args ...string) string {
		t.Helper()
		return must(t, "tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...)
	}
	tmux("new-session", "-d", "-x", "100", "-y", "200", "-c", dir, "env", "-i", "TERM=screen", "NO_COLOR=1", "PS1=# ",
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "sh")
	t.Cleanup(func() { tmux("kill-server") })
	screen := ""
	for i, command := range session {
		tmux("send-keys", "-l", command)
		tmux("send-keys", "Enter")
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			screen = strings.TrimRight(tmux("capture-pane", "-p", "-J"), "\n ")
			// The prompt is back, once more than commands were typed.
			if strings.Count("\n"+screen, "\n#") == i+2 && strings.HasSuffix(screen, "\n#") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not end:\n%s", command, screen)
			}
		}
	}
	screen = strings.TrimSuffix(screen, "\n#")
	if strings.Contains(screen, "panic:") {
		t.Fatal(screen)
	}
	// What differs from one machine to the next, and from one run to the next.
	for _, r := range []struct{ pattern, by string }{
		{`[0-9abcdfghijklmnpqrsvwxyz]{32}-`, "…-"},
		{id, "3f1c…"}, {id[:12], "3f1c5a0e9b7d"},
		{`(Less than a second|\d+ seconds?|About a minute) ago`, "2 seconds ago"}, {`(?m) +$`, ""},
	} {
		screen = regexp.MustCompile(r.pattern).ReplaceAllString(screen, r.by)
	}
	const docs, begin, end = "../../docs/cli.md", "<!-- session -->\n", "<!-- end of session -->\n"
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	written, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatal("docs/cli.md has no session")
	}
	want := "```console\n" + screen + "\n```\n"
	if *writeSession {
		all := bytes.Join([][]byte{before, []byte(begin), []byte(want), []byte(end), after}, nil)
		if err := os.WriteFile(docs, all, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(written) != want {
		t.Errorf("docs/cli.md has\n%s\nand it is\n%s", written, want)
	}
}
