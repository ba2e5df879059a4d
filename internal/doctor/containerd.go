// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

const withoutClosure = "containers with an annotation start without their closure, and nothing says so"

// containerd looks at containerd's runtimes as the daemon that runs has them, and as its
// files will have them when it starts again.
func (e *exam) containerd(ctx context.Context) {
	c, err := engineconfig.FindContainerd(ctx, "")
	if c == nil {
		return
	}
	if err != nil {
		e.unknown("containerd", "its configuration", err)
		return
	}
	e.fact("containerd", c.Config)
	if !c.CRI {
		e.find(Finding{
			ID: "unknown", Severity: Unknown, Engine: "containerd", What: "containerd's CRI plugin is disabled",
			Consequence: "whether its clients name " + engineconfig.RuntimeProgram + " as the runtime is not known",
		})
		return
	}
	files := e.other()
	files.runtimes(c, c.Runtimes)
	inForce, running := c.Runtimes, false
	if c.PID == 0 {
		e.fact("containerd", "does not run; its files are looked at")
	} else if status, err := criStatus(ctx, c.Address); err != nil {
		e.unknown("containerd", "what the daemon has in force, by "+c.Address, err)
	} else if inForce, err = runtimesOf(status); err != nil {
		e.unknown("containerd", "what the daemon has in force, by "+c.Address, err)
		inForce = c.Runtimes
	} else {
		running = true
	}
	if running && !sameRuntimes(inForce, c.Runtimes) && !files.report.FailsOpen() {
		e.stale(c, inForce)
	}
	e.report.Facts = append(e.report.Facts, files.report.Facts...)
	for _, f := range files.report.Findings {
		e.find(f)
	}
	if e.Canary {
		e.criCanary(ctx, "containerd", c.PID, c.Address, inForce)
	}
}

// stale says what the daemon that runs does not know yet.
func (e *exam) stale(c *engineconfig.Containerd, inForce engineconfig.Runtimes) {
	now := e.other()
	now.runtimes(c, inForce)
	f := Finding{
		ID: "containerd-stale", Severity: Warning, Engine: "containerd",
		What:        "containerd runs with another configuration than its files have now",
		Consequence: "what its files say holds when it is started again",
		Fix:         []string{engineconfig.RestartContainerd},
	}
	for _, g := range now.report.Findings {
		if g.Severity == Open {
			f.Severity, f.Consequence = Open, g.What+": "+g.Consequence
			break
		}
	}
	e.find(f)
}

func sameRuntimes(a, b engineconfig.Runtimes) bool {
	ours := func(r engineconfig.Runtimes) map[string][3]any {
		m := map[string][3]any{}
		for name, h := range r.Handlers {
			if filepath.Base(h.BinaryName) == engineconfig.RuntimeProgram {
				m[name] = [3]any{h.BinaryName, fmt.Sprint(h.PodAnnotations), fmt.Sprint(h.ContainerAnnotations)}
			}
		}
		return m
	}
	return a.Default == b.Default && reflect.DeepEqual(ours(a), ours(b))
}

// runtimes looks at the two ways to the hook: handlers that are the wrapper, and the plugin.
func (e *exam) runtimes(c *engineconfig.Containerd, r engineconfig.Runtimes) {
	const engine = "containerd"
	fix := []string{e.install(engine, "--set-as-default"), engineconfig.RestartContainerd}
	if c.Config != engineconfig.ContainerdConfig {
		fix[0] = e.install(engine, "--set-as-default", "--config", quote(c.Config))
	}
	var wrappers []string
	for _, name := range sortedKeys(r.Handlers) {
		if filepath.Base(r.Handlers[name].BinaryName) == engineconfig.RuntimeProgram {
			wrappers = append(wrappers, name)
		}
	}
	e.fact(engine, fmt.Sprintf("the default handler is %q; the wrapper is %q", r.Default, wrappers))
	plugin := len(engineconfig.Processes(engineconfig.PluginProgram)) > 0
	required := c.NRI.Validator && slices.Contains(c.NRI.Required, Handler)
	byPlugin := c.NRI.Enabled && required
	if byPlugin && c.NRI.RejectHooks {
		e.find(Finding{
			ID: "nri-rejects-hooks", Severity: Closed, Engine: engine,
			What:        "NRI's default_validator refuses hooks of plugins (reject_oci_hook_adjustment)",
			Consequence: "no container with an annotation starts that comes by the plugin only", Fix: fix,
		})
	}
	if byPlugin && !plugin {
		e.find(Finding{
			ID: "nri-plugin-missing", Severity: Closed, Engine: engine,
			What:        "the plugin " + engineconfig.PluginProgram + " is required, and does not run here",
			Consequence: "containerd starts no container",
			Fix:         []string{"systemctl start " + engineconfig.PluginProgram},
		})
	}
	if slices.Contains(wrappers, r.Default) || byPlugin {
		if slices.Contains(c.NRI.Required, Handler) && !required {
			e.fact(engine, "required_plugins is ignored, because default_validator is not enabled: "+
				"only the wrapper counts")
		}
	} else {
		e.find(e.noDefault(c, r, plugin, len(wrappers) > 0, fix))
	}
	for _, name := range wrappers {
		e.handler(name, r.Handlers[name], r.Handlers["runc"], byPlugin, fix)
	}
	if len(wrappers) > 0 {
		e.wrapped(engine)
	}
}

