// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Where CRI-O's configuration is.
const (
	CRIOConfig  = "/etc/crio/crio.conf"
	crioConfDir = "/etc/crio/crio.conf.d"
	crioDropIn  = crioConfDir + "/99-nix-closure.conf"
	// CRIOHooksDir is for CRI-O's hook files, which are not podman's.
	CRIOHooksDir = "/etc/nix-closure/crio-hooks.d"
)

// CRIO is CRI-O's configuration as its files say.
type CRIO struct {
	Config    string
	PID       int // 0: it does not run
	Socket    string
	HooksDirs []string
	HooksFrom string // the file that names them; empty: it is CRI-O's default
	Default   string
	Runtimes  map[string]string // the programs, by name
	NRI       bool
}

// FindCRIO finds CRI-O, or its configuration. Nil: there is none.
func FindCRIO(config string) (*CRIO, error) { return findCRIO(config, nil) }

func findCRIO(config string, planned map[string][]byte) (*CRIO, error) {
	c := &CRIO{
		Config: CRIOConfig, Socket: "/run/crio/crio.sock", HooksDirs: []string{PodmanHooksDir}, Default: "crun",
		Runtimes: map[string]string{}, NRI: true,
	}
	confDir := crioConfDir
	if running := Processes("crio"); len(running) > 0 {
		p := running[0]
		c.PID = p.PID
		if its, ok := p.Option("--config", "-c"); ok {
			c.Config = its
		}
		if its, ok := p.Option("--config-dir", "-d"); ok {
			confDir = its
		}
	}
	if config != "" {
		c.Config = config
	}
	files := append([]string{c.Config}, dropIns(confDir, planned)...)
	found := c.PID != 0 || FindProgram("crio") != ""
	for _, path := range files {
		text, ok := planned[path]
		if !ok {
			var err error
			if text, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return c, err
			}
			found = true
		}
		if err := c.Add(path, text); err != nil {
			return c, err
		}
	}
	if !found {
		return nil, nil
	}
	return c, nil
}

// Add takes what a file, or the daemon itself, says for what was said before.
func (c *CRIO) Add(path string, text []byte) error {
	var file struct {
		CRIO struct {
			API struct {
				Listen string `toml:"listen"`
			} `toml:"api"`
			Runtime struct {
				HooksDir []string `toml:"hooks_dir"`
				Default  string   `toml:"default_runtime"`
				Runtimes map[string]struct {
					Path string `toml:"runtime_path"`
				} `toml:"runtimes"`
			} `toml:"runtime"`
			NRI struct {
				Enable *bool `toml:"enable_nri"`
			} `toml:"nri"`
		} `toml:"crio"`
	}
	if err := toml.Unmarshal(text, &file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if file.CRIO.API.Listen != "" {
		c.Socket = file.CRIO.API.Listen
	}
	if file.CRIO.Runtime.HooksDir != nil {
		c.HooksDirs, c.HooksFrom = file.CRIO.Runtime.HooksDir, path
	}
	if file.CRIO.Runtime.Default != "" {
		c.Default = file.CRIO.Runtime.Default
	}
	for name, runtime := range file.CRIO.Runtime.Runtimes {
		c.Runtimes[name] = runtime.Path
	}
	if enable := file.CRIO.NRI.Enable; enable != nil {
		c.NRI = *enable
	}
	return nil
}

// PlanCRIO plans two hook files for CRI-O, and a file for its crio.conf.d that names
// their directory and the wrapper.
func PlanCRIO(programs, config string, asDefault bool) (Plan, error) {
	plan := Plan{Engine: "cri-o"}
	before, err := findCRIO(config, map[string][]byte{crioDropIn: nil})
	if err != nil {
		return plan, err
	}
	if before == nil {
		return plan, fmt.Errorf("there is no CRI-O: it does not run, and there is neither %s nor a file in %s; "+
			"name its configuration with --config", CRIOConfig, crioConfDir)
	}
	for path, text := range hookFiles(CRIOHooksDir, filepath.Join(programs, HookProgram), "cri-o") {
		if err := plan.create(path, text); err != nil {
			return plan, err
		}
	}
	// podman's hook files would have CRI-O's containers refused.
	dirs := slices.DeleteFunc(slices.Clone(before.HooksDirs), func(dir string) bool {
		return dir == CRIOHooksDir || dir == PodmanHooksDir && before.HooksFrom == ""
	})
	var text strings.Builder
	text.WriteString("# SPDX-License-Identifier: Apache-2.0\n\n# Written by nix-closure install cri-o.\n")
	text.WriteString("[crio.runtime]\n# Those that were in force, and the one with nix-closure's hook files.\n")
	fmt.Fprintf(&text, "hooks_dir = [%s]\n", quoteList(append(dirs, CRIOHooksDir)))
	if asDefault {
		fmt.Fprintf(&text, "default_runtime = %q\n", Handler)
	}
	fmt.Fprintf(&text, "\n[crio.runtime.runtimes.%s]\nruntime_type = \"oci\"\nruntime_path = %s\n",
		Handler, quoteJSON(filepath.Join(programs, RuntimeProgram)))
	if err := plan.create(crioDropIn, []byte(text.String())); err != nil {
		return plan, err
	}
	after, err := findCRIO(config, map[string][]byte{crioDropIn: []byte(text.String())})
	if err != nil {
		return plan, err
	}
	if !slices.Contains(after.HooksDirs, CRIOHooksDir) {
		return plan, fmt.Errorf("%s is read after %s and names other hook directories; add %q to its hooks_dir",
			after.HooksFrom, crioDropIn, CRIOHooksDir)
	}
	if asDefault {
		plan.Notes = append(plan.Notes, `the wrapper cannot recognise CRI-O: write engine = "cri-o" into `+
			"/etc/nix-closure/config.toml, or pods with a key for one container are refused")
	}
	if slices.Contains(dirs, PodmanHooksDir) {
		plan.Notes = append(plan.Notes, "CRI-O reads "+PodmanHooksDir+" too, where podman's hook files refuse "+
			"its containers: install those elsewhere")
	}
	return plan, nil
}
