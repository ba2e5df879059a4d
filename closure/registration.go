// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// PathInfo is what Nix's database has about one valid store path.
type PathInfo struct {
	Name       BaseName
	NarHash    string // as ParseNarHash returns it
	NarSize    int64  // 0: unknown
	Registered int64  // seconds since 1970; 0: unknown
	Deriver    BaseName
	Ultimate   bool   // built here, not copied from elsewhere
	Signatures string // separated by spaces
	CA         string // empty: not content-addressed
	References []BaseName
	Outputs    []Output
}

// Output is an output of a derivation that is a valid store path.
type Output struct {
	Name string // such as `out`
	Path BaseName
}

// RegistrationSchema is the version of the database's schema in a registration. Nix 2.0 and
// later use it. It is the content of the file `schema` beside the database.
const RegistrationSchema = "10"

const narHashPrefix = "sha256:"

// ParseNarHash parses a SHA-256 in every form in which Nix writes one: in hexadecimal or
// Nix's base 32, with or without `sha256:` before it, or in base 64 after `sha256-`. It
// returns the form of Nix's database: `sha256:` and 64 hexadecimal digits.
func ParseNarHash(s string) (string, error) {
	var sum []byte
	ok := false
	if sri, is := strings.CutPrefix(s, "sha256-"); is {
		var err error
		sum, err = base64.StdEncoding.DecodeString(sri)
		// The decoder skips line breaks, and ignores superfluous bits that are set.
		ok = err == nil && base64.StdEncoding.EncodeToString(sum) == sri
	} else if digits := strings.TrimPrefix(s, narHashPrefix); len(digits) == 64 {
		sum, _ = hex.DecodeString(digits)
		ok = hex.EncodeToString(sum) == digits
	} else {
		sum, ok = parseBase32(digits)
	}
	if !ok || len(sum) != 32 {
		return "", fmt.Errorf("%q: not a SHA-256 as Nix writes it", s)
	}
	return narHashPrefix + hex.EncodeToString(sum), nil
}

// parseBase32 parses 32 bytes in Nix's base 32. They are a number whose least significant
// byte is the first, written with the most significant digit first.
func parseBase32(s string) ([]byte, bool) {
	if len(s) != 52 {
		return nil, false
	}
	sum := make([]byte, 32)
	for i := range len(s) {
		digit := strings.IndexByte(hashAlphabet, s[len(s)-1-i])
		if digit < 0 {
			return nil, false
		}
		at, shift := i*5/8, i*5%8
		sum[at] |= byte(digit << shift)
		carry := byte(digit >> (8 - shift))
		if at+1 < len(sum) {
			sum[at+1] |= carry
		} else if carry != 0 {
			return nil, false
		}
	}
	return sum, true
}

// Restrict returns the registration of the closure: infos, sorted, without what must not
// show in a container.
//
// infos must have every path of the closure exactly once, and no other. Their references
// must be in the closure. Derivers and outputs of derivations are no references, so they
// can be names from outside the closure: Restrict removes those. It guarantees that the
// result has no name from outside the closure.
func Restrict(c Closure, infos []PathInfo) ([]PathInfo, error) {
	store := Store{Dir: c.dir}
	inside := func(b BaseName) bool {
		_, found := slices.BinarySearch(c.Names, b)
		return found
	}
	infos = slices.Clone(infos)
	slices.SortFunc(infos, func(a, b PathInfo) int { return strings.Compare(string(a.Name), string(b.Name)) })
	for i, info := range infos {
		switch {
		case i > 0 && info.Name == infos[i-1].Name:
			return nil, registeredTwice(store, info.Name)
		case i == len(c.Names) || info.Name < c.Names[i]:
			return nil, fmt.Errorf("%s is registered, but not in the closure", store.Path(info.Name))
		case info.Name > c.Names[i]:
			return nil, notRegistered(store, c.Names[i])
		}
		references := slices.Clone(info.References)
		slices.Sort(references)
		for _, r := range references {
			if !inside(r) {
				return nil, fmt.Errorf("%s references %s, which is not in the closure",
					store.Path(info.Name), store.Path(r))
			}
		}
		infos[i].References = slices.Compact(references)
		if info.Deriver != "" && !inside(info.Deriver) {
			infos[i].Deriver = ""
		}
		infos[i].Outputs = slices.DeleteFunc(slices.Clone(info.Outputs), func(o Output) bool { return !inside(o.Path) })
	}
	if len(infos) < len(c.Names) {
		return nil, notRegistered(store, c.Names[len(infos)])
	}
	return infos, nil
}

// RegistrationName returns the name of the file, in the directory of registrations, with
// the registration of the closure with this digest. If info is empty, that registration is
// from Nix's database, else from this closure-info.
//
// Every user who may add to the store can make a closure-info, and what it claims about
// other users' paths (hashes, sizes) can be wrong. So a registration from a closure-info
// has a name of its own. It must never be given to a container that did not name that
// closure-info.
//
// A registration that was made before a Resolution's Since may be about files that were
// collected and came back.
func RegistrationName(digest string, info BaseName) string {
	if info == "" {
		return digest
	}
	return digest + "-" + string(info[:hashLength])
}

func notRegistered(store Store, name BaseName) error {
	return fmt.Errorf("%s is in the closure, but not registered", store.Path(name))
}

func registeredTwice(store Store, name BaseName) error {
	return fmt.Errorf("%s is registered a second time", store.Path(name))
}
