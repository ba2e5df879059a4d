// SPDX-License-Identifier: Apache-2.0

package idmap

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
)

func TestFind(t *testing.T) {
	const rootless = "         0       1001          1\n         1     100000      65536\n"
	for _, c := range []struct {
		text string
		id   int
		want int
		ok   bool
	}{
		{text: "         0          0 4294967295\n", ok: true},
		{text: "         0          0 4294967295\n", id: 1000, want: 1000, ok: true},
		{text: rootless, want: 1001, ok: true},
		{text: rootless, id: 1, want: 100000, ok: true},
		{text: rootless, id: 65536, want: 165535, ok: true},
		{text: rootless, id: 65537},
		{text: rootless, id: -1},
		{text: "0 1 1001\n1001 0 1\n1002 1002 64535\n", id: 1001, ok: true},
		{text: "0 1 1001\n1001 0 1\n1002 1002 64535\n", want: 1, ok: true},
		{text: ""},
		{text: "a b c\n"},
	} {
		maps, err := user.ParseIDMap(strings.NewReader(c.text))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := find(maps, c.id); got != c.want || ok != c.ok {
			t.Errorf("%q, %d: %d, %v", c.text, c.id, got, ok)
		}
	}
}

func TestOutside(t *testing.T) {
	if got, ok, err := Outside("/proc/self/uid_map", os.Getuid()); !ok || err != nil {
		t.Errorf("%d, %v, %v", got, ok, err)
	}
	if _, _, err := Outside("/proc/self/no_map", 0); err == nil {
		t.Error("a map that there is not")
	}
}

func TestRootIDs(t *testing.T) {
	for _, c := range []struct {
		uidMap, overflow string
		want             []uint32
	}{
		{"         0          0 4294967295\n", "65534\n", []uint32{0}},
		{"0 0 4294967295", "65534", []uint32{0}},
		{"", "65534\n", []uint32{0}}, // cannot be read, or is not written yet
		{"\n", "65534\n", []uint32{0}},
		{"         0       1000          1\n         1     100000      65536\n", "65534\n", []uint32{0, 65534}},
		{"         0     100000      65536\n", "65534\n", []uint32{0, 65534}},
		{"         0          0      65536\n", "65534\n", []uint32{0, 65534}},
		{"      1000       1000          1\n", "1234\n", []uint32{0, 1234}},
		{"0 0 4294967294\n", "65534\n", []uint32{0, 65534}},
		{"0 1000 1\n", "", []uint32{0}},
		{"0 1000 1\n", "-1\n", []uint32{0}},
		{"0 1000 1\n", "4294967296\n", []uint32{0}},
	} {
		if got := rootIDs(c.uidMap, c.overflow); !slices.Equal(got, c.want) {
			t.Errorf("%q, %q: %d, want %d", c.uidMap, c.overflow, got, c.want)
		}
	}
}
