// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// podman looks at podman of each user.
func (e *exam) podman(ctx context.Context) {
	defer func(owner int) { e.owner = owner }(e.owner)
	for _, user := range e.Users {
		e.owner = user.UID
		p, err := engineconfig.ReadPodman(user.PodmanUser)
		if p.Program == "" {
			return
		}
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				e.unknown("podman", "podman of "+user.Name, err)
				continue
			}
			e.find(Finding{
				ID: "podman-conf", Severity: Closed, Engine: "podman",
				What:        fmt.Sprintf("podman of %s cannot read its configuration: %s", user.Name, oneLine(err)),
				Consequence: "podman starts nothing", Advice: "mend the file",
			})
			continue
		}
		e.fact("podman of "+user.Name, "hook files are in "+strings.Join(p.HooksDirs, " and "))
		wrapper := filepath.Base(p.Runtime) == engineconfig.RuntimeProgram
		if wrapper {
			e.program("podman", p.Runtime, engineconfig.RuntimeProgram, whereMissing{
				severity: Closed, consequence: "podman starts nothing",
				fix: []string{e.install("podman", "--set-as-default")},
			})
			e.wrapped("podman")
		}
		e.hookFiles("podman", user.Name, p.HooksDirs, wrapper)
		e.imagesAnnotations(ctx, p.Program)
		if e.Canary {
			e.podmanCanary(ctx, p.Program, user)
		}
	}
}

// A file of hooks may be wrong in these ways. Each is for files, which are ours or meant to be.
type hookFault struct {
	id          string
	severity    Severity
	what        string
	consequence string
	files       []string
}

// hookFiles looks at the hook files of podman or CRI-O. Where the engine's runtime is
// the wrapper, containers come to the hook without them.
func (e *exam) hookFiles(engine, user string, dirs []string, wrapper bool) {
	files, unreadable := engineconfig.HookFiles(dirs)
	for _, path := range sortedKeys(unreadable) {
		e.unreadableHook(engine, path, unreadable[path])
	}
	files = slices.DeleteFunc(files, func(f engineconfig.HookFile) bool { return !f.Ours() })
	var creates, ends bool
	var faults []hookFault
	fault := func(f engineconfig.HookFile, id string, severity Severity, what, consequence string) {
		for i := range faults {
			if faults[i].id == id && faults[i].what == what {
				faults[i].files = append(faults[i].files, f.File)
				return
			}
		}
		faults = append(faults, hookFault{
			id: id, severity: severity, what: what, consequence: consequence, files: []string{f.File},
		})
	}
	open := Open
	if wrapper {
		open = Warning
	}
	for _, f := range files {
		isCreate := slices.Contains(f.Stages, "createRuntime") || slices.Contains(f.Stages, "prestart")
		creates = creates || isCreate
		ends = ends || slices.Contains(f.Stages, "poststop")
		e.trusted(engine, f.File)
		e.readableByOthers(engine, f.File)
		if isCreate {
			judgeHook(f, engine, open, fault)
		}
		if f.Hook.Path != "" {
			e.program(engine, f.Hook.Path, engineconfig.HookProgram, whereMissing{
				severity:    open,
				consequence: engine + " skips the hook, says nothing, and starts the container without its closure",
				fix:         e.replaceHook(engine, hookFilesOf(files, f.Hook.Path)),
			})
		}
	}
	for _, f := range faults {
		e.find(Finding{
			ID: f.id, Severity: f.severity, Engine: engine, What: strings.Join(f.files, " and ") + ": " + f.what,
			Consequence: f.consequence, Fix: e.replaceHook(engine, f.files),
		})
	}
	switch {
	case len(unreadable) > 0:
		// The engine starts nothing.
	case !creates && !wrapper:
		what := fmt.Sprintf("%s of %s has no hook file for createRuntime, in %s", engine, user,
			strings.Join(dirs, " and "))
		if hidden, _ := engineconfig.HookFiles([]string{engineconfig.PodmanHooksDir}); slices.ContainsFunc(hidden,
			engineconfig.HookFile.Ours) && !slices.Contains(dirs, engineconfig.PodmanHooksDir) {
			what += "; those in " + engineconfig.PodmanHooksDir + " are not read"
		}
		e.find(Finding{
			ID: "no-hook", Severity: Open, Engine: engine, What: what,
			Consequence: "containers with an annotation start without their closure, and nothing says so",
			Fix:         e.installAndRestart(engine),
		})
	case creates && !ends:
		e.find(Finding{
			ID: "no-poststop", Severity: Warning, Engine: engine, What: engine + " has no hook file for poststop",
			Consequence: "GC roots and records of containers that ended stay until others start or end",
			Fix:         e.installAndRestart(engine),
		})
	}
}

func (e *exam) installAndRestart(engine string) []string {
	if engine == "cri-o" {
		return []string{e.install(engine), engineconfig.RestartCRIO}
	}
	return []string{e.install(engine)}
}

// replaceHook is how hook files are taken for those of install.
func (e *exam) replaceHook(engine string, files []string) []string {
	return append([]string{"rm -f " + quoteAll(files)}, e.installAndRestart(engine)...)
}

func hookFilesOf(files []engineconfig.HookFile, program string) (paths []string) {
	for _, f := range files {
		if f.Hook.Path == program {
			paths = append(paths, f.File)
		}
	}
	return paths
}

