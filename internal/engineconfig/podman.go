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

// PodmanHooksDir is where podman looks for hook files if no containers.conf says so.
const PodmanHooksDir = "/usr/share/containers/oci/hooks.d"

// dropIn is the file that install adds to a containers.conf.d. It is read last.
const dropIn = "99-nix-closure.conf"

// PodmanUser is whose podman it is.
type PodmanUser struct {
	// ConfigDir is the directory of the user's own containers.conf, in
	// .config/containers; empty for root, who has none.
	ConfigDir string
	// Conf and Override are $CONTAINERS_CONF and $CONTAINERS_CONF_OVERRIDE.
	Conf, Override string
}

// Podman is what a user's podman has in force.
type Podman struct {
	Program   string   // podman itself; empty: not installed
	HooksDirs []string // in which it looks for hook files
	HooksFrom string   // the file that names them; empty: none, it is podman's default
	Runtime   string   // the path of its runtime, if a file names one; else empty
	From      string   // the file that names Runtime
}

// ReadPodman reads the containers.conf files in the order in which podman does
// (containers.conf(5)): what a later one says replaces what an earlier one said.
func ReadPodman(user PodmanUser) (Podman, error) { return user.read(nil) }

// read takes the files in planned as if they were there.
func (user PodmanUser) read(planned map[string][]byte) (Podman, error) {
	p := Podman{Program: FindProgram("podman"), HooksDirs: []string{PodmanHooksDir}}
	var runtime string
	runtimes := map[string][]string{}
	for _, path := range user.files(planned) {
		text, ok := planned[path]
		if !ok {
			var err error
			if text, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return p, err
			}
		}
		var file struct {
			Engine struct {
				HooksDir []any               `toml:"hooks_dir"`
				Runtime  string              `toml:"runtime"`
				Runtimes map[string][]string `toml:"runtimes"`
			} `toml:"engine"`
		}
		if err := toml.Unmarshal(text, &file); err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		if file.Engine.HooksDir != nil {
			p.HooksDirs, p.HooksFrom = listed(p.HooksDirs, file.Engine.HooksDir), path
		}
		if file.Engine.Runtime != "" {
			runtime, p.From = file.Engine.Runtime, path
		}
		for name, paths := range file.Engine.Runtimes {
			runtimes[name] = paths
		}
	}
	p.Runtime = runtime
	if runtime != "" && !filepath.IsAbs(runtime) {
		p.Runtime = FindProgram(runtime)
		for _, path := range runtimes[runtime] {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				p.Runtime = path
				break
			}
		}
	}
	return p, nil
}

// listed is a list of containers.conf, which takes the place of the one before it, or,
// since podman 4.7, is added to it, if it has {append = true}.
func listed(before []string, list []any) (all []string) {
	for _, item := range list {
		switch v := item.(type) {
		case string:
			all = append(all, v)
		case map[string]any:
			if v["append"] == true {
				all = append(slices.Clone(before), all...)
			}
		}
	}
	return all
}

// files are the containers.conf files, in order.
func (user PodmanUser) files(planned map[string][]byte) []string {
	var files []string
	if user.Conf != "" {
		files = []string{user.Conf}
	} else {
		files = []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf"}
		files = append(files, dropIns("/etc/containers/containers.conf.d", planned)...)
		if user.ConfigDir != "" {
			files = append(files, user.ConfigDir+"/containers.conf")
			files = append(files, dropIns(user.ConfigDir+"/containers.conf.d", planned)...)
		}
	}
	if user.Override != "" {
		files = append(files, user.Override)
	}
	return files
}

func dropIns(dir string, planned map[string][]byte) []string {
	files, err := filepath.Glob(dir + "/*.conf")
	if err != nil {
		return nil
	}
	for path := range planned {
		if filepath.Dir(path) == dir && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files
}

// PlanPodman plans hook files for podman, and, where podman would not read them, a
// containers.conf.d file that names their directory. programs is the directory with
// this program's.
func PlanPodman(user PodmanUser, programs, confFile string, asDefault bool) (Plan, error) {
	plan := Plan{Engine: "podman"}
	dir, confDir := PodmanHooksDir, "/etc/containers/containers.conf.d"
	if user.ConfigDir != "" {
		dir = filepath.Join(filepath.Dir(filepath.Dir(user.ConfigDir)), ".local/share/nix-closure/hooks.d")
		confDir = user.ConfigDir + "/containers.conf.d"
	}
	if confFile != "" {
		user.Conf = confFile
	}
	if user.Conf != "" {
		confDir = ""
	}
	for path, text := range hookFiles(dir, filepath.Join(programs, HookProgram), "podman") {
		if err := plan.create(path, text); err != nil {
			return plan, err
		}
	}
	own := filepath.Join(confDir, dropIn)
	// What is in force without install's own file, so that installing twice says the same.
	before, err := user.read(map[string][]byte{own: nil})
	if err != nil {
		return plan, err
	}
	var text strings.Builder
	text.WriteString("# SPDX-License-Identifier: Apache-2.0\n\n# Written by nix-closure install podman.\n[engine]\n")
	needed := false
	if !slices.Contains(before.HooksDirs, dir) {
		needed = true
		text.WriteString("# Those that were in force, and the one with nix-closure's hook files.\n")
		fmt.Fprintf(&text, "hooks_dir = [%s]\n", quoteList(append(before.HooksDirs, dir)))
	}
	if asDefault {
		needed = true
		fmt.Fprintf(&text, "runtime = %s\n", quoteJSON(filepath.Join(programs, RuntimeProgram)))
	}
	if !needed {
		return plan, nil
	}
	if user.Conf != "" {
		return plan, fmt.Errorf("%s is the only containers.conf that podman reads, and is not changed: "+
			"add to its [engine]:\n%s", user.Conf, text.String()[strings.Index(text.String(), "[engine]\n")+9:])
	}
	if err := plan.create(own, []byte(text.String())); err != nil {
		return plan, err
	}
	after, err := user.read(map[string][]byte{own: []byte(text.String())})
	if err != nil {
		return plan, err
	}
	if !slices.Contains(after.HooksDirs, dir) {
		return plan, fmt.Errorf("%s is read after %s and names other hook directories; add %q to its hooks_dir",
			after.HooksFrom, own, dir)
	}
	return plan, nil
}

func quoteList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quoteJSON(s)
	}
	return strings.Join(quoted, ", ")
}
