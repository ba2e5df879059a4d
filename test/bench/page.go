// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/test/speed"
)

// What the tests of ../engines measure.
const (
	fullNodeStart = "110 pods, each start"
	fullNodeWorst = "110 pods, the worst percentile"
	firstPod      = "first pod of a closure"
	rival         = "nix-snapshotter"
	rivalMade     = "nix-snapshotter, its image made too"
	// overlayByPlugin has no wrapper.
	overlayByPlugin = "overlay, by the plugin"
	ordinaryImage   = "an ordinary image that has the closure"
)

// bindFloor is the group of bench/bindfloor.
const bindFloor = "bind mode, 1,000 store paths"

// The files of the page.
const (
	pageFile = "speed.md"
	rowsFile = "speed.csv"
)

type section struct{ group, title, text string }

// sections are the headings of the groups, and what the reader must know of them. Groups
// that are not here come last, by their own name.
var sections = []section{
	{"start", "Start to exit",
		`A container of crun run or runc run whose program does nothing, from its creation to its removal. The floor
is the same container with the whole store bind-mounted and an empty static Go program as its hook of both
stages. nix-closure's hooks have the environment of its hook files. *First start*: the host remembers
nothing of the closure. *New image*: the image has no mount points for the mounts yet. bubblewrap makes the
same namespaces, and takes its mounts from a file.`},
	{"podman", "podman run --rm",
		`An ordinary image, without a network. What has the store bound whole has no hooks, but for the row
without an annotation. Rootless containers have bind views.`},
	{"pods", "Pods",
		`containerd, by the CRI: from the sandbox to the running process. nix-snapshotter and the ordinary image
have the same closure of 1,000 paths with one file each. *First pod*: the host has the store paths, and
nothing else of the closure. To load an image counts; to make it counts only where that is said. *110 pods*:
four at a time. Each pod is compared with the pod of the same number that has the store bound whole, on a
node that was filled directly before or after, or lately for the ways without a target. No more are started
after 40 seconds. *The worst percentile*: the greatest quotient of one percentile of both. Overlay and bind
are by the wrapper where nothing else is said. *An empty wrapper*: a static Go program that becomes the
runtime, with an empty static Go program as the hook of both stages, also of the sandbox, to which
nix-closure's wrapper adds none. The plugin has a containerd of its own.`},
	{"first", "First start of a closure",
		`1,000 paths with 15 files each. The layer with an entry for each file is made without any digest of
contents, which composefs needs too. nix copy makes a store of its own, which is then bind-mounted. Both are
made anew for each start.`},
	{"resolve", "Resolve a closure",
		`The command prints the closure. *Cold*: the runtime directory is empty.`},
	{"files", "Files",
		`15,000 files of 1,000 paths, and the programs of a small store, in a container. *Nothing cached*: the
store's file system was mounted for this container alone, so the kernel has no name, inode or page of it.
Only the blocks of the disk image may be in the kernel's memory. *The view new*: each file was read before,
past the view. *Warm*: the same program did the same before. The time to execute is that of one.`},
	{"memory", "Memory",
		`200 containers of each way at the same time, ten of each way in turn. A value is what ten more containers
change in /proc/meminfo, divided by ten. It includes what the runtime and the kernel need for any container.
Page cache has much noise, because everything on the machine changes it. *Each file read*: each container
read every file of its closure; the kernel can reclaim most of that slab.`},
	{"remove", "Removal",
		`Deletion by force of a container that was created and not started.`},
	{"mountinfo", "Mounts inside",
		`A program in the container reads /proc/self/mountinfo.`},
	{"unannotated", "Containers without an annotation",
		`Processes by themselves. The wrapper stands before a runtime that does nothing. podman and CDI start no
process for such containers. What pods pay is in the table of pods.`},
	{"hook", "The hook's memory, and verify", ""},
	{bindFloor, "Bind mode and the kernel's floor",
		`Four system calls for each store path (mkdirat, open_tree, move_mount, close) by a C program are the floor.
A recursive clone of a prepared tree would be faster. It is not built: the tree would have to stay mounted
somewhere, so it needs a lifetime, a sweep and memory for each closure.`},
	{"wrapper", "The wrapper's calls",
		"For a container without an annotation. The floor is a static program that only becomes the runtime."},
	{"a view as one mount, 1,000 store paths", "A view as one mount of config.json",
		`A prototype that is not a part of nix-closure: the view was mounted on the host before. Each container is
started directly after another one, because the kernel waits when the first for a while moves to a cgroup. The
prototype leaves out one process, and with it what that process does: to claim, to pin, to build, and to judge
what is really mounted. The first three the wrapper would have to do instead. The last needs a process in the
container's mount namespace, after the runtime has mounted: without it, a container could start with more than
its closure. So it is not built.`},
	{"profile", "Where the time goes",
		`Samples of perf (cpu-clock). *By program*: of all that ran on the processors, divided by the starts, so with
the benchmark itself, engines and the kernel's own threads, but without what interrupts an idle processor. perf
takes time too. *In one program*: by function, in percent. Of the warm files, one walk in forty is the first. What
a start of the hook does is counted in [speed-hook.md](speed-hook.md).`},
}

