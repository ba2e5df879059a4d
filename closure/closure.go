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

// Closure is a set of store paths of one store, sorted. It is the whole of what
// a container sees: whether it really is closed under references is for the
// code that made it.
type Closure struct {
	Names []BaseName
	dir   string // the store directory
	text  string
}

// New makes a closure of names in any order; what is there twice counts once.
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

// Digest identifies the closure: SHA-256, in hexadecimal, of its text. Two
// closures with one digest have the same store directory and the same paths.
func (c Closure) Digest() string {
	sum := sha256.Sum256([]byte(c.text))
	return hex.EncodeToString(sum[:])
}

// Text is the store directory and the sorted base names, a line each.
func (c Closure) Text() string { return c.text }

// ErrText is wrapped by Parse's errors.
var ErrText = errors.New("not the text of a closure")

// Parse reads what Text wrote. A list that was cut off at the end of a line reads
// as a smaller closure, of another digest.
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
