// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

// What is done with files inside.
const (
	statAndRead = "stat, open and read"
	firstTouch  = ", nothing cached"
	freshView   = ", the store cached, the view new"
	warmFiles   = ", warm"
	storeItself = "the store itself"
)

// filesRun is a container that works with files. Its store is on a disk that is mounted
// for this container alone: the kernel has no name, inode or page of it.
type filesRun struct {
	variant string
	bundle  string
	// cached: all files are read before the container starts, past the view.
	cached bool
	values map[string][]float64 // by what was done
}

// steps of the program walk, and the rows that they give. A row may add two steps.
var (
	filesSteps = []string{"stat", "read", "stat", "read", "exec", "exec", "python", "python"}
	filesRows  = []struct {
		what  string
		warm  bool
		steps []int
	}{
		{"stat", false, []int{0}}, {statAndRead, false, []int{0, 1}},
		{"stat", true, []int{2}}, {statAndRead, true, []int{2, 3}},
		{"execute a static program", false, []int{4}}, {"execute a static program", true, []int{5}},
		{"start python", false, []int{6}}, {"start python", true, []int{7}},
	}
)

// executions of each step exec.
const executions = 50

// filesDisk is a disk with the closures' store paths, and what walk is to do with them.
type filesDisk struct {
	image string // a file
	roots string // of the closures
	dir   string // of the lists
}

// measureFiles works with the files of a closure: through a view, and without.
func measureFiles(b *bench, budget time.Duration) error {
	d, err := b.filesDisk()
	if err != nil {
		return err
	}
	s, err := b.newStarter(b.runtimes[0])
	if err != nil {
		return err
	}
	h := b.host
	args := []string{"/bin/walk"}
	for _, step := range filesSteps {
		args = append(args, strings.Replace(step, "python", "exec", 1), "/lists/"+step)
	}
	lists := mount{Destination: "/lists", Type: "none", Source: d.dir, Options: []string{"rbind", "ro"}}
	var runs []*filesRun
	for _, mode := range []string{storeItself, overlayWarm, bindWarm} {
		c := bundle{root: h.image, mounts: []mount{bindStorePath(storeDir)}}
		if mode != storeItself {
			c = h.closure(usualPaths, mode, h.warm)
			c.annotations["nix-closure/roots"] = d.roots
		}
		c.mounts = append(c.mounts, lists)
		dir := s.dir("files "+mode, usualPaths, "walk")
		if err := c.write(dir, args...); err != nil {
			return err
		}
		for _, cached := range []bool{false, true} {
			runs = append(runs, &filesRun{variant: mode, bundle: dir, cached: cached, values: map[string][]float64{}})
		}
	}
	began := time.Now()
	for round := -1; round < fewest || round < b.runs && time.Since(began) < budget; round++ {
		b.progress.show("round %d", round+1)
		for _, i := range rand.Perm(len(runs)) {
			if err := b.stopped(); err != nil {
				return err
			}
			took, err := d.run(s.runtime, runs[i])
			if err != nil {
				return fmt.Errorf("%s: %w", runs[i].variant, err)
			}
			if round >= 0 {
				runs[i].keep(took)
			}
		}
	}
	b.addFiles(runs, s.runtime.name)
	return nil
}

// label is what was done, and in which state of the caches.
func (r *filesRun) label(what string, warm bool) string {
	switch {
	case warm:
		return what + warmFiles
	case r.cached:
		return what + freshView
	}
	return what + firstTouch
}

func (r *filesRun) keep(took []float64) {
	for _, row := range filesRows {
		// The second pass is warm in either case: once is enough.
		if row.warm && !r.cached {
			continue
		}
		sum := 0.0
		for _, step := range row.steps {
			sum += took[step] / 1e6
		}
		if strings.HasPrefix(row.what, "execute") {
			sum /= executions
		}
		label := r.label(row.what, row.warm)
		r.values[label] = append(r.values[label], sum)
	}
}

