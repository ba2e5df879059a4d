// SPDX-License-Identifier: Apache-2.0

// Package plainjson reads JSON that is written plainly, as runtimes and engines write it.
// The decoder of encoding/json prepares itself for each type at every start of a program,
// and that takes longer than reading a small text.
//
// It never guesses. It refuses every text about which it could differ from encoding/json:
// the caller then asks that package. So it refuses names and values that are read and have
// an escape (but \" and \\) or a letter that is not ASCII, a name that is there twice or that differs from
// a known one by case only, null in place of what is read, and everything that is not JSON.
package plainjson

import (
	"strconv"
	"strings"
)

// Reader reads one text from its beginning to its end. After the first thing that is not
// plain, it reads nothing more, and End is false.
type Reader struct {
	text  string
	at    int
	depth int
	odd   bool
}

// New returns a Reader at the beginning of a text.
func New(text []byte) *Reader { return &Reader{text: string(text)} }

// End reports whether all was plain, and nothing follows.
func (r *Reader) End() bool {
	r.space()
	return !r.odd && r.at == len(r.text)
}

// maxDepth bounds how deeply objects and arrays are nested.
const maxDepth = 64

// Object reads an object. For each of names that is in it, it calls read with the position
// in names. read must read the value. Other names are passed over.
func (r *Reader) Object(names []string, read func(i int)) {
	seen := uint64(0)
	if len(names) > 64 {
		r.odd = true
	}
	r.members(func(name string) {
		for i, known := range names {
			if name == known && seen&(1<<i) == 0 {
				seen |= 1 << i
				read(i)
				return
			}
			if strings.EqualFold(name, known) {
				r.odd = true
				return
			}
		}
		r.Skip()
	})
}

// Strings reads an object whose values are strings.
func (r *Reader) Strings() map[string]string {
	all := map[string]string{}
	r.members(func(name string) {
		if _, twice := all[name]; twice {
			r.odd = true
			return
		}
		all[name] = r.String()
	})
	return all
}

// Array reads an array. It calls read for each element, which read must read.
func (r *Reader) Array(read func()) {
	r.list('[', ']', read)
}

// StringArray reads an array of strings.
func (r *Reader) StringArray() []string {
	all := []string{}
	r.Array(func() { all = append(all, r.String()) })
	return all
}

// String reads a string. Of escapes, only those of a quote and of a backslash are plain.
func (r *Reader) String() string {
	r.space()
	if !r.next('"') {
		return ""
	}
	begin, escaped := r.at, false
	for ; r.at < len(r.text); r.at++ {
		c := r.text[r.at]
		if c == '"' {
			text := r.text[begin:r.at]
			r.at++
			if escaped {
				text = unescape.Replace(text)
			}
			return text
		}
		if c == '\\' && r.at+1 < len(r.text) && (r.text[r.at+1] == '"' || r.text[r.at+1] == '\\') {
			escaped = true
			r.at++
		} else if c < ' ' || c > '~' || c == '\\' {
			break
		}
	}
	r.odd = true
	return ""
}

var unescape = strings.NewReplacer(`\"`, `"`, `\\`, `\`)

// Int reads a whole number, but not -0, which encoding/json refuses for some types.
func (r *Reader) Int() int64 {
	r.space()
	begin := r.at
	r.number()
	n, err := strconv.ParseInt(r.text[begin:r.at], 10, 64)
	r.odd = r.odd || err != nil || r.text[begin:r.at] == "-0"
	return n
}

// Bool reads true or false.
func (r *Reader) Bool() bool {
	r.space()
	if r.at < len(r.text) && r.text[r.at] == 't' {
		r.word("true")
		return true
	}
	r.word("false")
	return false
}

// members reads an object and calls read for each value of it.
func (r *Reader) members(read func(name string)) {
	r.list('{', '}', func() {
		name := r.String()
		r.space()
		if r.next(':') {
			read(name)
		}
	})
}

// list reads what is between brackets and separated by commas.
func (r *Reader) list(open, end byte, read func()) {
	r.space()
	if r.depth++; !r.next(open) || r.depth > maxDepth {
		r.odd = true
		return
	}
	r.space()
	if r.at < len(r.text) && r.text[r.at] == end {
		r.at++
		r.depth--
		return
	}
	for !r.odd {
		read()
		r.space()
		if r.odd || r.at == len(r.text) {
			r.odd = true
			return
		}
		c := r.text[r.at]
		r.at++
		if c == end {
			r.depth--
			return
		}
		if c != ',' {
			r.odd = true
		}
	}
}

// Skip reads a value of any kind.
func (r *Reader) Skip() {
	r.space()
	if r.odd || r.at == len(r.text) {
		r.odd = true
		return
	}
	switch r.text[r.at] {
	case '{':
		r.list('{', '}', func() {
			r.skipString()
			r.space()
			r.next(':')
			r.Skip()
		})
	case '[':
		r.list('[', ']', r.Skip)
	case '"':
		r.skipString()
	case 't':
		r.word("true")
	case 'f':
		r.word("false")
	case 'n':
		r.word("null")
	default:
		r.number()
	}
}

// skipString reads a string with escapes and letters of any kind.
func (r *Reader) skipString() {
	r.space()
	if !r.next('"') {
		return
	}
	for r.at < len(r.text) {
		c := r.text[r.at]
		r.at++
		switch {
		case c == '"':
			return
		case c < ' ':
			r.odd = true
			return
		case c == '\\':
			if !r.escape() {
				r.odd = true
				return
			}
		}
	}
	r.odd = true
}

// escape reads what follows a backslash.
func (r *Reader) escape() bool {
	if r.at == len(r.text) {
		return false
	}
	c := r.text[r.at]
	r.at++
	if c != 'u' {
		return strings.IndexByte(`"\/bfnrt`, c) >= 0
	}
	for range 4 {
		if r.at == len(r.text) || strings.IndexByte("0123456789abcdefABCDEF", r.text[r.at]) < 0 {
			return false
		}
		r.at++
	}
	return true
}

// number reads a number of any kind (https://www.rfc-editor.org/rfc/rfc8259#section-6).
func (r *Reader) number() {
	if r.at < len(r.text) && r.text[r.at] == '-' {
		r.at++
	}
	if r.at < len(r.text) && r.text[r.at] == '0' {
		r.at++
	} else {
		r.digits()
	}
	if r.at < len(r.text) && r.text[r.at] == '.' {
		r.at++
		r.digits()
	}
	if r.at < len(r.text) && (r.text[r.at] == 'e' || r.text[r.at] == 'E') {
		r.at++
		if r.at < len(r.text) && (r.text[r.at] == '+' || r.text[r.at] == '-') {
			r.at++
		}
		r.digits()
	}
}

// digits reads at least one digit.
func (r *Reader) digits() {
	begin := r.at
	for r.at < len(r.text) && '0' <= r.text[r.at] && r.text[r.at] <= '9' {
		r.at++
	}
	if r.at == begin {
		r.odd = true
	}
}

func (r *Reader) word(word string) {
	if r.odd || !strings.HasPrefix(r.text[r.at:], word) {
		r.odd = true
		return
	}
	r.at += len(word)
}

// next reads one character.
func (r *Reader) next(c byte) bool {
	if r.odd || r.at == len(r.text) || r.text[r.at] != c {
		r.odd = true
		return false
	}
	r.at++
	return true
}

func (r *Reader) space() {
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}