func (e *exam) unreadableHook(engine, path string, err error) {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 && engine != "podman" {
		e.unknown(engine, path, err)
		return
	}
	f := Finding{
		ID: "hook-file", Severity: Closed, Engine: engine,
		What:        fmt.Sprintf("%s cannot be read: %s", path, oneLine(err)),
		Consequence: engine + " starts no container", Advice: "mend or remove the file",
	}
	if strings.Contains(filepath.Base(path), "nix-closure") {
		f.Fix, f.Advice = e.replaceHook(engine, []string{path}), ""
	}
	e.find(f)
}

// readableByOthers: podman of ordinary users reads root's hook files too.
func (e *exam) readableByOthers(engine, path string) {
	info, err := os.Stat(path)
	if err != nil || info.Mode()&0o004 != 0 || engine != "podman" || !strings.HasPrefix(path, "/usr/") {
		return
	}
	e.find(Finding{
		ID: "hook-file-mode", Severity: Closed, Engine: engine,
		What:        fmt.Sprintf("%s cannot be read by ordinary users (mode %04o)", path, info.Mode().Perm()),
		Consequence: "their podman starts no container",
		Fix:         []string{"chmod 0644 " + quote(path)},
	})
}

// Annotations that the hook must be called for, and some that are not its own.
var (
	ours = []string{
		"nix-closure/roots", "nix-closure/closure-info", "nix-closure/mode", "nix-closure/registration",
		"nix-closure/listing", "nix-closure/writable", "nix-closure/misspelt", "web.nix-closure/roots",
		"web-1.nix-closure/closure-info",
	}
	values = []string{"", "true", "/nix/store/x", "/nix/store/x\n/nix/store/y"}
	others = []string{"not-nix-closure/roots", "org.example/web.nix-closure/roots", "org.example/x"}
)

// judgeHook looks at the hook file that calls the hook before a container starts.
func judgeHook(
	f engineconfig.HookFile, engine string, open Severity,
	fault func(f engineconfig.HookFile, id string, severity Severity, what, consequence string),
) {
	const without = "such containers start without their closure"
	switch {
	case f.When.HasBindMounts != nil || f.When.Commands != nil:
		fault(f, "hook-when", open, "`when` has more than annotations: the hook is called only if all of it holds",
			"other containers start without their closure")
	case !matchesAll(f, ours[:1]):
		fault(f, "hook-annotations", open, "the hook is not called for a container with nix-closure/roots, "+
			"of whatever value", without)
	case !matchesAll(f, ours[7:]):
		fault(f, "hook-annotations", open, "the hook is not called for keys of one container, as "+ours[7], without)
	case !matchesAll(f, ours):
		fault(f, "hook-annotations", open, "the hook is not called for every key below nix-closure/, misspelt ones too",
			without)
	case slices.ContainsFunc(others, func(key string) bool { return f.Matches(key, "x") }):
		fault(f, "hook-anchors", Warning, "the pattern is not anchored, or matches too much: "+
			"write ^ before and $ after it",
			"containers without an annotation of nix-closure start a process more")
	}
	switch stage := f.Stage(); {
	case stage != "createRuntime" && stage != "prestart":
		fault(f, "hook-stage", open, fmt.Sprintf("the hook is called for createRuntime and is told %q", stage),
			"it does nothing, or something else, and containers start without their closure")
	case f.Engine() != engine:
		fault(f, "hook-engine", Warning, fmt.Sprintf("the hook is told --engine %q, not %s", f.Engine(), engine),
			"what the engine says of containers is not believed, and some are refused")
	case len(f.Hook.Env) == 0:
		fault(f, "hook-env", Warning, "the hook has no `env`",
			"some runtimes give it the environment of the container's image")
	}
}

func matchesAll(f engineconfig.HookFile, keys []string) bool {
	for _, key := range keys {
		for _, value := range values {
			if !f.Matches(key, value) {
				return false
			}
		}
	}
	return true
}

// imagesAnnotations: podman before 4.5.1 puts an image's annotations on the container.
func (e *exam) imagesAnnotations(ctx context.Context, podman string) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, podman, "--version")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.Output()
	fields := strings.Fields(string(out))
	if err != nil || len(fields) == 0 {
		return
	}
	version := fields[len(fields)-1]
	e.fact("podman", "version "+version)
	if !before(version, 4, 5, 1) || len(e.config.Allow) > 0 || e.config.StoreDir == "" {
		return
	}
	e.find(Finding{
		ID: "podman-images", Severity: Warning, Engine: "podman",
		What:        "podman " + version + " puts an image's annotations on its containers, and there is no [[allow]]",
		Consequence: "an image can ask for the closure of any valid store path, for whoever runs it",
		Advice: "podman 4.5.1 or later, or [[allow]] rules in " + e.Config +
			": docs/engines.md, An image may ask for more",
	})
}

// before compares a version with another.
func before(version string, than ...int) bool {
	parts := strings.Split(strings.SplitN(version, "-", 2)[0], ".")
	for i, n := range than {
		if i >= len(parts) {
			return true
		}
		part, err := strconv.Atoi(parts[i])
		if err != nil {
			return false
		}
		if part != n {
			return part < n
		}
	}
	return false
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
