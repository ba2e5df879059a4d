// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"
)

// quiet is how long nothing is printed where stderr is not a terminal.
const quiet = 15 * time.Second

// progress is a line on stderr that is written anew. Where stderr is not a terminal, it is
// a line now and then.
type progress struct {
	terminal    bool
	began, last time.Time
	group       string
}

func newProgress() *progress {
	info, err := os.Stderr.Stat()
	return &progress{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, began: time.Now()}
}

// start names the part that begins.
func (p *progress) start(group string) {
	p.group, p.last = group, time.Time{}
	p.show("begins")
}

func (p *progress) show(format string, args ...any) {
	elapsed := time.Since(p.began).Round(time.Second)
	text := fmt.Sprintf("%6s  %s: %s", elapsed, p.group, fmt.Sprintf(format, args...))
	switch {
	case p.terminal:
		fmt.Fprintf(os.Stderr, "\r\x1b[K%.110s", text)
	case time.Since(p.last) >= quiet:
		fmt.Fprintln(os.Stderr, text)
		p.last = time.Now()
	}
}

// clear takes the line away.
func (p *progress) clear() {
	if p.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
