// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/atomicfile"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/nopoll"
	"github.com/nix-closure/nix-closure/spec"
)

const readingConfig = "reading config.json"

// runtimeStage stands in the log for the stage, when a runtime was called and not the
// hook.
const runtimeStage = "runtime"

// AddHooks adds the hook to the config.json of a bundle, and removes the mounts that the
// view replaces. bundle is as the runtime was given it; program is the absolute path of
// the hook. AddHooks writes nothing if the container asks for no closure, or is a pod's
// sandbox that needs no hook. It replaces the file as a whole and keeps its owner and mode.
// container is the ID, for the log.
func AddHooks(configPath, container, bundle, program string) error {
	if bundle == "" {
		bundle = "."
	}
	// Do not clean the path: `link/..` is not the directory that contains link.
	file := bundle + "/config.json"
	text, annotated, err := readAnnotated(file)
	if err != nil || !annotated {
		return err
	}
	absolute, err := filepath.EvalSymlinks(bundle)
	if err == nil {
		absolute, err = filepath.Abs(absolute)
	}
	if err != nil {
		return &failure{"", readingConfig, err}
	}
	c, err := config.Read(configPath)
	if err != nil {
		return &failure{"", "reading the configuration", err}
	}
	engine := cmp.Or(spec.EngineOfBundle(absolute, container), spec.Engine(c.Engine))
	var hooks []spec.StageHook
	for _, stage := range []string{"createRuntime", "poststop"} {
		hooks = append(hooks, spec.StageHook{Stage: stage, Hook: specs.Hook{
			Path: program, Args: EntryArgs(config.Path, engine, stage), Env: spec.HookEnv(),
		}})
	}
	asked := Container{ID: container, Engine: engine, Bundle: absolute}
	text, err = rewrite(configPath, runtimeStage, asked, readingConfig, text, hooks)
	if err != nil || text == nil {
		return err
	}
	if err := unix.Access(program, unix.X_OK); err != nil {
		return &failure{"", "looking for the hook", &os.PathError{Op: "access", Path: program, Err: err}}
	}
	if err := atomicfile.Replace(file, text); err != nil {
		return &failure{"", "writing config.json", err}
	}
	return nil
}

// EntryArgs returns the arguments of a hook entry in a container's config.json. Every
// program that adds an entry writes the same arguments, so a container that passes two of
// them gets one entry.
func EntryArgs(configPath string, engine spec.Engine, stage string) []string {
	args := []string{"nix-closure-hook"}
	if configPath != config.Path {
		args = append(args, "--config", configPath)
	}
	if engine != spec.UnknownEngine {
		args = append(args, "--engine", string(engine))
	}
	return append(args, stage)
}

// HasAnnotations reports whether the config.json at file has an annotation of this
// program. It fails if it cannot find out.
func HasAnnotations(file string) (bool, error) {
	_, annotated, err := readAnnotated(file)
	return annotated, err
}

// readAnnotated returns nothing for a file that no runtime could read either: the runtime
// reports that error.
func readAnnotated(file string) (text []byte, annotated bool, _ error) {
	// O_NONBLOCK: do not wait for a writer if the file is a pipe.
	f, err := nopoll.Open(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	for _, notThere := range []error{
		os.ErrNotExist, os.ErrPermission, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.ENXIO,
	} {
		if errors.Is(err, notThere) {
			return nil, false, nil
		}
	}
	if err != nil {
		return nil, false, &failure{"", readingConfig, err}
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		return nil, false, nil
	case !st.Mode().IsRegular():
		err = &os.PathError{Op: "read", Path: file, Err: errors.New("not a regular file; what the hook reads " +
			"from it the runtime would miss")}
	default:
		if text, err = spec.ReadLimited(f, spec.MaxConfig); err == nil {
			annotated, err = spec.HasAnnotations(text)
		}
	}
	if err != nil {
		return nil, false, &failure{"", readingConfig, err}
	}
	return text, annotated, nil
}

// rewrite removes the mounts that the view replaces from a config.json, and adds hooks.
// It returns nil for a container that asks for nothing, and for a sandbox that needs no
// hook. It completes container with the mounts and the root of text, and with the
// annotations of text if container has none. reading names what was read, for an error;
// stage is for the log.
func rewrite(
	configPath, stage string, container Container, reading string, text []byte, hooks []spec.StageHook,
) ([]byte, error) {
	parsed, err := spec.ParseConfig(text)
	if err != nil {
		return nil, &failure{"", reading, err}
	}
	container.Mounts, container.Root = parsed.Mounts, parsed.Root
	if container.Annotations == nil {
		container.Annotations = parsed.Annotations
	}
	inspected, err := checkContainer(configPath, container, len(hooks) > 0)
	if err != nil || inspected == nil || inspected.needsNoHook(container, parsed) {
		return nil, err
	}
	replaced := inspected.mounts.replaced
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
		log.WithFields(logrus.Fields{
			"destination": m.Destination, "source": m.Source,
		}).Info("mount removed from config.json")
	}
	return text, nil
}
