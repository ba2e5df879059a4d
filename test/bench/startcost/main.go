// SPDX-License-Identifier: Apache-2.0

// Command startcost counts what the hook does at a container's start and end.
package main

import (
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/machine"
	"github.com/nix-closure/nix-closure/test/synthetic"
)

//go:embed programs/*/main.go
var sources embed.FS

var (
	bins   = flag.String("bin", "", "")
	runs   = flag.Int("runs", 40, "")
	paths  = flag.String("paths", "1000", "")
	keep   = flag.String("keep", "", "dir for strace output")
	mode   = flag.String("mode", "overlay", "")
	rts    = flag.String("runtimes", "crun,runc", "")
	perf   = flag.String("perf", "", "")
	perfopt   = flag.String("perfopt", "-g", "")
	timing = flag.Bool("time", true, "")
)

func main() {
	flag.Parse()
	os.Exit(machine.RunOnDisk(func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "startcost:", err)
			return 1
		}
		return 0
	}))
}

func build(name, to string) error {
	text, err := sources.ReadFile("programs/" + name + "/main.go")
	if err != nil {
		return err
	}
	os.MkdirAll(to+"-src", 0o755)
	if err := os.WriteFile(to+"-src/main.go", text, 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", to, "main.go")
	cmd.Dir = to + "-src"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s", out)
	}
	return nil
}

type object = map[string]any

func stage(argv []string, name string) []object {
	return []object{{"path": argv[0], "args": append(slices.Clone(argv), name), "env": []string{"PATH=/usr/bin:/bin"}}}
}

func bundle(dir, root string, argv []string, annotations map[string]string, whole bool) error {
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": []string{"nosuid", "noexec", "nodev"}},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	if whole {
		mounts = append(mounts, object{"destination": "/nix/store", "source": "/nix/store", "type": "none", "options": []string{"rbind", "ro"}})
	}
	config := object{
		"ociVersion": "1.0.2",
		"process": object{"user": object{"uid": 0, "gid": 0}, "args": []string{"/bin/true"}, "env": []string{"PATH=/bin"}, "cwd": "/", "noNewPrivileges": true},
		"root":    object{"path": root}, "hostname": "bench", "mounts": mounts,
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}
	if annotations != nil {
		config["annotations"] = annotations
	}
	if argv != nil {
		config["hooks"] = object{"createRuntime": stage(argv, "createRuntime"), "poststop": stage(argv, "poststop")}
	}
	text, _ := json.Marshal(config)
	os.MkdirAll(dir, 0o755)
	return os.WriteFile(dir+"/config.json", text, 0o644)
}

var count int

func container(rt, bundle string) (time.Duration, error) {
	count++
	cmd := exec.Command(rt, "--root", "/run/"+rt, "run", "--bundle", bundle, fmt.Sprintf("c%d", count))
	var e strings.Builder
	cmd.Stderr = &e
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", rt, bundle, err, e.String())
	}
	return took, nil
}

