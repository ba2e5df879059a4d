// SPDX-License-Identifier: Apache-2.0

// Command onemount measures what a start would cost if the view came as one mount in
// config.json, from a view on the host, and not by the hook createRuntime.
//
//	go run ./bench/onemount -bin DIR -csv FILE
//
// It runs in the directory test.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/interleaved"
	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/stores/synthetic"
	"github.com/nix-closure/nix-closure/test/testhost"
)

const paths = 1000

type object = map[string]any

func main() {
	bin := flag.String("bin", "", "directory of the programs")
	file := flag.String("csv", "", "file for the measurements")
	rounds := flag.Int("rounds", 50, "timed rounds")
	flag.Parse()
	os.Exit(testhost.RunOnDisk(func() int {
		var sets [][]*interleaved.Case
		for _, runtime := range []string{"crun", "runc"} {
			cases, err := run(runtime, *bin, *rounds)
			if err != nil {
				fmt.Fprintln(os.Stderr, "onemount:", err)
				return 1
			}
			sets = append(sets, cases)
		}
		if err := interleaved.Report(*file, "a view as one mount, 1,000 store paths", sets...); err != nil {
			fmt.Fprintln(os.Stderr, "onemount:", err)
			return 1
		}
		return 0
	}))
}

var store *synthetic.Store

func run(runtime, bin string, rounds int) (cases []*interleaved.Case, err error) {
	dir := testhost.Dir()
	view, root := dir+"/view", dir+"/root"
	installed := dir + "/installed"
	hookProgram, wrapper := installed+"/nix-closure-hook", installed+"/nix-closure-runtime"
	if store == nil {
		if store, err = synthetic.Make(2000, []int{paths}); err != nil {
			return nil, err
		}
		err := errors.Join(os.Mkdir(view, 0o755), os.MkdirAll(root+"/nix/store", 0o755),
			os.Mkdir(root+"/proc", 0o755), os.Mkdir(root+"/dev", 0o755),
			os.MkdirAll("/etc/nix-closure", 0o755), programs.Build(root, "empty"),
			programs.Install(installed, bin+"/nix-closure-hook", bin+"/nix-closure-runtime", bin+"/nix-closure"),
			exec.Command(installed+"/nix-closure", "view", "mount", store.Root(paths), view).Run())
		if err != nil {
			return nil, err
		}
	}
	// The engine's own runtime is called too, as each engine would.
	if err := os.WriteFile("/etc/nix-closure/config.toml", fmt.Appendf(nil, "runtime = %q\n", runtime),
		0o644); err != nil {
		return nil, err
	}
	bind := func(source string) []object {
		return []object{{"type": "none", "source": source, "destination": "/nix/store",
			"options": []string{"rbind", "ro"}}}
	}
	hook := func(program string, stages ...string) object {
		all := object{}
		for _, s := range stages {
			all[s] = []object{{
				"path": program, "args": []string{"nix-closure-hook", s}, "env": []string{"GOMAXPROCS=1"},
			}}
		}
		return all
	}
	asks := object{"nix-closure/roots": store.Root(paths), "nix-closure/mode": "overlay"}
	whole := object{"mounts": bind("/nix/store")}
	// Without a container just before it, a start would wait for an RCU grace period or not,
	// depending on how long the previous one took: to move a process into a cgroup needs one.
	add := func(name, program string, config object) {
		cases = append(cases, &interleaved.Case{Name: runtime + ": " + name, Run: func() (time.Duration, error) {
			if _, err := start(dir, runtime, whole); err != nil {
				return 0, err
			}
			return start(dir, program, config)
		}})
	}
	add("the store bound whole", runtime, whole)
	add("the hook, by the wrapper", wrapper, object{"annotations": asks})
	add("the hook, without the wrapper",
		runtime, object{"annotations": asks, "hooks": hook(hookProgram, "createRuntime", "poststop")})
	add("a view as a mount, by the wrapper, no hook", wrapper, object{"mounts": bind(view)})
	add("the same, and a hook poststop", wrapper,
		object{"mounts": bind(view), "hooks": hook(hookProgram, "poststop")})
	return cases, interleaved.Measure(rounds, cases)
}

var count int

// start runs a container to its removal, from a bundle of its own, as engines do.
func start(dir, program string, more object) (time.Duration, error) {
	count++
	bundle := fmt.Sprintf("%s/bundles/%d", dir, count)
	config := object{
		"ociVersion": "1.0.2", "root": object{"path": dir + "/root"}, "hostname": "bench",
		"process": object{"user": object{"uid": 0, "gid": 0}, "args": []string{"/empty"}, "cwd": "/"},
		"linux":   object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}
	for k, v := range more {
		config[k] = v
	}
	mounts, _ := config["mounts"].([]object)
	config["mounts"] = append([]object{{"type": "proc", "source": "proc", "destination": "/proc"}}, mounts...)
	text, err := json.Marshal(config)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(os.MkdirAll(bundle, 0o755),
		os.WriteFile(bundle+"/config.json", text, 0o644)); err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(bundle) }()
	cmd := exec.Command(program, "run", "--bundle", bundle, fmt.Sprintf("bench-%d", count))
	began := time.Now()
	said, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", cmd, err, said)
	}
	return time.Since(began), err
}
