// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nix-closure/nix-closure/internal/proc"
)

// found is a container that a runtime or an engine knows.
type found struct {
	id string
	Running
}

// keeper is how a runtime or an engine keeps its containers.
type keeper struct {
	name string
	// patterns are of the directories of single containers. %s is the user's runtime
	// directory.
	patterns []string
	read     func(dir string) (found, error)
}

// keepers are those that this program knows. Which runtime a directory below a
// containerd's is of, its files tell.
var keepers = []keeper{
	{"runc", []string{
		"/run/runc/*", "%s/runc/*", "/run/containerd/runc/*/*", "/run/docker/runtime-runc/*/*",
		"/run/docker/runtime-*/*/*",
	}, readRunc},
	{"crun", []string{"/run/crun/*", "%s/crun/*", "/run/containerd/runc/*/*"}, readCrun},
	{"containerd", []string{
		"/run/containerd/io.containerd.runtime.v2.task/*/*",
		"/run/docker/containerd/daemon/io.containerd.runtime.v2.task/*/*",
	}, readTask},
}

// running lists the containers that runtimes know and whose process runs. A container
// that two know is there once.
func (h *Host) running() (all []found, troubles []error) {
	known := map[string]bool{}
	add := func(k keeper, pattern string) {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			troubles = append(troubles, fmt.Errorf("%s: %w", pattern, err))
		}
		for _, dir := range dirs {
			f, err := k.read(dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue // another runtime's, or gone meanwhile
			}
			if err != nil {
				troubles = append(troubles, fmt.Errorf("what %s knows of a container: %w", k.name, err))
				continue
			}
			key := fmt.Sprint(f.id, " ", f.Pid)
			if f.Pid <= 0 || known[key] {
				continue
			}
			known[key] = true
			f.From = k.name
			f.start, _ = proc.StartTime(f.Pid)
			all = append(all, f)
		}
	}
	for _, k := range keepers {
		for _, pattern := range k.patterns {
			if strings.Contains(pattern, "%s") {
				if h.UserDir == "" {
					continue
				}
				pattern = strings.Replace(pattern, "%s", h.UserDir, 1)
			}
			add(k, pattern)
		}
	}
	for _, root := range h.RuntimeRoots {
		for _, k := range keepers {
			add(k, root+"/*")
			add(k, root+"/io.containerd.runtime.v2.task/*/*")
		}
	}
	return all, troubles
}

// ended reports whether the container's process has ended since it was found.
func (r Running) ended() bool {
	now, err := proc.StartTime(r.Pid)
	return r.Pid > 0 && (proc.IsGone(err) || err == nil && r.start != 0 && now != r.start)
}

// started returns pid, or 0 where that process has ended or is another. start is what the
// runtime says; 0: it does not.
func started(pid int, start uint64) int {
	now, err := proc.StartTime(pid)
	if proc.IsGone(err) || err == nil && start != 0 && now != start {
		return 0
	}
	return pid
}

func readJSON(path string, to any) error {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return err
}

// readRunc reads runc's state.json.
func readRunc(dir string) (found, error) {
	var s struct {
		ID     string `json:"id"`
		Pid    int    `json:"init_process_pid"`
		Start  uint64 `json:"init_process_start"`
		Config struct {
			Labels []string `json:"labels"`
		} `json:"config"`
	}
	if err := readJSON(dir+"/state.json", &s); err != nil {
		return found{}, err
	}
	f := found{id: s.ID, Running: Running{Pid: started(s.Pid, s.Start)}}
	for _, label := range s.Config.Labels {
		if bundle, ok := strings.CutPrefix(label, "bundle="); ok {
			f.Bundle = bundle
		}
	}
	f.Config, f.labels = f.Bundle+"/config.json", s.Config.Labels
	return f, nil
}

// readCrun reads crun's status. crun keeps a copy of config.json beside it, and may have
// lost the bundle.
func readCrun(dir string) (found, error) {
	var s struct {
		Pid    int    `json:"pid"`
		Start  uint64 `json:"process-start-time"`
		Bundle string `json:"bundle"`
	}
	if err := readJSON(dir+"/status", &s); err != nil {
		return found{}, err
	}
	f := found{id: filepath.Base(dir), Running: Running{
		Pid: started(s.Pid, s.Start), Bundle: s.Bundle, Config: dir + "/config.json",
	}}
	if _, err := os.Stat(f.Config); err != nil {
		f.Config = f.Bundle + "/config.json"
	}
	return f, nil
}

// readTask reads the bundle of a containerd's task.
func readTask(dir string) (found, error) {
	text, err := os.ReadFile(dir + "/init.pid")
	if err != nil {
		return found{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return found{}, fmt.Errorf("%s/init.pid: %w", dir, err)
	}
	return found{id: filepath.Base(dir), Running: Running{
		Pid: started(pid, 0), Bundle: dir, Config: dir + "/config.json",
	}}, nil
}
