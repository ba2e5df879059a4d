// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// docs/configuration.md has every key in its table, and its example is a configuration.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	var example strings.Builder
	for line := range strings.Lines(string(text)) {
		if indented, ok := strings.CutPrefix(line, "    "); ok {
			example.WriteString(indented)
		}
		if row, ok := strings.CutPrefix(line, "| `"); ok {
			key, _, _ := strings.Cut(row, "`")
			documented[strings.Trim(key, "[]")] = true
		}
	}
	if c, err := Parse([]byte(example.String())); err != nil || len(c.Allow) != 1 || !c.Substitute {
		t.Errorf("the example: %v %+v", err, c)
	}
	fields := append(reflect.VisibleFields(reflect.TypeFor[Config]()),
		reflect.VisibleFields(reflect.TypeFor[units]())...)
	for _, field := range fields {
		key := field.Tag.Get("toml")
		if key != "-" && !documented[key] {
			t.Errorf("%s is not documented", key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("%s is documented, and there is none", key)
	}
}
