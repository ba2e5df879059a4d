// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// member is one of a JSON object, by where it is in the text.
type member struct {
	key        string
	begin      int // of the key
	from, to   int // of the value
	beforeThis int // the end of what is before the key and its white space
}

// object is a JSON object, by where it is in the text.
type object struct {
	open, end int // `{`, and `}`
	members   []member
}

// parseObject finds the members of the object at an offset.
func parseObject(text []byte, at int) (o object, _ error) {
	d := json.NewDecoder(bytes.NewReader(text[at:]))
	first, err := d.Token()
	if err != nil {
		return o, err
	}
	if first != json.Delim('{') {
		return o, errors.New("not a JSON object")
	}
	o.open = at + int(d.InputOffset()) - 1
	last := o.open + 1
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return o, err
		}
		name, ok := key.(string)
		if !ok {
			return o, errors.New("a key that is no string")
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return o, err
		}
		m := member{key: name, beforeThis: last, to: at + int(d.InputOffset())}
		m.from = m.to - len(value)
		m.begin = last + bytes.IndexByte(text[last:], '"')
		o.members = append(o.members, m)
		last = m.to
	}
	if _, err := d.Token(); err != nil {
		return o, err
	}
	o.end = at + int(d.InputOffset()) - 1
	return o, nil
}

// find is the last member of that key: of two, that one counts.
func (o object) find(key string) *member {
	for i, m := range slices.Backward(o.members) {
		if m.key == key {
			return &o.members[i]
		}
	}
	return nil
}

// setJSON sets the member that a path leads to, and changes no other byte: neither the
// order of keys nor white space. depth is that of the object, for its indentation.
func setJSON(text []byte, at, depth int, path []string, value string) ([]byte, error) {
	o, err := parseObject(text, at)
	if err != nil {
		return nil, err
	}
	m := o.find(path[0])
	if m != nil && len(path) > 1 {
		return setJSON(text, m.from, depth+1, path[1:], value)
	}
	if m != nil {
		return slices.Concat(text[:m.from], []byte(value), text[m.to:]), nil
	}
	for _, key := range slices.Backward(path[1:]) {
		value = fmt.Sprintf("{%s: %s}", quoteJSON(key), value)
	}
	added := quoteJSON(path[0]) + ": " + value
	if len(o.members) == 0 {
		indent := "\n" + strings.Repeat("  ", depth)
		return slices.Concat(text[:o.open+1], []byte(indent+"  "+added+indent), text[o.end:]), nil
	}
	last := o.members[len(o.members)-1]
	// As far from the one before as that is from what is before it.
	space := strings.TrimLeft(string(text[last.beforeThis:last.begin]), ",")
	space = strings.ReplaceAll(space, ",", "")
	return slices.Concat(text[:last.to], []byte(","+space+added), text[last.to:]), nil
}

// checkJSON refuses what is not one JSON object.
func checkJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	var one map[string]any
	if err := d.Decode(&one); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON object")
	}
	return nil
}
