// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// report writes an error where the runtime would have: to standard error, and to
// the file that --log names, in the form that --log-format says. containerd shows
// the last error of that file.
func (a arguments) report(err error) {
	fmt.Fprintln(os.Stderr, err)
	path := strings.TrimPrefix(a.log, "file:") // crun's way to say so
	if path == "" || strings.HasPrefix(path, "journald:") || strings.HasPrefix(path, "syslog:") {
		return
	}
	f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if openErr != nil {
		return
	}
	defer f.Close()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	if a.logFormat != "json" {
		fmt.Fprintf(f, "time=%q level=error msg=%s\n", now, strconv.Quote(err.Error()))
		return
	}
	_ = json.NewEncoder(f).Encode(struct {
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{"error", err.Error(), now})
}
