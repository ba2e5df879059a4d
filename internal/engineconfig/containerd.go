// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// ContainerdConfig is containerd's configuration if nobody says otherwise.
const ContainerdConfig = "/etc/containerd/config.toml"

// containerdDropIn is the file that install adds, in a directory that containerd
// imports.
const (
	containerdConfDir = "/etc/containerd/conf.d"
	containerdDropIn  = containerdConfDir + "/50-nix-closure.toml"
)

// Annotations are the patterns that a handler must pass on: path.Match's `*` does not
// match a slash.
var Annotations = []string{"nix-closure/*", "*.nix-closure/*"}

// Containerd is a containerd's configuration as its files say, with all imports.
type Containerd struct {
	Program string
	Config  string // config.toml
	PID     int    // of the daemon that reads it; 0: it does not run
	Address string // of its socket
	Version int    // of the form that the program prints
	CRI     bool   // whether the CRI plugin is enabled
	Runtimes
	NRI NRI
}

// Runtimes are a CRI engine's runtimes, by the names of their handlers.
type Runtimes struct {
	Default  string
	Handlers map[string]RuntimeHandler
}

// RuntimeHandler is one of them.
type RuntimeHandler struct {
	Type                 string
	PodAnnotations       []string
	ContainerAnnotations []string
	BinaryName           string
	Fields               map[string]any // as they are in the file
}

// NRI is what containerd does with plugins.
type NRI struct {
	Enabled     bool
	Validator   bool
	Required    []string
	RejectHooks bool
}

// FindContainerd finds a running containerd that serves Kubernetes, or what is
// installed. Its configuration is config, or, if that is empty, the one that the process
// was started with. Nil: there is no containerd.
func FindContainerd(ctx context.Context, config string) (*Containerd, error) {
	c := &Containerd{Program: FindProgram("containerd"), Config: config}
	for _, p := range Processes("containerd") {
		its, ok := p.Option("--config", "-c")
		if !ok {
			its = ContainerdConfig
		}
		if config != "" && its != config {
			continue
		}
		program, err := p.Executable()
		if err != nil || strings.HasSuffix(program, " (deleted)") {
			program = c.Program
		}
		found := &Containerd{Program: program, Config: its, PID: p.PID}
		found.Address, _ = p.Option("--address", "-a")
		if err := found.dump(ctx); err != nil {
			return found, err
		}
		// Docker's own serves no CRI.
		if found.CRI || config != "" {
			return found, nil
		}
	}
	if c.Config == "" {
		c.Config = ContainerdConfig
	}
	if c.Program == "" {
		if !exists(c.Config) {
			return nil, nil
		}
		return c, errors.New("containerd's program is at none of the usual places, and does not run")
	}
	// Docker and others bring a containerd that nobody has configured for CRI.
	if config == "" && !exists(c.Config) {
		return nil, nil
	}
	return c, c.dump(ctx)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dumpTime is for a program that takes some milliseconds.
const dumpTime = 5 * time.Second

// dump reads what `containerd config dump` prints: the files with their imports, as this
// containerd understands them.
func (c *Containerd) dump(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dumpTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Program, "--config", c.Config, "config", "dump")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s --config %s config dump: %w: %s", c.Program, c.Config, err,
			lastLine(errs.String()))
	}
	return c.parse(text)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// The plugins that are looked at, by the versions of the form.
const (
	criPlugin    = "io.containerd.cri.v1.runtime" // version 3 on: containerd 2
	oldCRIPlugin = "io.containerd.grpc.v1.cri"
	nriPlugin    = "io.containerd.nri.v1.nri"
)

