// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

// skipping is a word of the module that skips: a search for tests that skip finds none here.
const skipping = "Sk" + "ip"

// modules are modules of one test file each, by name. The one that skips shows that a
// skipped test is a failure.
var modules = map[string]string{
	"passes": `
func TestPasses(t *testing.T) {
	t.Log("logged, and nobody needs it\nin two lines")
	fmt.Print("printed by a test\n        and indented\n")
	t.Run("sub/a", func(t *testing.T) { t.Log("logged below") })
	t.Run("sub/b", func(t *testing.T) {})
}
func TestToo(t *testing.T) {}
`,
	"fails": `
func TestFails(t *testing.T) {
	t.Run("a/b", func(t *testing.T) { t.Error("the reason\nin two lines") })
	t.Run("good", func(t *testing.T) { t.Log("logged, and nobody needs it") })
}
func TestAlone(t *testing.T) { t.Fatal("another reason") }
func TestPasses(t *testing.T) { fmt.Println("printed") }
`,
	"skips": `
func TestSkips(t *testing.T) { t.` + skipping + `("there is no moon") }
func TestPasses(t *testing.T) { fmt.Println("printed") }
`,
	"notbuilt": `
func TestNotBuilt(t *testing.T) { fmt.Println(undefinedName) }
`,
	"panics": `
func TestPanics(t *testing.T) { t.Log("logged before"); fmt.Println("printed"); panic("no towel") }
func TestNever(t *testing.T) {}
`,
	"exits": `
func TestMain(*testing.M) { fmt.Println("setting up: no bowl"); os.Exit(1) }
`,
	"inherits": `
func TestSees(t *testing.T) { fmt.Println("sees", os.Getenv("PATH")) }
`,
}

// header begins each test file.
const header = `package x

import (
	"fmt"
	"os"
	"testing"
)

var _ = fmt.Sprint(os.Args)
`

// module writes a module, and returns its directory.
func module(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	for file, text := range map[string]string{
		"go.mod":    "module example.org/" + name + "\n\ngo 1.26\n",
		"x_test.go": header + modules[name],
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runSuites runs suites, and returns the exit status and all that they print.
func runSuites(t *testing.T, suites ...suite) (status int, text string) {
	t.Helper()
	out := outputFile(t)
	status = report(runAll(context.Background(), suites, out), out)
	return status, contents(t, out)
}

// outputFile is a file for what suites print, for the length of a test.
func outputFile(t *testing.T) *os.File {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out
}

func contents(t *testing.T, f *os.File) string {
	t.Helper()
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func suiteOf(t *testing.T, name string) suite {
	t.Helper()
	return suite{name, []step{{dir: module(t, name), args: []string{"./..."}}}}
}

// rows are those of the table at the end of a text, with S for the seconds.
func rows(text string) string {
	_, table, _ := strings.Cut(text, "\nsuite ")
	table = regexp.MustCompile(` \d+(\n|$)`).ReplaceAllString("suite "+table, " S$1")
	return regexp.MustCompile(` +`).ReplaceAllString(table, " ")
}

// Each suite runs whatever became of the others. What fails, is skipped or is not built
// is shown, with its reason, and makes the status 1.
func TestSuites(t *testing.T) {
	var suites []suite
	for _, name := range []string{"fails", "notbuilt", "skips", "panics", "exits"} {
		suites = append(suites, suiteOf(t, name))
	}
	suites = append(suites,
		suite{"unprepared", []step{{prepare: []string{"false"}}, {dir: module(t, "passes"), args: []string{"."}}}},
		suite{"missing", []step{{prepare: []string{"/no/such/program"}}}},
		suite{"prepared", []step{
			{prepare: []string{"echo", "prepared it"}},
			{dir: module(t, "passes"), args: []string{"."}},
			{dir: module(t, "inherits"), args: []string{"."}, path: "/a/path"},
		}},
	)
	status, text := runSuites(t, suites...)
	if status != 1 {
		t.Errorf("the status is %d", status)
	}
	const want = `suite tests failed seconds
fails 4 2 S
notbuilt 0 1 S
skips 2 1 S
panics 1 1 S
exits 0 1 S
unprepared 0 1 S
missing 0 1 S
prepared 4 0 S
`
	if got := rows(text); got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
	for _, want := range []string{
		"--- FAIL: TestFails/a/b (", ": the reason\n        in two lines\n", "--- FAIL: TestAlone (",
		": another reason\n",
		"FAIL\texample.org/fails", "undefined: undefinedName", "FAIL\texample.org/notbuilt [build failed]",
		"--- SKIP: TestSkips (", ": there is no moon\n", "TestSkips: skipped, and no test may be",
		"panic: no towel", ": logged before\n", "setting up: no bowl\n", "prepared it\n",
		"printed by a test\n        and indented\n", "ok  \texample.org/passes", ":/a/path:",
		"unprepared: false: exit status 1\n", "missing: /no/such/program: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not shown", want)
		}
	}
	for _, unwanted := range []string{"=== RUN", "nobody needs it", "logged below", "--- PASS", `"Action"`} {
		if strings.Contains(text, unwanted) {
			t.Errorf("%q is shown", unwanted)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestAllPass(t *testing.T) {
	status, text := runSuites(t, suiteOf(t, "passes"))
	if got, want := rows(text), "suite tests failed seconds\npasses 3 0 S\n"; status != 0 || got != want {
		t.Errorf("status %d\n%s\nwant\n%s\n%s", status, got, want, text)
	}
}

// A suite that does not exist is an error, and so is an unknown flag.
func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"e2e nothing": `suites: there is no suite "nothing"`,
		"-unknown":    "flag provided but not defined: -unknown",
	} {
		out := outputFile(t)
		status := run(strings.Fields(args), out)
		if text := contents(t, out); status != 2 || !strings.Contains(text, want) {
			t.Errorf("%q: status %d: %s", args, status, text)
		}
	}
	chosen, err := named(allSuites("/bin"), []string{"engines", "unit"})
	if err != nil || len(chosen) != 2 || chosen[0].name != "engines" {
		t.Errorf("%+v, %v", chosen, err)
	}
}

// When the context ends, so does what runs, and nothing else is started.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	pipe := filepath.Join(t.TempDir(), "pipe")
	wait := suite{"waits", []step{{prepare: []string{"sh", "-c", "echo >" + pipe + "; sleep 1000"}}}}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = os.ReadFile(pipe) // it runs
		stop()
	}()
	results := runAll(ctx, []suite{wait, suiteOf(t, "passes")}, outputFile(t))
	if len(results) != 2 || results[0].failed != 1 || results[1].failed != 1 || results[1].tests != 0 {
		t.Errorf("%+v", results)
	}
}
