// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	documentLink   = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	documentedName = regexp.MustCompile("(?:^|[` ])" +
		`((?:\.ci|closure|cmd|docs|examples|hook|internal|spec|test)/[\w./-]*)`)
	makeTarget = regexp.MustCompile("(?m)(?:^    |`|&& )make ([a-z][a-z0-9-]*)\\b")
	testName   = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*…?`)
)

// The files, targets of make and tests that the documents name are there.
func TestDocumentedNames(t *testing.T) {
	tests := testNames(t)
	makefile := readDocument(t, "Makefile")
	for _, name := range allDocuments(t) {
		text := readDocument(t, name)
		for _, m := range documentLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(repository, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
		for _, m := range documentedName.FindAllStringSubmatch(text, -1) {
			path := strings.TrimRight(m[1], ".")
			if _, err := os.Stat(filepath.Join(repository, path)); err != nil {
				t.Errorf("%s names %s: %v", name, path, err)
			}
		}
		for _, m := range makeTarget.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^([a-z0-9 -]+ )?` + m[1] + `( [a-z0-9 -]+)?:`).MatchString(makefile) {
				t.Errorf("%s names make %s", name, m[1])
			}
		}
		for _, test := range testName.FindAllString(text, -1) {
			begin, many := strings.CutSuffix(test, "…")
			if found := strings.Contains(tests, "\n"+begin); !found ||
				!many && !strings.Contains(tests, "\n"+begin+"\n") {
				t.Errorf("%s names the test %s", name, test)
			}
		}
	}
}

// allDocuments are those of the repository, by their names from its root.
func allDocuments(t *testing.T) []string {
	t.Helper()
	all := []string{}
	for _, pattern := range []string{"*.md", "*/*.md", "*/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			all = append(all, strings.TrimPrefix(path, repository+"/"))
		}
	}
	return all
}

// testNames are those of all tests and fuzz targets, each between line breaks.
func testNames(t *testing.T) string {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	names := "\n"
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			names += m[1] + "\n"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
