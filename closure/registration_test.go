// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseNarHash(t *testing.T) {
	for _, s := range []string{hexHash, base32Hash, dbHash, "sha256:" + base32Hash, sriHash} {
		if got, err := ParseNarHash(s); err != nil || got != dbHash {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "sha256:", "sha256-", "sha256", ":" + hexHash, "-" + hexHash,
		hexHash[1:], "0" + hexHash, base32Hash[1:], "0" + base32Hash, hexHash[:52], // the last has an e
		strings.ToUpper(hexHash), strings.ToUpper(base32Hash), "SHA256:" + hexHash,
		"g" + hexHash[1:], "e" + base32Hash[1:], "\x00" + hexHash[1:],
		" " + dbHash, dbHash + " ", dbHash + "\n", dbHash + "\r", "sha256: " + hexHash,
		"sha256:sha256:" + hexHash, "sha256:" + sriHash, "sha256-" + hexHash, "sha256-" + base32Hash,
		"md5:d41d8cd98f00b204e9800998ecf8427e", "sha1:" + hexHash[:40], "sha512:" + hexHash + hexHash,
		"sha512:" + hexHash,
		"2" + base32Hash[1:],               // the 256th bit
		"z" + base32Hash[1:],               // and all after it
		strings.TrimSuffix(sriHash, "="),   // no padding
		sriHash + "=",                      // too much of it
		sriHash[:len(sriHash)-2] + "V=",    // a bit that means nothing
		sriHash[:20] + "\n" + sriHash[20:], // which Go's decoder skips
		sriHash[:20] + "\r" + sriHash[20:],
		strings.Map(func(r rune) rune {
			if r == '+' {
				return '-'
			}
			return r
		}, sriHash),
		"sha256-" + base64.StdEncoding.EncodeToString(make([]byte, 31)),
		"sha256-" + base64.StdEncoding.EncodeToString(make([]byte, 33)),
	} {
		if got, err := ParseNarHash(s); err == nil || got != "" {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}

// Every bit has its place: the digits of base 32 are summed up as a number.
func TestBase32(t *testing.T) {
	for bit := range 256 {
		var sum [32]byte
		sum[bit/8] = 1 << (bit % 8)
		digits := []byte(strings.Repeat("0", 52))
		digits[51-bit/5] = hashAlphabet[1<<(bit%5)]
		got, err := ParseNarHash(string(digits))
		if want := "sha256:" + hex.EncodeToString(sum[:]); err != nil || got != want {
			t.Errorf("bit %d: %q is %q, %v; want %q", bit, digits, got, err, want)
		}
	}
}

func TestRestrict(t *testing.T) {
	a, b, drv, foreign := named("a"), named("b"), named("c.drv"), named("foreign")
	closure := New(nixStore, []BaseName{a, b, drv})
	infos := func(change func(a, b, drv *PathInfo)) []PathInfo {
		// Not sorted, and neither are the references.
		all := []PathInfo{
			{Name: drv, NarHash: dbHash, NarSize: 3, References: []BaseName{b},
				Outputs: []Output{{"dev", foreign}, {"out", a}}},
			{Name: a, NarHash: dbHash, NarSize: 1, Registered: 7, Deriver: drv, Signatures: "key:x",
				References: []BaseName{b, a}},
			{Name: b, NarHash: dbHash, NarSize: 2, Deriver: foreign, Ultimate: true, CA: "text:sha256:x"},
		}
		change(&all[1], &all[2], &all[0])
		return all
	}
	for _, c := range []struct {
		name    string
		closure Closure
		infos   []PathInfo
		err     string
	}{
		{name: "whole", closure: closure, infos: infos(func(_, _, _ *PathInfo) {})},
		{name: "nothing", closure: New(nixStore, nil)},
		{name: "missing first", closure: closure, infos: infos(func(_, _, _ *PathInfo) {})[:1],
			err: nixStore.Path(a) + " is in the closure, but not registered"},
		{name: "missing in the middle", closure: closure, infos: infos(func(_, _, _ *PathInfo) {})[:2],
			err: nixStore.Path(b) + " is in the closure, but not registered"},
		{name: "missing last", closure: closure, infos: infos(func(_, _, _ *PathInfo) {})[1:],
			err: nixStore.Path(drv) + " is in the closure, but not registered"},
		{name: "missing all", closure: closure, err: nixStore.Path(a) + " is in the closure, but not registered"},
		{name: "surplus last", closure: closure,
			infos: append(infos(func(_, _, _ *PathInfo) {}), PathInfo{Name: foreign}),
			err:   nixStore.Path(foreign) + " is registered, but not in the closure"},
		{name: "surplus first", closure: New(nixStore, []BaseName{b, drv}),
			infos: infos(func(a, _, _ *PathInfo) { a.References = nil }),
			err:   nixStore.Path(a) + " is registered, but not in the closure"},
		{name: "surplus all", closure: New(nixStore, nil), infos: infos(func(_, _, _ *PathInfo) {}),
			err: nixStore.Path(a) + " is registered, but not in the closure"},
		{name: "one for another", closure: closure, infos: infos(func(_, b, _ *PathInfo) { b.Name = foreign }),
			err: nixStore.Path(b) + " is in the closure, but not registered"},
		{name: "twice", closure: closure, infos: append(infos(func(_, _, _ *PathInfo) {}), PathInfo{Name: a}),
			err: nixStore.Path(a) + " is registered a second time"},
		{name: "twice in another's place", closure: closure, infos: infos(func(_, b, _ *PathInfo) { b.Name = drv }),
			err: nixStore.Path(b) + " is in the closure, but not registered"},
		{name: "reference out of it", closure: closure,
			infos: infos(func(_, b, _ *PathInfo) { b.References = []BaseName{a, foreign} }),
			err:   nixStore.Path(b) + " references " + nixStore.Path(foreign) + ", which is not in the closure"},
	} {
		before := fmt.Sprint(c.infos)
		got, err := Restrict(c.closure, c.infos)
		if fmt.Sprint(c.infos) != before {
			t.Errorf("%s: the argument was changed to %v", c.name, c.infos)
		}
		if c.err != "" {
			if err == nil || err.Error() != c.err || got != nil {
				t.Errorf("%s: %v, error %v, want %q", c.name, got, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.name == "nothing" {
			if len(got) != 0 {
				t.Errorf("of nothing: %v", got)
			}
			continue
		}
		want := []PathInfo{
			{Name: a, NarHash: dbHash, NarSize: 1, Registered: 7, Deriver: drv, Signatures: "key:x",
				References: []BaseName{a, b}},
			{Name: b, NarHash: dbHash, NarSize: 2, Ultimate: true, CA: "text:sha256:x"},
			{Name: drv, NarHash: dbHash, NarSize: 3, References: []BaseName{b}, Outputs: []Output{{"out", a}}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// What one closure-info claims is not what Nix says, nor what another one does.
func TestRegistrationName(t *testing.T) {
	digest := New(nixStore, []BaseName{named("a")}).Digest()
	one, other := named("closure-info"), BaseName("1"+hash[1:]+"-closure-info")
	seen := map[string]bool{}
	for _, info := range []BaseName{"", one, other} {
		name := RegistrationName(digest, info)
		if seen[name] || len(name) > 255 || !strings.HasPrefix(name, digest) || strings.Contains(name, "/") {
			t.Errorf("%q: %q", info, name)
		}
		seen[name] = true
	}
	if got := RegistrationName(digest, ""); got != digest {
		t.Errorf("%q", got)
	}
	if got, want := RegistrationName(digest, one), digest+"-"+strings.Repeat("0", 32); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