func (c *Containerd) parse(text []byte) error {
	var file struct {
		Version  int                       `toml:"version"`
		Disabled []string                  `toml:"disabled_plugins"`
		GRPC     struct{ Address string }  `toml:"grpc"`
		Plugins  map[string]map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(text, &file); err != nil {
		return fmt.Errorf("the output of containerd config dump: %w", err)
	}
	c.Version = file.Version
	if c.Address == "" {
		c.Address = file.GRPC.Address
	}
	if server, ok := file.Plugins["io.containerd.server.v1.grpc"]; ok && c.Address == "" {
		c.Address, _ = server["address"].(string)
	}
	if c.Address == "" {
		c.Address = "/run/containerd/containerd.sock"
	}
	disabled := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(file.Disabled, n) })
	}
	cri, ok := file.Plugins[criPlugin]
	if !ok {
		cri, ok = file.Plugins[oldCRIPlugin]
	}
	c.CRI = ok && !disabled("cri", criPlugin, oldCRIPlugin)
	containerd, _ := cri["containerd"].(map[string]any)
	c.Default, _ = containerd["default_runtime_name"].(string)
	c.Handlers = map[string]RuntimeHandler{}
	runtimes, _ := containerd["runtimes"].(map[string]any)
	for name, value := range runtimes {
		if fields, ok := value.(map[string]any); ok {
			c.Handlers[name] = runtimeHandler(fields)
		}
	}
	nri, ok := file.Plugins[nriPlugin]
	validator, _ := nri["default_validator"].(map[string]any)
	c.NRI = NRI{
		Enabled:     ok && nri["disable"] != true && !disabled("nri", nriPlugin),
		Validator:   validator["enable"] == true,
		Required:    stringsOf(validator["required_plugins"]),
		RejectHooks: validator["enable"] == true && validator["reject_oci_hook_adjustment"] == true,
	}
	return nil
}

func runtimeHandler(fields map[string]any) RuntimeHandler {
	h := RuntimeHandler{Fields: fields}
	h.Type, _ = fields["runtime_type"].(string)
	h.PodAnnotations = stringsOf(fields["pod_annotations"])
	h.ContainerAnnotations = stringsOf(fields["container_annotations"])
	options, _ := fields["options"].(map[string]any)
	h.BinaryName, _ = options["BinaryName"].(string)
	return h
}

