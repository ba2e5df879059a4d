// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tree is a small closure of testdata/trees.nix.
type tree struct {
	name, root string
	closure    []string // store paths
}

// buildTrees builds a tree for each name. flags are nix-build's, and say whether
// anything keeps them.
func buildTrees(t *testing.T, names []string, flags ...string) []tree {
	t.Helper()
	var trees []tree
	for i, root := range strings.Fields(must(t, "nix-build", treeArgs(names, flags...)...)) {
		one := tree{name: names[i], root: root}
		for _, name := range closureOf(t, root) {
			one.closure = append(one.closure, storeDir+"/"+name)
		}
		trees = append(trees, one)
	}
	return trees
}

func treeArgs(names []string, flags ...string) []string {
	list := `[ "` + strings.Join(names, `" "`) + `" ]`
	return append([]string{"testdata/trees.nix", "--arg", "names", list}, flags...)
}

// check is what a container runs that is to have exactly this tree: it looks at
// the content of each path, before and after something else, and says so.
func (one tree) check(between string) string {
	var script strings.Builder
	fmt.Fprintf(&script, "look() {\n[ $(ls /nix/store | wc -l) = %d ] || { ls /nix/store; exit 1; }\n",
		len(one.closure))
	for _, path := range one.closure {
		_, name, _ := strings.Cut(filepath.Base(path), "-")
		file, content := path+"/content", name
		switch {
		case strings.HasPrefix(name, "file-"):
			file = path
		case strings.HasPrefix(name, "link-"):
			content = "leaf-" + one.name
		}
		fmt.Fprintf(&script, "[ \"$(cat %s)\" = %s ] || { echo a hole at %s; exit 1; }\n", file, content, path)
	}
	script.WriteString("}\nlook; " + between + "; look; echo whole")
	return script.String()
}

// over runs a command over and over, until stop is called, which says how often
// it succeeded and what it said when not: Nix's own programs trip over each other.
func over(t *testing.T, program string, args ...string) (stop func() (times int, failed []string)) {
	t.Helper()
	return overWhile(t, func() bool { return true }, program, args...)
}

// overWhile is over, with pauses while it is not wanted.
func overWhile(t *testing.T, wanted func() bool, program string, args ...string) (stop func() (int, []string)) {
	t.Helper()
	var times int
	var failed []string
	var ending atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !ending.Load() {
			if !wanted() {
				time.Sleep(time.Millisecond)
				continue
			}
			if _, stderr, err := call(program, args...); err != nil {
				failed = append(failed, stderr)
			} else {
				times++
			}
		}
	})
	stop = func() (int, []string) {
		ending.Store(true)
		wg.Wait()
		return times, failed
	}
	t.Cleanup(func() { stop() })
	return stop
}

// While the garbage collector runs over and over, each container has its whole
// closure or, where nothing else keeps that, is refused because it is not valid.
func TestCollectorLoop(t *testing.T) {
	const count = 200
	var kept, free []string
	for i := range 4 {
		kept, free = append(kept, fmt.Sprintf("kept-%d", i)), append(free, fmt.Sprintf("free-%d", i))
	}
	trees := append(buildTrees(t, kept, "--out-link", t.TempDir()+"/kept"), buildTrees(t, free, "--no-out-link")...)
	bundles := make([]map[string]*bundle, len(trees))
	for i, one := range trees {
		bundles[i] = map[string]*bundle{}
		for _, mode := range modes {
			annotations := with(roots(one.root), "nix-closure/mode", mode, "nix-closure/registration",
				fmt.Sprint(i%2 == 0))
			bundles[i][mode] = newBundle(t, annotations, one.check("sleep 0.3"), "createRuntime", "poststop")
		}
	}
	type start struct {
		id   string
		tree tree
		kept bool
		cmd  *exec.Cmd
		out  string
		err  error
	}
	starts := make([]start, count)
	for i := range starts {
		n := len(kept) + i%len(free)
		if i%16 < len(kept) {
			n = i % 16
		}
		s := &starts[i]
		s.id, s.tree, s.kept = fmt.Sprintf("collector-%d", i), trees[n], n < len(kept)
		s.cmd = bundles[n][modes[i/4%2]].command(t, runtimes[i/8%2], s.id)
	}

	before := len(readLog(t))
	collections := over(t, "nix-store", "--gc")
	var next, started, notStarted atomic.Int64 // of those that nothing keeps
	// However fast the machine, they are built often enough for many to start, and seldom
	// enough for many to be refused.
	builds := overWhile(t, func() bool { return started.Load() <= notStarted.Load() },
		"nix-build", treeArgs(free, "--no-out-link")...)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < count; i = next.Add(1) - 1 {
				s := &starts[i]
				out, err := s.cmd.CombinedOutput()
				s.out, s.err = string(out), err
				switch {
				case s.kept:
				case err == nil:
					started.Add(1)
				default:
					notStarted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	collected, _ := collections()
	built, _ := builds()

	failed, told := map[string]string{}, map[string]bool{}
	for _, l := range readLog(t)[before:] {
		if l.Level == "error" {
			failed[l.Container] += l.Msg
		}
		if strings.HasPrefix(l.Msg, "the garbage collector is running") {
			told[l.Container] = true
		}
	}
	whole, refused := 0, 0
	for _, s := range starts {
		want := "nix-closure: container " + s.id + ": resolving " + s.tree.root + ": " + notValid(s.tree.root)
		switch said := failed[s.id]; {
		case s.err == nil && s.out == "whole\n" && said == "":
			if !s.kept {
				whole++
			}
		case s.err != nil && said == want && !s.kept:
			refused++
		default:
			t.Errorf("%s of %s: %v %s\nlog: %s", s.id, s.tree.root, s.err, s.out, said)
		}
	}
	t.Logf("of those that nothing keeps %d were whole and %d refused; %d were told to the collector; %d collections, "+
		"%d builds",
		whole, refused, len(told), collected, built)
	if whole < 5 || refused < 5 || len(told) < 5 {
		t.Error("too few of one kind: this test shows nothing")
	}
	nothingLeft(t)
}

// notValid is what is said of a store path that is not valid.
func notValid(path string) string {
	return path + " is not valid: Nix has no such path registered; fetch or build it first, for example with " +
		"`nix-store --realise " + path + "`"
}
