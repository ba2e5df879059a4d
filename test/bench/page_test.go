// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nix-closure/nix-closure/test/speed"
)

const docs = "../../docs"

// The page and its charts are what the rows give.
func TestPage(t *testing.T) {
	names, err := stale(docs)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 {
		t.Errorf("not what docs/%s gives: %q; call make speed-docs", rowsFile, names)
	}
	charts, err := filepath.Glob(docs + "/speed-*.svg")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(docs + "/" + pageFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range charts {
		if !strings.Contains(string(text), "("+filepath.Base(c)+")") {
			t.Errorf("the page does not show %s", c)
		}
	}
}

// A figure that changes in the page, in a chart or in the rows is found.
func TestPageIsStale(t *testing.T) {
	dir := t.TempDir()
	if err := writePage(docs+"/"+rowsFile, dir); err != nil {
		t.Fatal(err)
	}
	if names, err := stale(dir); err != nil || len(names) > 0 {
		t.Fatalf("what was written is not what the rows give: %q %v", names, err)
	}
	page := filepath.Join(dir, pageFile)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page, append(text, "Twice as fast.\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if names, err := stale(dir); err != nil || !slices.Equal(names, []string{pageFile}) {
		t.Errorf("%q %v", names, err)
	}
	r, err := speed.Read(filepath.Join(dir, rowsFile))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Rows, func(row speed.Row) bool {
		return row.Group == "start" && row.Paths > 0 && row.N > 0
	})
	r.Rows[i].Median *= 2
	if err := r.Write(filepath.Join(dir, rowsFile)); err != nil {
		t.Fatal(err)
	}
	if names, err := stale(dir); err != nil || len(names) < 2 {
		t.Errorf("%q %v", names, err)
	}
}

// figure is a time, a size of memory or a ratio, as a text would have it that was measured.
var figure = regexp.MustCompile(`\b[0-9][0-9.,]* ?` +
	`(ms|µs|milliseconds|microseconds|KiB of (slab|memory)|% (faster|slower))\b` +
	`|[0-9] ?×|\b[0-9.]+ (of the time|times as (fast|long|slow))`)

// notMeasured have such a figure that is no measurement: a limit, or an example.
var notMeasured = map[string]string{
	"closure/stamp.go":                         "a clock tick is 1 to 10 ms",
	"examples/systemd/nix-closure-nri.service": "RestartSec=100ms",
}

// No figure of speed is anywhere but in the page.
func TestFiguresAreInThePage(t *testing.T) {
	// What is in the tree, and what is not yet.
	files, err := exec.Command("git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		// An archive of the tree has no history.
		files = walked(t)
	}
	for name := range strings.Lines(string(files)) {
		name = strings.TrimSpace(name)
		goFile := strings.HasSuffix(name, ".go")
		if strings.HasPrefix(name, "docs/speed") || strings.HasPrefix(name, "test/bench/") ||
			strings.HasPrefix(name, "test/speed/") || !goFile && !strings.HasSuffix(name, ".md") &&
			!strings.HasPrefix(name, "examples/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			continue // removed, and git does not know it yet
		}
		for i, line := range strings.Split(string(text), "\n") {
			if goFile {
				// Of code, comments only.
				_, comment, found := strings.Cut(line, "//")
				if !found {
					continue
				}
				line = comment
			}
			if allowed := notMeasured[name]; allowed != "" && strings.Contains(line, allowed) {
				continue
			}
			if found := figure.FindString(line); found != "" {
				t.Errorf("%s:%d has the figure %q; link to docs/speed.md", name, i+1, found)
			}
		}
	}
	if !figure.MatchString("a start takes 17 ms") || !figure.MatchString("1.36× the floor") ||
		!figure.MatchString("less than 0.3 of the time of") {
		t.Error("a figure is not found")
	}
}

func walked(t *testing.T) []byte {
	t.Helper()
	var names strings.Builder
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && (e.Name() == "bin" || e.Name() == ".git") {
			return fs.SkipDir
		}
		name, relErr := filepath.Rel("../..", path)
		if err == nil && relErr == nil && e.Type().IsRegular() {
			names.WriteString(name + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(names.String())
}
