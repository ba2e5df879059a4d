// SPDX-License-Identifier: Apache-2.0

package plainjson

import (
	"encoding/json"
	"strconv"
)

// Writer writes one JSON object, as json.Marshal writes a struct or a map with these names
// and values. Names must be plain.
type Writer struct{ text []byte }

// name begins the next member.
func (w *Writer) name(name string) {
	if w.text == nil {
		w.text = append(make([]byte, 0, 1024), '{')
	} else {
		w.text = append(w.text, ',')
	}
	w.text = append(append(append(w.text, '"'), name...), `":`...)
}

// String writes a string.
func (w *Writer) String(name, value string) {
	w.name(name)
	w.string(value)
}

// Strings writes an array of strings.
func (w *Writer) Strings(name string, values []string) {
	w.name(name)
	w.text = append(w.text, '[')
	for i, v := range values {
		if i > 0 {
			w.text = append(w.text, ',')
		}
		w.string(v)
	}
	w.text = append(w.text, ']')
}

// Int writes a number.
func (w *Writer) Int(name string, value int64) {
	w.name(name)
	w.text = strconv.AppendInt(w.text, value, 10)
}

// Bool writes true or false.
func (w *Writer) Bool(name string, value bool) {
	w.name(name)
	w.text = strconv.AppendBool(w.text, value)
}

// Text returns the whole object.
func (w *Writer) Text() []byte {
	if w.text == nil {
		return []byte("{}")
	}
	return append(w.text, '}')
}

func (w *Writer) string(value string) {
	for _, c := range []byte(value) {
		if c < ' ' || c > '~' || c == '<' || c == '>' || c == '&' {
			text, err := json.Marshal(value)
			if err != nil {
				panic(err) // a string can always be encoded
			}
			w.text = append(w.text, text...)
			return
		}
	}
	w.text = append(w.text, '"')
	for _, c := range []byte(value) {
		if c == '"' || c == '\\' {
			w.text = append(w.text, '\\')
		}
		w.text = append(w.text, c)
	}
	w.text = append(w.text, '"')
}
