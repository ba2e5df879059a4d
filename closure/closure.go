// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Closure is a sorted set of store paths of one store: everything that a container sees of
// it. The type does not guarantee that the set is closed under references. Cache.Resolve
// does.
type Closure struct {
	Names []BaseName
	dir   string // the store directory
	text  string
}

// New makes a closure of names in any order. A repeated name counts once.
func New(store Store, names []BaseName) Closure {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)

	var b strings.Builder
	size := len(store.Dir) + 1
	for _, n := range names {
		size += len(n) + 1
	}
	b.Grow(size)
	b.WriteString(store.Dir)
	b.WriteByte('\n')
	for _, n := range names {
		b.WriteString(string(n))
		b.WriteByte('\n')
	}
	return Closure{Names: names, dir: store.Dir, text: b.String()}
}

// Digest identifies the closure: the SHA-256 of its text, in hexadecimal. Two closures with
// the same digest have the same store directory and the same store paths.
func (c Closure) Digest() string {
	sum := sha256.Sum256([]byte(c.text))
	return hex.EncodeToString(sum[:])
}

// Text returns the store directory and the sorted base names, one a line.
func (c Closure) Text() string { return c.text }

// ErrText is wrapped by the errors of Parse.
var ErrText = errors.New("not the text of a closure")

// Parse parses what Text returned. It does not notice a text that was cut off at the end of
// a line: that is a smaller closure, with another digest.
func Parse(store Store, text string) (Closure, error) {
	rest, ok := strings.CutPrefix(text, store.Dir+"\n")
	if !ok {
		return Closure{}, fmt.Errorf("%w: it is of another store directory", ErrText)
	}
	names := make([]BaseName, 0, strings.Count(rest, "\n"))
	for rest != "" {
		var line string
		if line, rest, ok = strings.Cut(rest, "\n"); !ok {
			return Closure{}, fmt.Errorf("%w: the last line is cut off", ErrText)
		}
		base, err := ParseBaseName(line)
		if err != nil {
			return Closure{}, fmt.Errorf("%w: %q: %w", ErrText, line, err)
		}
		if len(names) > 0 && base <= names[len(names)-1] {
			return Closure{}, fmt.Errorf("%w: not sorted", ErrText)
		}
		names = append(names, base)
	}
	return Closure{Names: names, dir: store.Dir, text: text}, nil
}
