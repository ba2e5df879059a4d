// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// report writes an error to where the runtime would write it: to standard error, and to the
// file of --log in the format of --log-format. Engines show the last error in that file.
func (a arguments) report(err error) {
	fmt.Fprintln(os.Stderr, err)
	path := strings.TrimPrefix(a.Log, "file:") // crun's way to say so
	if path == "" || strings.HasPrefix(path, "journald:") || strings.HasPrefix(path, "syslog:") {
		return
	}
	// If the file cannot be written, nobody is left to tell.
	if f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644); openErr == nil {
		_, _ = f.WriteString(a.entry(err.Error(), time.Now().UTC().Format(time.RFC3339Nano)))
		f.Close()
	}
}

// entry returns a line in runc's format.
func (a arguments) entry(msg, now string) string {
	if a.LogFormat != "json" {
		return fmt.Sprintf("time=%q level=error msg=%q\n", now, msg)
	}
	text, _ := json.Marshal(struct { // strings never fail
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{"error", msg, now})
	return string(text) + "\n"
}
