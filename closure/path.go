// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"strings"
)

// BaseName is the base name of a store path, `<hash>-<name>`. ParseBaseName guarantees its
// form: it has no slash, is neither `.` nor `..`, and has no character with a meaning in a
// mount option, a line of text or a shell.
type BaseName string

const (
	hashLength = 32
	// hashAlphabet is Nix's base 32: no e, o, u, t.
	hashAlphabet  = "0123456789abcdfghijklmnpqrsvwxyz"
	nameAlphabet  = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?="
	maxNameLength = 211
)

// The reasons why a path is no store path.
var (
	ErrOutside = errors.New("not below the store directory")
	ErrHash    = errors.New("the hash is not 32 characters of Nix's base 32")
	ErrName    = errors.New("the name is not 1 to 211 characters of letters, digits and +-._?=, " +
		"or begins in a way Nix forbids")
	ErrSubpath = errors.New("has an empty component, or `.` or `..`, below the store path")
	ErrBelow   = errors.New("below a store path, not one")
)

// ParseBaseName checks that s is the base name of a store path, as strictly as Nix. It
// fails with ErrHash or ErrName.
func ParseBaseName(s string) (BaseName, error) {
	if len(s) <= hashLength || s[hashLength] != '-' || !only(s[:hashLength], hashAlphabet) {
		return "", ErrHash
	}
	name := s[hashLength+1:]
	if name == "" || len(name) > maxNameLength || !only(name, nameAlphabet) ||
		name == "." || name == ".." || strings.HasPrefix(name, ".-") || strings.HasPrefix(name, "..-") {
		return "", ErrName
	}
	return BaseName(s), nil
}

func only(s, alphabet string) bool {
	for i := range len(s) {
		if strings.IndexByte(alphabet, s[i]) < 0 {
			return false
		}
	}
	return true
}

// Store says where a Nix store is.
type Store struct {
	Dir      string // the store directory, /nix/store: absolute, clean
	StateDir string // the state directory, /nix/var/nix: absolute, clean
}

// Path returns the store path with this base name.
func (s Store) Path(b BaseName) string { return s.Dir + "/" + string(b) }

// Parse returns the base name of the store path that unsafePath is, or lies below. It fails
// with ErrOutside, ErrHash, ErrName or ErrSubpath.
//
// It guarantees, against the author of unsafePath, that the path stays below that store
// path as a text. It does not look at the store: the store path may not exist, and a
// symbolic link below it may lead elsewhere.
//
// Testing for the store directory as a prefix is not enough: that accepts /nix/storeX and
// /nix/store/../x, as some libraries do.
func (s Store) Parse(unsafePath string) (BaseName, error) {
	rest, ok := strings.CutPrefix(unsafePath, s.Dir+"/")
	if !ok {
		return "", fmt.Errorf("%q: %w %s", unsafePath, ErrOutside, s.Dir)
	}
	first, below, _ := strings.Cut(rest, "/")
	base, err := ParseBaseName(first)
	if err != nil {
		return "", fmt.Errorf("%q: %w", unsafePath, err)
	}
	if below == "" {
		return base, nil
	}
	// A shell's completion leaves one slash at the end.
	for component := range strings.SplitSeq(strings.TrimSuffix(below, "/"), "/") {
		if component == "" || component == "." || component == ".." || strings.ContainsRune(component, 0) {
			return "", fmt.Errorf("%q: %w", unsafePath, ErrSubpath)
		}
	}
	return base, nil
}

// ParseExact is Parse for a path that must be a store path itself. It fails with ErrBelow
// for anything below one, even a slash at the end.
func (s Store) ParseExact(unsafePath string) (BaseName, error) {
	base, err := s.Parse(unsafePath)
	if err != nil {
		return "", err
	}
	if len(unsafePath) != len(s.Dir)+1+len(base) {
		return "", fmt.Errorf("%q: %w", unsafePath, ErrBelow)
	}
	return base, nil
}