// Handler is the name by which the plugin and the handler are known.
const Handler = engineconfig.Handler

// noDefault is the finding where a pod that names no RuntimeClass goes without.
func (e *exam) noDefault(
	c *engineconfig.Containerd, r engineconfig.Runtimes, plugin, wrapper bool, fix []string,
) Finding {
	f := Finding{ID: "containerd-no-way", Severity: Open, Engine: "containerd", Fix: fix, Consequence: withoutClosure}
	switch {
	case plugin && !c.NRI.Enabled:
		f.ID, f.What = "nri-disabled", "the plugin runs, and containerd has NRI disabled"
	case plugin && slices.Contains(c.NRI.Required, Handler):
		f.ID = "nri-not-validated"
		f.What = "required_plugins names nix-closure, and default_validator is not enabled: containerd ignores it"
		f.Consequence = "while the plugin is away, " + withoutClosure
	case plugin:
		f.ID, f.What = "nri-not-required", "containerd starts containers while the plugin is away"
		f.Consequence = "whenever it ends, or does not answer within two seconds, " + withoutClosure
	case wrapper:
		f.ID = "containerd-default"
		f.What = fmt.Sprintf("the default handler %q is not the wrapper", r.Default)
		f.Consequence = "pods with an annotation that name no RuntimeClass start without their closure"
	default:
		f.What = "no handler is " + engineconfig.RuntimeProgram + ", and the plugin does not run"
	}
	return f
}

// handler looks at a handler that is the wrapper.
func (e *exam) handler(name string, h, runc engineconfig.RuntimeHandler, byPlugin bool, fix []string) {
	const engine = "containerd"
	e.program(engine, h.BinaryName, engineconfig.RuntimeProgram, whereMissing{
		severity: Closed, consequence: "no container that comes by the handler " + name + " starts", fix: fix,
	})
	var missing []string
	for _, key := range ours {
		if !passes(h.PodAnnotations, key) {
			missing = append(missing, key)
		}
	}
	if len(missing) > 0 && !byPlugin {
		e.find(Finding{
			ID: "containerd-annotations", Severity: Open, Engine: engine,
			What: fmt.Sprintf("the handler %s does not pass %s on (pod_annotations = %q)", name, missing[0],
				h.PodAnnotations),
			Consequence: "pods with such an annotation start without their closure", Fix: fix,
		})
	}
	missing = nil
	for _, key := range ours {
		if !passes(h.ContainerAnnotations, key) {
			missing = append(missing, key)
		}
	}
	if len(missing) > 0 && !byPlugin {
		e.find(Finding{
			ID: "containerd-container-annotations", Severity: Open, Engine: engine,
			What: fmt.Sprintf("the handler %s does not pass a container's own %s on (container_annotations = %q)", name,
				missing[0], h.ContainerAnnotations),
			Consequence: "containers with such an annotation of their own start without their closure", Fix: fix,
		})
	}
	cgroup := func(h engineconfig.RuntimeHandler) bool {
		options, _ := h.Fields["options"].(map[string]any)
		return options["SystemdCgroup"] == true
	}
	if runc.Type == h.Type && cgroup(h) != cgroup(runc) {
		e.find(Finding{
			ID: "containerd-cgroup", Severity: Warning, Engine: engine,
			What: fmt.Sprintf("the handler %s has SystemdCgroup = %v, and runc has %v", name,
				cgroup(h), cgroup(runc)),
			Consequence: "one of them is not as the kubelet has it, and its pods do not start",
			Advice:      "write the same in both",
		})
	}
}

func passes(patterns []string, key string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, key)
		return ok && err == nil
	})
}

// wrapped looks at what the wrapper becomes.
func (e *exam) wrapped(engine string) {
	runtime := e.config.Runtime
	if runtime == "" {
		return // the configuration was not read
	}
	if engineconfig.FindProgram(runtime) != "" {
		return
	}
	e.find(Finding{
		ID: "runtime", Severity: Closed, Engine: engine,
		What: fmt.Sprintf("the runtime that the wrapper becomes, %q, is not there, or cannot be started",
			runtime),
		Consequence: "no container that comes by the wrapper starts",
		Fix:         e.runtimeFix(),
		Advice:      "name it by its absolute path as runtime in " + e.Config,
	})
}

// runtimeFix is to take out what names a runtime that is not there, where the default is.
func (e *exam) runtimeFix() []string {
	if _, err := os.Stat(e.Config); errors.Is(err, os.ErrNotExist) || engineconfig.FindProgram("runc") == "" {
		return nil
	}
	return []string{`sed -i '/^[[:space:]]*runtime[[:space:]]*=/d' ` + quote(e.Config)}
}

// isWrapper tells whether a path is of the wrapper, by its name.
func isWrapper(path string) bool {
	return strings.HasSuffix(path, "/"+engineconfig.RuntimeProgram)
}
