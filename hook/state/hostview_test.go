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
		{name: "mounted", mount: HostMount{ID: id, Device: first[2], Namespaces: own}, there: true},
		{name: "another device", mount: HostMount{ID: id, Device: "0:0", Namespaces: own}},
		{name: "another mount", mount: HostMount{ID: 1 << 30, Device: first[2], Namespaces: own}},
		{name: "an earlier boot", mount: HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Boot = "another" })}},
		{name: "a mount namespace without processes", mount: HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Mount = "mnt:[1]" })}},
		{name: "processes that cannot be seen", mount: HostMount{ID: id, Device: first[2],
			Namespaces: elsewhere(func(n *Namespaces) { n.Mount, n.PID = "mnt:[1]", "pid:[1]" })}, err: true},
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
	if len(ids) != 3 || !ids[HostViewID("/a", one)] {
		t.Errorf("IDs %v", ids)
	}
}
