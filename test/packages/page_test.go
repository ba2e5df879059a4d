// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"regexp"
	"strings"
	"testing"
)

// The rows of docs/install.md for Debian and for an archive are run from their text, in a
// clean Debian: afterwards it fails closed. What the first line makes is there.
func TestInstallPage(t *testing.T) {
	const makes = "make dist && cd bin/dist"
	for _, system := range []string{"Debian, Ubuntu", "any other Linux, from an archive"} {
		t.Run(system, func(t *testing.T) {
			var lines []string
			for line := range strings.Lines(string(read(t, repository+"/docs/install.md"))) {
				if cells := strings.Split(line, " | "); cells[0] == "| "+system {
					for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
						lines = append(lines, m[1])
					}
				}
			}
			if len(lines) != 3 || lines[0] != makes {
				t.Fatalf("docs/install.md has %q", lines)
			}
			d := newDebian(t)
			d.failsOpen()
			for _, line := range lines[1:] {
				if stdout, stderr, err := run(d.command("sh", "-c", "cd /mnt && "+line)); err != nil {
					t.Errorf("%s: %v\n%s%s", line, err, stdout, stderr)
				}
			}
			d.failsClosed()
		})
	}
}
