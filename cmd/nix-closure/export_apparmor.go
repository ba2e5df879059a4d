// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"strings"
	"unicode"
)

// appArmorRules are those of nixpkgs' apparmorRulesFromClosure: access, and what is below
// the store path.
var appArmorRules = [][2]string{
	{"r", ""},
	{"r", "/etc/**"},
	{"mr", "/share/**"},
	{"mr", "/lib/**.so*"}, // not all are named lib…: ld-2.30.so
	{"mr", "/lib64/**.so*"},
	{"r", "/lib/**"}, // lib/gconv/gconv-modules
	{"r", "/lib64/**"},
	{"ixr", "/libexec/**"},
}

// writeAppArmor writes rules, or a profile. For AppArmor a symlink is where it leads, so
// one gets no other rule than its own.
func (e exported) writeAppArmor(w *bufio.Writer) error {
	if strings.ContainsFunc(e.profile, unicode.IsControl) || strings.ContainsAny(e.profile, `"\`) {
		return fmt.Errorf("--profile %q: has a quote, a backslash or a control character", e.profile)
	}
	e.comment(w)
	indent := ""
	if e.profile != "" {
		indent = "  "
		_, _ = fmt.Fprintf(w, `include <tunables/global>

profile "%s" {
  include <abstractions/base>

`, appArmorText(e.profile))
	}
	for _, name := range e.closure.Names {
		mode, err := e.look(name)
		if err != nil {
			return err
		}
		rules := appArmorRules
		switch {
		case e.profile != "" && mode.IsDir():
			rules = [][2]string{{"r", ""}, {"r", "/"}, {"mrix", "/**"}}
		case e.profile != "" && mode&fs.ModeSymlink == 0:
			rules = [][2]string{{"mrix", ""}}
		case mode&fs.ModeSymlink != 0:
			rules = rules[:1]
		}
		for _, rule := range rules {
			_, _ = fmt.Fprintf(w, "%s%s \"%s%s\",\n", indent, rule[0], appArmorText(e.store.Path(name)), rule[1])
		}
	}
	if e.profile != "" {
		_, _ = w.WriteString("}\n")
	}
	return nil
}

// appArmorText is a text in a rule's quotes, where some characters are patterns.
func appArmorText(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `?`, `\?`, `*`, `\*`, `[`, `\[`, `]`, `\]`,
		`{`, `\{`, `}`, `\}`, `^`, `\^`, `@`, `\@`).Replace(text)
}