// addFiles adds the rows: each is compared to the store itself, in the same state.
func (b *bench) addFiles(runs []*filesRun, runtime string) {
	for _, cached := range []bool{false, true} {
		for _, row := range filesRows {
			if row.warm && !cached {
				continue
			}
			var native []float64
			for _, r := range runs {
				if r.cached != cached {
					continue
				}
				label := r.label(row.what, row.warm)
				out := speed.Row{Group: "files", What: label, Variant: r.variant, Paths: usualPaths, Runtime: runtime,
					Unit: "ms"}
				if native == nil {
					native = r.values[label]
					out = out.Summary(native, nil)
				} else {
					out.Of = storeItself
					out = out.Summary(r.values[label], native)
				}
				b.results.Rows = append(b.results.Rows, out)
			}
		}
	}
}

// filesDisk makes the closures, and copies them to a disk of their own, once.
func (b *bench) filesDisk() (*filesDisk, error) {
	if b.disk != nil {
		return b.disk, nil
	}
	root, _, err := b.filesClosure()
	if err != nil {
		return nil, err
	}
	b.progress.show("building python's store paths")
	h := b.host
	out := filepath.Join(h.dir, "store")
	if _, err := output("stores/real/build.sh", out); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(out, "store.json"))
	if err != nil {
		return nil, err
	}
	var attributes map[string]string
	if err := json.Unmarshal(text, &attributes); err != nil {
		return nil, err
	}
	d := &filesDisk{
		roots: root + ":" + attributes["env"] + ":" + attributes["foreign"],
		dir:   filepath.Join(h.dir, "lists"),
	}
	text, err = exec.Command("nix-store", "--query", "--requisites", root, attributes["env"],
		attributes["foreign"]).Output()
	if err != nil {
		return nil, err
	}
	requisites := strings.Fields(string(text))
	if err := d.writeLists(root, requisites); err != nil {
		return nil, err
	}
	b.progress.show("copying the closures to a disk")
	err = d.fill(filepath.Join(h.dir, "files-disk"), filepath.Join(h.dir, "files-mount"), requisites)
	if err == nil {
		b.disk = d
	}
	return d, err
}

// writeLists writes what walk is to do.
func (d *filesDisk) writeLists(root string, requisites []string) error {
	closure, err := output("nix-store", "--query", "--requisites", root)
	if err != nil {
		return err
	}
	var files []string
	for p := range strings.FieldsSeq(closure) {
		err := filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var static, python string
	for _, p := range requisites {
		if found, _ := filepath.Glob(p + "/bin/python3.*[0-9]"); len(found) > 0 {
			python = found[0]
		}
		if found, _ := filepath.Glob(p + "/bin/busybox"); len(found) > 0 {
			static = found[0]
		}
	}
	if python == "" || static == "" {
		return fmt.Errorf("the store of test/stores/real has no python (%q) or no static program (%q)", python, static)
	}
	lists := map[string]string{
		"stat": strings.Join(files, "\n"), "read": strings.Join(files, "\n"), "python": python,
		"exec": strings.Repeat(static+"\n", executions),
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	for name, text := range lists {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the disk. It is mounted nowhere afterwards.
func (d *filesDisk) fill(image, dir string, paths []string) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(1<<30), f.Close(), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	if _, err := output("mkfs.ext4", "-q", "-N", "100000", "-E", "lazy_itable_init=0", image); err != nil {
		return err
	}
	d.image = image
	if _, err := output("mount", "-o", "loop", image, dir); err != nil {
		return err
	}
	cmd := exec.Command("cp", append([]string{"--archive", "--target-directory", dir}, paths...)...)
	_, err = timeCommand(cmd)
	_, umountErr := output("umount", dir)
	return errors.Join(err, umountErr)
}

// run runs a container whose host has the disk for its store, and returns how long each
// step of walk took.
func (d *filesDisk) run(r *containerRuntime, f *filesRun) ([]float64, error) {
	before := ""
	if f.cached {
		before = "xargs cat <" + d.dir + "/read >/dev/null && " + "cat $(sort -u " + d.dir + "/exec " + d.dir +
			"/python) >/dev/null && "
	}
	r.count++
	id := fmt.Sprintf("files-%d", r.count)
	script := "mount -o loop,ro,noatime " + d.image + " " + storeDir + " && " + before + `exec "$@"`
	cmd := unshared("/bin/sh", "-euc", script, "sh", r.path, "--root", r.root, "run", "--bundle", f.bundle, id)
	var stderr limited
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr)
	}
	return numbers(string(out), len(filesSteps))
}