func stringsOf(value any) (all []string) {
	list, _ := value.([]any)
	for _, item := range list {
		if s, ok := item.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// PlanContainerd plans a file for containerd's conf.d with a handler that is the wrapper:
// otherwise it is as the handler that is the default now.
func PlanContainerd(ctx context.Context, programs, config string, asDefault bool) (Plan, error) {
	plan := Plan{Engine: "containerd"}
	c, err := FindContainerd(ctx, config)
	if err != nil {
		return plan, err
	}
	if c == nil {
		return plan, fmt.Errorf("there is no containerd: it does not run, and there is no %s; "+
			"name its configuration with --config", ContainerdConfig)
	}
	if !c.CRI {
		return plan, fmt.Errorf("containerd's CRI plugin is disabled (%s): without it, name %s as the runtime's "+
			"BinaryName where containers are made", c.Config, filepath.Join(programs, RuntimeProgram))
	}
	text, err := c.dropIn(programs, asDefault)
	if err != nil {
		return plan, err
	}
	if err := plan.create(containerdDropIn, text); err != nil {
		return plan, err
	}
	imported, err := c.imports(containerdDropIn)
	if err != nil {
		return plan, err
	}
	if !imported {
		before, err := readRegular(c.Config)
		if err != nil {
			return plan, err
		}
		text := before
		if text == nil {
			text = []byte("version = " + strconv.Itoa(min(c.Version, 3)) + "\n")
		}
		after, err := addImport(text, containerdConfDir+"/*.toml")
		if err != nil {
			return plan, fmt.Errorf("%s: %w", c.Config, err)
		}
		plan.edit(c.Config, before, after)
	}
	if !asDefault && !c.isDefault() {
		plan.Notes = append(plan.Notes, "a pod comes by the wrapper only with runtimeClassName: "+Handler+
			"; --set-as-default is for all pods")
	}
	return plan, nil
}

// isDefault tells whether the default handler is the wrapper already.
func (c *Containerd) isDefault() bool {
	return filepath.Base(c.Handlers[c.Default].BinaryName) == RuntimeProgram
}

// imports tells whether containerd reads a file, if it is there. What `config dump` says
// of imports is not asked: it has a default, which containerd 2.4 does not follow.
func (c *Containerd) imports(file string) (bool, error) {
	pending, seen := []string{c.Config}, map[string]bool{}
	for len(pending) > 0 {
		path := pending[0]
		pending = pending[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		var has struct {
			Imports []string `toml:"imports"`
		}
		if err := toml.Unmarshal(text, &has); err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		for _, pattern := range has.Imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			if ok, err := filepath.Match(pattern, file); ok && err == nil {
				return true, nil
			}
			files, err := filepath.Glob(pattern)
			if err != nil {
				return false, fmt.Errorf("%s: imports: %q: %w", path, pattern, err)
			}
			pending = append(pending, files...)
		}
	}
	return false, nil
}

// dropIn is the file. What was passed to the runtime that is the default stays so.
func (c *Containerd) dropIn(programs string, asDefault bool) ([]byte, error) {
	base := c.Handlers[c.Default]
	if base.Fields == nil || c.isDefault() {
		base = c.Handlers["runc"]
	}
	if base.Type != "" && base.Type != "io.containerd.runc.v2" {
		base = RuntimeHandler{} // nothing of another kind of runtime holds for runc
	}
	fields := map[string]any{}
	for key, value := range base.Fields {
		if !isZero(value) {
			fields[key] = value
		}
	}
	options := map[string]any{}
	if of, ok := base.Fields["options"].(map[string]any); ok {
		for key, value := range of {
			if !isZero(value) {
				options[key] = value
			}
		}
	}
	options["BinaryName"] = filepath.Join(programs, RuntimeProgram)
	fields["runtime_type"] = "io.containerd.runc.v2"
	delete(fields, "runtime_path")
	delete(fields, "sandboxer") // containerd's own word for the default, since 2.0
	fields["pod_annotations"] = union(Annotations, base.PodAnnotations)
	fields["container_annotations"] = union(Annotations, base.ContainerAnnotations)
	fields["options"] = options
	plugin, version := criPlugin, 3
	if c.Version < 3 {
		plugin, version = oldCRIPlugin, c.Version
	}
	cri := map[string]any{"runtimes": map[string]any{Handler: fields}}
	if asDefault {
		cri["default_runtime_name"] = Handler
	}
	var b bytes.Buffer
	b.WriteString("# SPDX-License-Identifier: Apache-2.0\n\n# Written by nix-closure install containerd.\n")
	fmt.Fprintf(&b, "version = %d\n\n", version)
	e := toml.NewEncoder(&b)
	e.SetIndentTables(true)
	tree := map[string]any{"plugins": map[string]any{plugin: map[string]any{"containerd": cri}}}
	err := e.Encode(tree)
	return b.Bytes(), err
}

func isZero(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case bool:
		return !v
	case int64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return value == nil
}

func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

var (
	importsLine = regexp.MustCompile(`(?m)^[ \t]*imports[ \t]*=[ \t]*\[`)
	firstTable  = regexp.MustCompile(`(?m)^[ \t]*\[`)
	versionLine = regexp.MustCompile(`(?m)^[ \t]*version[ \t]*=.*\n?`)
)

// addImport adds a pattern to the imports of a config.toml, and changes no other byte.
func addImport(text []byte, pattern string) ([]byte, error) {
	top := text
	// An array's lines begin with `[` too, but not before the first key.
	if table := firstTable.FindIndex(text); table != nil {
		top = text[:table[0]]
	}
	var after []byte
	if at := importsLine.FindIndex(top); at != nil {
		// An empty list has no comma after it.
		rest := bytes.TrimLeft(text[at[1]:], " \t\n")
		comma := ", "
		if bytes.HasPrefix(rest, []byte("]")) {
			comma = ""
		}
		after = slices.Concat(text[:at[1]], []byte(quoteJSON(pattern)+comma), text[at[1]:])
	} else {
		line := []byte("imports = [" + quoteJSON(pattern) + "]\n")
		at := 0
		if version := versionLine.FindIndex(top); version != nil {
			at = version[1]
			if text[at-1] != '\n' {
				line = append([]byte("\n"), line...)
			}
		}
		after = slices.Concat(text[:at], line, text[at:])
	}
	// A file that is read in another way than is thought here is left alone.
	var before, now map[string]any
	if err := errors.Join(toml.Unmarshal(text, &before), toml.Unmarshal(after, &now)); err != nil {
		return nil, err
	}
	if !slices.Contains(stringsOf(now["imports"]), pattern) {
		return nil, fmt.Errorf("add %q to imports by hand", pattern)
	}
	delete(before, "imports")
	delete(now, "imports")
	if len(before) != len(now) || !maps.EqualFunc(before, now, func(a, b any) bool {
		return fmt.Sprint(a) == fmt.Sprint(b)
	}) {
		return nil, fmt.Errorf("add %q to imports by hand", pattern)
	}
	return after, nil
}
