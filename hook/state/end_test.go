// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"testing"
)

// At the end, the runtime may report either of the two bundles that it reported before.
func TestEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		record Record
		bundle string
		want   Outcome
	}{
		{name: "its bundle", record: ended(t, Record{Bundle: "/b", Stated: "/"}), bundle: "/b", want: Forgotten},
		{name: "what the runtime said", record: ended(t, Record{Bundle: "/b", Stated: "/"}), bundle: "/",
			want: Forgotten},
		{name: "another bundle", record: ended(t, Record{Bundle: "/b", Stated: "/"}), bundle: "/c", want: KeptOther},
		{name: "a process that runs", record: runs(t, Record{Bundle: "/b"}), bundle: "/b", want: KeptRunning},
	} {
		h := newHost(t)
		c.record.ID = "web"
		h.make(t, c.record)
		got, r, err := newDir(t, h).End(t.Context(), "web", c.bundle)
		if got != c.want || r.Bundle != "/b" || err != nil {
			t.Errorf("%s: %v, %+v, %v", c.name, got, r, err)
		}
		if forgotten := !exists(t, h.dir+"/run/containers/web.json"); forgotten != (c.want == Forgotten) {
			t.Errorf("%s: forgotten: %v", c.name, forgotten)
		}
	}
	h := newHost(t)
	if got, _, err := newDir(t, h).End(t.Context(), "web", "/b"); got != NoRecord || err != nil {
		t.Errorf("no record: %v, %v", got, err)
	}
	if left, err := os.ReadDir(h.store.StateDir + "/gcroots"); len(left) > 0 || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
}
