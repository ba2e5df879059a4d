// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"io"

	"github.com/nix-closure/nix-closure/spec"
)

// precreate copies a config.json from in to out, without the mounts that the view
// replaces. It refuses a container before creation if a mount leaks the store or its
// annotations are not understood.
func precreate(call Call, in io.Reader, out io.Writer) error {
	err := precreateTo(call, in, out)
	if err != nil {
		logError(logFor(call.Config, "precreate", ""), err)
	}
	return err
}

func precreateTo(call Call, in io.Reader, out io.Writer) error {
	const doing = "reading config.json from standard input"
	text, err := spec.ReadLimited(in, spec.MaxConfig)
	if err != nil {
		return &failure{"", doing, err}
	}
	annotations, err := spec.ParseConfigAnnotations(text)
	if err != nil {
		return &failure{"", doing, err}
	}
	if annotations, err = call.add(annotations); err != nil {
		return &failure{"", "reading the annotations", err}
	}
	if spec.Annotated(annotations) {
		// The bundle is not known at this stage, and engines write absolute sources.
		c := Container{Engine: call.Engine, Bundle: "/", Annotations: annotations}
		rewritten, err := rewrite(call.Config, "precreate", c, doing, text, nil)
		if err != nil {
			return err
		}
		if rewritten != nil {
			text = rewritten
		}
	}
	if _, err := out.Write(text); err != nil {
		return &failure{"", "writing config.json to standard output", err}
	}
	return nil
}
