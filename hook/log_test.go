// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"os"
	"testing"
)

func TestLog(t *testing.T) {
	h := newHost(t)
	newLog(h.dir+"/log", "createRuntime", "web").Error("one\ntwo", "key", "\x1b")
	newLog(h.dir+"/log", "poststop", "db").Info("three")
	lines := h.log(t)
	if len(lines) != 2 || lines[0]["stage"] != "createRuntime" || lines[0]["container"] != "web" || lines[0]["msg"] != "one\ntwo" ||
		lines[1]["stage"] != "poststop" || lines[1]["level"] != "INFO" {
		t.Errorf("%v", lines)
	}
	if st, err := os.Stat(h.dir + "/log"); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Without a place to write to, containers start all the same.
	newLog(h.dir+"/nowhere/log", "createRuntime", "web").Error("lost")
	newLog(h.dir, "createRuntime", "web").Error("lost")
}
