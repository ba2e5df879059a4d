// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// A mount is there where this mount namespace lists it, is gone after a reboot, and is
// not judged where its processes cannot be seen.
func TestHostMountThere(t *testing.T) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	first := strings.Fields(string(text))
	id, err := strconv.Atoi(first[0])
	if err != nil {
		t.Fatal(err)
	}
	own, err := OwnNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := func(change func(*Namespaces)) Namespaces {
		n := own
		change(&n)
		return n
	}
	for _, c := range []struct {
		name  string
		mount HostMount
		there bool
		err   bool
	}{
		{"mounted", HostMount{ID: id, Device: first[2], Namespaces: own}, true, false},
		{"another device", HostMount{ID: id, Device: "0:0", Namespaces: own}, false, false},
		{"another mount", HostMount{ID: 1 << 30, Device: first[2], Namespaces: own}, false, false},
		{"an earlier boot", HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Boot = "another" })}, false, false},
		{"a mount namespace without processes", HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Mount = "mnt:[1]" })}, false, false},
		{"processes that cannot be seen", HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Mount, n.PID = "mnt:[1]", "pid:[1]" })}, false, true},
	} {
		there, err := c.mount.There()
		if there != c.there || (err != nil) != c.err {
			t.Errorf("%s: %v, %v; want %v, and an error: %v", c.name, there, err, c.there, c.err)
		}
	}
}

// One directory in two mount namespaces has two views.
func TestHostViewID(t *testing.T) {
	one, other := Namespaces{Mount: "mnt:[1]"}, Namespaces{Mount: "mnt:[2]"}
	ids := map[string]bool{}
	for _, id := range []string{HostViewID("/a", one), HostViewID("/a", other), HostViewID("/b", one)} {
		if !strings.HasPrefix(id, viewPrefix) || strings.ContainsAny(id, "/@.") {
			t.Errorf("ID %q", id)
		}
		ids[id] = true
	}
	if len(ids) != 3 {
		t.Errorf("IDs %v", ids)
	}
}