func run() error {
	dir := machine.Dir()
	for _, p := range []string{"empty", "observe"} {
		if err := build(p, dir+"/"+p); err != nil {
			return err
		}
	}
	var sizes []int
	for _, f := range strings.Split(*paths, ",") {
		var n int
		fmt.Sscan(f, &n)
		sizes = append(sizes, n)
	}
	store, err := synthetic.Make(sizes[len(sizes)-1]+2000, sizes)
	if err != nil {
		return err
	}
	image := dir + "/image"
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "nix/store"} {
		os.MkdirAll(image+"/"+d, 0o755)
	}
	text, _ := os.ReadFile(dir + "/empty")
	os.WriteFile(image+"/bin/true", text, 0o755)
	layered := dir + "/layered"
	os.MkdirAll(layered+"/upper", 0o755)
	os.MkdirAll(layered+"/work", 0o755)
	os.MkdirAll(layered+"/root", 0o755)
	if out, err := exec.Command("mount", "-t", "overlay", "overlay", "-o", "lowerdir="+image+",upperdir="+layered+"/upper,workdir="+layered+"/work", layered+"/root").CombinedOutput(); err != nil {
		return fmt.Errorf("%s", out)
	}
	binaries := strings.Split(*bins, ",")
	type variant struct {
		name, bundle string
		samples      map[string][]time.Duration
	}
	var vs []*variant
	add := func(name, root string, argv []string, ann map[string]string, whole bool) (string, error) {
		b := dir + "/bundles/" + strings.ReplaceAll(name, "/", "_")
		return b, bundle(b, root, argv, ann, whole)
	}
	configOf := func(i int) string {
		f := fmt.Sprintf("%s/config%d.toml", dir, i)
		os.WriteFile(f, []byte(fmt.Sprintf("runtime-dir = \"/run/nix-closure%d\"\n", i)), 0o644)
		return f
	}
	b, err := add("floor", image, []string{dir + "/empty"}, nil, true)
	if err != nil {
		return err
	}
	vs = append(vs, &variant{"floor", b, map[string][]time.Duration{}})
	b, err = add("whole", image, nil, nil, true)
	if err != nil {
		return err
	}
	wholeBundle := b
	vs = append(vs, &variant{"whole", b, map[string][]time.Duration{}})
	for i, bin := range binaries {
		argv := []string{bin + "/nix-closure-hook", "--config", configOf(i)}
		b, err := add(fmt.Sprintf("none%d", i), image, argv, nil, true)
		if err != nil {
			return err
		}
		vs = append(vs, &variant{"no annotation " + bin, b, map[string][]time.Duration{}})
		for _, n := range sizes {
			ann := map[string]string{"nix-closure/roots": store.Root(n), "nix-closure/mode": *mode}
			b, err = add(fmt.Sprintf("warm%d-%d", i, n), image, argv, ann, false)
			if err != nil {
				return err
			}
			vs = append(vs, &variant{fmt.Sprintf("%s %d %s", *mode, n, bin), b, map[string][]time.Duration{}})
		}
		// counts
		ann := map[string]string{"nix-closure/roots": store.Root(sizes[0]), "nix-closure/mode": *mode}
		for _, root := range []string{image, layered + "/root"} {
			for _, a := range []map[string]string{ann, nil} {
				trace := fmt.Sprintf("%s/trace%d", dir, i)
				wrapped := append([]string{"/usr/bin/strace", "-f", "-y", "-s", "60", "-A", "-o", trace}, argv...)
				b, err := add(fmt.Sprintf("strace%d", i), root, wrapped, a, a == nil)
				if err != nil {
					return err
				}
				plain, _ := add(fmt.Sprintf("plain%d", i), root, argv, a, a == nil)
				for range 2 {
					if _, err := container("runc", plain); err != nil {
						return err
					}
				}
				os.Remove(trace)
				time.Sleep(1100 * time.Millisecond)
				if _, err := container("runc", plain); err != nil {
					return err
				}
				if _, err := container("runc", b); err != nil {
					return err
				}
				text, _ := os.ReadFile(trace)
				if *keep != "" {
					os.WriteFile(fmt.Sprintf("%s/%d-%s-%v", *keep, i, filepath.Base(root), a != nil), text, 0o644)
				}
				first, second, _ := strings.Cut(string(text), "exit_group(")
				fmt.Printf("%s root %s annotated %v: system calls %d + %d\n", bin, filepath.Base(root), a != nil, calls(first), calls(second))
				obs := dir + "/observed"
				os.Remove(obs)
				b, err = add(fmt.Sprintf("obs%d", i), root, append([]string{dir + "/observe", obs}, argv...), a, a == nil)
				if err != nil {
					return err
				}
				for range 15 {
					if _, err := container("runc", b); err != nil {
						return err
					}
				}
				text, _ = os.ReadFile(obs)
				by := map[string][][3]float64{}
				for _, l := range strings.Split(strings.TrimSpace(string(text)), "\n") {
					var s string
					var v [3]float64
					fmt.Sscan(l, &s, &v[0], &v[1], &v[2])
					by[s] = append(by[s], v)
				}
				for _, s := range []string{"createRuntime", "poststop"} {
					med := func(k int) float64 {
						var all []float64
						for _, v := range by[s] {
							all = append(all, v[k])
						}
						sort.Float64s(all)
						return all[len(all)/2]
					}
					fmt.Printf("    %-14s faults %.0f cpu %.0f µs wall %.0f µs\n", s, med(0), med(1), med(2))
				}
			}
		}
		if *perf != "" {
			sh := dir + "/perf.sh"
			os.WriteFile(sh, []byte("#!/bin/sh\nexec perf record -q -F 25000 -e cpu-clock "+*perfopt+" -o "+*perf+"/$9.$$.data -- \"$@\"\n"), 0o755)
			sh = dir + "/perf.sh"
			os.WriteFile(sh, []byte("#!/bin/sh\nfor s; do :; done\nexec perf record -q -F 25000 -e cpu-clock "+*perfopt+" -o "+*perf+"/$s.$$.data -- \"$@\" 2>/dev/null\n"), 0o755)
			b, err = add(fmt.Sprintf("perf%d", i), image, append([]string{sh}, argv...), ann, false)
			if err != nil {
				return err
			}
			for range 60 {
				if _, err := container("runc", b); err != nil {
					return err
				}
			}
		}
	}
	if !*timing {
		return nil
	}
	rtl := strings.Split(*rts, ",")
	type job struct {
		v  *variant
		rt string
	}
	var jobs []job
	for _, v := range vs {
		for _, rt := range rtl {
			jobs = append(jobs, job{v, rt})
			for range 3 {
				if _, err := container(rt, v.bundle); err != nil {
					return err
				}
			}
		}
	}
	for range *runs {
		rand.Shuffle(len(jobs), func(i, k int) { jobs[i], jobs[k] = jobs[k], jobs[i] })
		for _, j := range jobs {
			if _, err := container(j.rt, wholeBundle); err != nil {
				return err
			}
			d, err := container(j.rt, j.v.bundle)
			if err != nil {
				return err
			}
			j.v.samples[j.rt] = append(j.v.samples[j.rt], d)
		}
	}
	median := func(s []time.Duration) float64 {
		s = slices.Clone(s)
		slices.Sort(s)
		return (float64(s[len(s)/2]) + float64(s[(len(s)-1)/2])) / 2e6
	}
	for _, rt := range rtl {
		f := vs[0].samples[rt]
		for _, v := range vs {
			s := v.samples[rt]
			var r []float64
			for i := range s {
				r = append(r, float64(s[i])/float64(f[i]))
			}
			sort.Float64s(r)
			fmt.Printf("%s %-45s %7.2f ms  %5.3f of medians  %5.3f median of ratios\n", rt, v.name, median(s), median(s)/median(f), r[len(r)/2])
		}
	}
	return nil
}

func calls(s string) (n int) {
	for _, l := range strings.Split(s, "\n") {
		if strings.Contains(l, "(") && !strings.Contains(l, "resumed>") && !strings.Contains(l, "+++") && !strings.Contains(l, "--- SIG") {
			n++
		}
	}
	return n
}