const pageHead = `<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- make speed-docs writes this page from speed.csv. Do not edit it. -->
# Speed

`

const pageText = `A run of make bench measured all figures of this page. [speed.csv](speed.csv) has them,
and what they are compared to. A cell has the median, the 10th and the 90th percentile in brackets, and
the ratio to what is beside it. Each row has at least %d values, if the file does not say less. In each
round every way has its turn, in another order. A ratio is the median of the ratios of pairs: each value is
divided by the one that was taken directly before or after it, or in the same round. On other machines the
times are others. The ratios are similar, but not where page faults or system calls cost several times as
much, as in some virtual machines.`

// page writes the page.
func page(r *speed.Results) string {
	var out strings.Builder
	out.WriteString(pageHead + paragraph(fmt.Sprintf(pageText, fewest)) + "\n")
	out.WriteString("| on | |\n|---|---|\n")
	for _, f := range r.Facts {
		fmt.Fprintf(&out, "| %s | %s |\n", escape(f.Name), escape(f.Value))
	}
	out.WriteString("\n## Targets\n\n| | what | measured | target |\n|---|---|---|---|\n")
	for _, t := range targets(r) {
		fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", t.verdict(), escape(t.what),
			escape(strings.TrimSpace(t.measured()+" "+unitIf(t))), strings.TrimSpace(t.bound()+" "+t.unit))
	}
	var missing []string
	for _, row := range r.Rows {
		if row.N == 0 && strings.HasPrefix(row.Note, "missing") {
			missing = append(missing, row.Name())
		}
	}
	if len(missing) > 0 {
		out.WriteString("\nMissing on that machine: " + escape(strings.Join(missing, "; ")) + ".\n")
	}
	all := tables(r)
	for _, s := range orderOf(r) {
		fmt.Fprintf(&out, "\n## %s\n", s.title)
		if s.text != "" {
			out.WriteString("\n" + paragraph(s.text))
		}
		for _, c := range charts[s.group] {
			if svg, err := c.svg(r); err == nil && svg != nil {
				fmt.Fprintf(&out, "\n![%s](%s)\n", c.title, c.file())
			}
		}
		for _, t := range all {
			if t.group == s.group {
				t.markdown(&out, r)
			}
		}
	}
	return out.String()
}

// paragraph is a text on one line.
func paragraph(text string) string { return strings.ReplaceAll(text, "\n", " ") + "\n" }

func unitIf(t target) string {
	if t.missing != "" {
		return ""
	}
	return t.unit
}

func (c chart) file() string { return "speed-" + c.name + ".svg" }

// orderOf returns the sections that have rows.
func orderOf(r *speed.Results) (all []section) {
	has := func(group string) bool {
		return r.Find(func(row speed.Row) bool { return row.Group == group }) != nil
	}
	for _, s := range sections {
		if has(s.group) {
			all = append(all, s)
		}
	}
	for _, row := range r.Rows {
		if !slices.ContainsFunc(all, func(s section) bool { return s.group == row.Group }) {
			title := strings.ToUpper(row.Group[:1]) + row.Group[1:]
			all = append(all, section{group: row.Group, title: title})
		}
	}
	return all
}

// markdown writes the table.
func (t *table) markdown(out *strings.Builder, r *speed.Results) {
	fmt.Fprintf(out, "\n| %s, %s | %s |\n|---|%s\n", escape(t.what), unitOf(r, t), strings.Join(t.header(), " | "),
		strings.Repeat("---|", len(t.sizes)))
	for _, l := range t.lines {
		fmt.Fprintf(out, "| %s | %s |\n", escape(l.name), strings.Join(l.cells, " | "))
	}
	for i, a := range t.absent {
		if i == 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(out, "- %s\n", escape(fmt.Sprintf("%.300s", a)))
	}
}

// escape keeps a text in its cell.
func escape(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(cmp.Or(text, "unknown"))
}

// files are the page and all that it shows, by name.
func pageFiles(r *speed.Results) (map[string][]byte, error) {
	files := map[string][]byte{pageFile: []byte(page(r))}
	for _, list := range charts {
		for _, c := range list {
			svg, err := c.svg(r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if svg != nil {
				files[c.file()] = svg
			}
		}
	}
	return files, nil
}

// writePage writes the page of the rows into a directory, and the rows.
func writePage(csv, dir string) error {
	r, err := speed.Read(csv)
	if err != nil {
		return err
	}
	files, err := pageFiles(r)
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "speed-*.svg"))
	if err != nil {
		return err
	}
	for _, file := range old {
		err = errors.Join(err, os.Remove(file))
	}
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	return errors.Join(err, r.Write(filepath.Join(dir, rowsFile)))
}

// stale says which files of the page are not what the rows give.
func stale(dir string) (names []string, _ error) {
	r, err := speed.Read(filepath.Join(dir, rowsFile))
	if err != nil {
		return nil, err
	}
	files, err := pageFiles(r)
	if err != nil {
		return nil, err
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
