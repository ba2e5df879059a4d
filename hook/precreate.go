// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"io"

	"github.com/nix-closure/nix-closure/spec"
)

// precreate copies a config.json from in to out, without the mounts that the
// view replaces. It refuses a container with a mount that leaks the store, and
// one whose annotations are not understood, before there is a container.
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
		// Engines write absolute sources: the bundle is not known at this stage.
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

// rewrite takes the mounts that the view replaces out of a config.json, and adds hooks.
// It returns nil for a container that asks for nothing. container lacks what text has;
// its annotations are the text's if it has none. reading says in a message what was
// read; stage is for the log.
func rewrite(configPath, stage string, container Container, reading string, text []byte, hooks []spec.StageHook) ([]byte, error) {
	parsed, err := spec.ParseConfig(text)
	if err != nil {
		return nil, &failure{"", reading, err}
	}
	container.Mounts, container.Root = parsed.Mounts, parsed.Root
	if container.Annotations == nil {
		container.Annotations = parsed.Annotations
	}
	request, replaced, err := CheckContainer(configPath, container)
	if err != nil || request == nil {
		return nil, err
	}
	text, err = spec.Rewrite(text, replaced, hooks...)
	if err != nil {
		return nil, &failure{"", "rewriting config.json", err}
	}
	if len(replaced) == 0 {
		return text, nil
	}
	log := logFor(configPath, stage, container.ID)
	for _, i := range replaced {
		m := parsed.Mounts[i]
		log.Info("mount removed from config.json", "destination", m.Destination, "source", m.Source)
	}
	return text, nil
}
