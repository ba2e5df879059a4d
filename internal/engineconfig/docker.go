// SPDX-License-Identifier: Apache-2.0

package engineconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// DockerConfig is Docker's configuration if nobody says otherwise.
const DockerConfig = "/etc/docker/daemon.json"

// Docker is a Docker daemon's configuration as its file and command line say.
type Docker struct {
	Config   string
	Socket   string
	PID      int // 0: it does not run
	Default  string
	Runtimes map[string]string // the programs, by name
}

// FindDocker finds a Docker daemon, or its configuration. Nil: there is none.
func FindDocker(config string) (*Docker, error) {
	d := &Docker{Config: DockerConfig, Socket: "/run/docker.sock", Default: "runc", Runtimes: map[string]string{}}
	program := FindProgram("dockerd")
	var line *Process
	for _, p := range Processes("dockerd") {
		its, ok := p.Option("--config-file")
		if !ok {
			its = DockerConfig
		}
		if config != "" && its != config {
			continue
		}
		d.PID, d.Config, line = p.PID, its, &p
		break
	}
	if config != "" {
		d.Config = config
	}
	text, err := os.ReadFile(d.Config)
	if errors.Is(err, fs.ErrNotExist) {
		if program == "" && d.PID == 0 {
			return nil, nil
		}
		text, err = []byte("{}"), nil
	}
	if err != nil {
		return d, err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}")
	}
	var file struct {
		Default  string   `json:"default-runtime"`
		Hosts    []string `json:"hosts"`
		Runtimes map[string]struct {
			Path string `json:"path"`
		} `json:"runtimes"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return d, fmt.Errorf("%s: %w", d.Config, err)
	}
	if file.Default != "" {
		d.Default = file.Default
	}
	for name, runtime := range file.Runtimes {
		d.Runtimes[name] = runtime.Path
	}
	hosts := file.Hosts
	if line != nil {
		if value, ok := line.Option("--default-runtime"); ok {
			d.Default = value
		}
		if host, ok := line.Option("--host", "-H"); ok {
			hosts = append(hosts, host)
		}
	}
	for _, host := range hosts {
		if path, ok := strings.CutPrefix(host, "unix://"); ok {
			d.Socket = path
		}
	}
	return d, nil
}

// PlanDocker plans the wrapper as one of the runtimes of daemon.json, of which every
// other byte stays.
func PlanDocker(programs, config string, asDefault bool) (Plan, error) {
	plan := Plan{Engine: "docker"}
	if config == "" {
		config = DockerConfig
		if d, err := FindDocker(""); err == nil && d != nil {
			config = d.Config
		}
	}
	before, err := readRegular(config)
	if err != nil {
		return plan, err
	}
	text := before
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{\n}\n")
	}
	if err := checkJSON(text); err != nil {
		return plan, fmt.Errorf("%s: %w; Docker does not start with it either", config, err)
	}
	var file struct {
		Default  string `json:"default-runtime"`
		Runtimes map[string]struct {
			Path string `json:"path"`
		} `json:"runtimes"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return plan, fmt.Errorf("%s: %w", config, err)
	}
	wrapper := filepath.Join(programs, RuntimeProgram)
	there, ok := file.Runtimes[Handler]
	if ok && there.Path != wrapper {
		return plan, fmt.Errorf("%s has a runtime %s already, which is %q and not %s; "+
			"take it out, and install again", config, Handler, there.Path, wrapper)
	}
	if !ok {
		value := fmt.Sprintf("{\"path\": %s}", quoteJSON(wrapper))
		if text, err = setJSON(text, 0, 0, []string{"runtimes", Handler}, value); err != nil {
			return plan, fmt.Errorf("%s: %w", config, err)
		}
	}
	if asDefault && file.Default != Handler {
		if text, err = setJSON(text, 0, 0, []string{"default-runtime"}, quoteJSON(Handler)); err != nil {
			return plan, fmt.Errorf("%s: %w", config, err)
		}
	}
	if !asDefault && file.Default != Handler {
		plan.Notes = append(plan.Notes, "a container comes by the wrapper only with --runtime "+Handler+
			"; --set-as-default is for all containers")
	}
	plan.edit(config, before, text)
	return plan, nil
}
