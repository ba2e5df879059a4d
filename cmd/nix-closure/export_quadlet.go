// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/nix-closure/nix-closure/spec"
)

// writeQuadlet writes the annotation that asks for the roots: the hook finds the closure.
// A colon between them needs no quotes.
func (e exported) writeQuadlet(w *bufio.Writer) error {
	e.comment(w)
	roots := strings.ReplaceAll(strings.Join(e.paths(e.roots), ":"), "%", "%%")
	if strings.ContainsAny(roots, " \t'\"\\") {
		return fmt.Errorf("%s: has a character that needs quotes in an annotation", e.store.Dir)
	}
	_, err := fmt.Fprintf(w, "[Container]\nAnnotation=%s=%s\n", spec.Prefix+spec.KeyRoots, roots)
	return err
}
