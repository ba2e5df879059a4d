// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// The file of the packages changes nothing, and its commented lines have every key with its
// default.
func TestPackaged(t *testing.T) {
	text, err := os.ReadFile("../../packaging/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Parse(text); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("as it is: %+v %v", c, err)
	}
	key := regexp.MustCompile(`(?m)^#([a-z-]+) = `)
	all := key.ReplaceAllString(string(text), "$1 = ")
	// The paths of root, whoever runs this.
	want := Default()
	want.RuntimeDir, want.LogFile = "/run/nix-closure", "/var/log/nix-closure.log"
	if c, err := Parse([]byte(all)); err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("without the comments: %+v %v", c, err)
	}
	fields := append(reflect.VisibleFields(reflect.TypeFor[Config]()),
		reflect.VisibleFields(reflect.TypeFor[units]())...)
	for _, field := range fields {
		name := field.Tag.Get("toml")
		if name != "-" && name != "allow" && !strings.Contains(all, "\n"+name+" = ") {
			t.Errorf("no line for %s", name)
		}
	}
}
