// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
)

// progress is a line on stderr that is written anew, and nothing where stderr
// is not a terminal.
type progress struct {
	terminal bool
}

func newProgress() *progress {
	info, err := os.Stderr.Stat()
	return &progress{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *progress) show(format string, args ...any) {
	if p.terminal {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}

// clear takes the line away.
func (p *progress) clear() { p.show("") }
