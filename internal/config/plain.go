// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/nix-closure/nix-closure/spec"
)

// parsePlain parses a configuration that has only empty lines, lines with a comment, and
// lines with a key and a text or truth value, such as most hosts have: every command of a
// container's runtime reads it, and the TOML decoder takes longer to prepare itself than
// this does for the whole. ok is false for every other text, which may be right or wrong:
// only the TOML decoder knows.
func parsePlain(text string) (_ Config, ok bool) {
	c := Default()
	mode := string(c.Mode)
	texts := map[string]*string{
		"store-dir": &c.StoreDir, "state-dir": &c.StateDir, "runtime-dir": &c.RuntimeDir, "log-file": &c.LogFile,
		"mode": &mode, "nix-store": &c.NixStore, "runtime": &c.Runtime, "engine": &c.Engine,
	}
	truths := map[string]*bool{"substitute": &c.Substitute, "shared-pid": &c.SharedPID, "fuse": &c.FUSE}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			return Config{}, false
		}
		line = strings.Trim(line, " ")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimRight(key, " "), strings.TrimLeft(value, " ")
		if to := truths[key]; to != nil && (value == "true" || value == "false") {
			*to = value == "true"
		} else if to := texts[key]; to != nil && isPlainText(value) {
			*to = value[1 : len(value)-1]
		} else {
			return Config{}, false
		}
		delete(truths, key) // a key that comes twice is wrong
		delete(texts, key)
	}
	c.Mode = spec.Mode(mode)
	return c, true
}

// isPlainText reports whether a value is a text in quotes and has nothing with a meaning
// between them.
func isPlainText(value string) bool {
	return len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' &&
		!strings.ContainsAny(value[1:len(value)-1], `"\`)
}
