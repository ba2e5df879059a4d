// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// inspection is what inspect says of a container.
type inspection struct {
	ID, Name, Status, Engine, Way, Mode, ClosureInfo, Digest, View, GCRoots, Bundle, Trouble string
	Roots                                                                                    []string
	Paths, Size, Pid                                                                         int
	Since                                                                                    time.Time
	Registration, Listing, Writable                                                          bool
}

func inspect(t *testing.T, args ...string) []inspection {
	t.Helper()
	var all []inspection
	text := must(t, nixClosure(), append([]string{"inspect", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return all
}

// Inspect says what each container may see, by which way it came and since when.
func TestInspect(t *testing.T) {
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		name := fmt.Sprintf("inspected-%s-%s", runtime, mode)
		id := container{runtime: runtime, mode: mode, root: "env",
			flags: []string{"--name", name, registered, unlisted}}.start(t)
		for _, argument := range []string{id, id[:12], name} {
			all := inspect(t, argument)
			if len(all) != 1 {
				t.Fatalf("%s: %+v", argument, all)
			}
			i := all[0]
			if i.ID != id || i.Name != name || i.Status != "running" || i.Engine != "podman" || i.Way != "annotation" ||
				i.Mode != mode || !slices.Equal(i.Roots, []string{store["env"]}) ||
				i.Paths != len(closureOf(t, store["env"])) ||
				i.Size == 0 || i.Pid == 0 || time.Since(i.Since) > time.Minute || !i.Registration || i.Listing ||
				i.Writable ||
				i.Trouble != "" || i.GCRoots != gcRoots+"/"+id {
				t.Errorf("%s: %+v", argument, i)
			}
		}
		table := must(t, nixClosure(), "inspect")
		row := regexp.MustCompile(`(?m)^` + id[:12] + ` +` + name + ` +running +podman +annotation +` + mode +
			` +test-env +\d+ +[\d.]+[KMG]iB +.* ago$`)
		if !strings.HasPrefix(table, "CONTAINER ") || !row.MatchString(table) {
			t.Errorf("the table is\n%s", table)
		}
		for format, want := range map[string]string{
			"{{.ID}} {{.Mode}}": id + " " + mode + "\n",
			`table {{.Name}}\t{{join (short .Roots) ","}}`: fmt.Sprintf("%-*s  ROOTS\n%s  test-env\n", len(name),
				"NAME", name),
			"{{json .Roots}}": fmt.Sprintf("[%q]\n", store["env"]),
			"{{upper .Mode}}": strings.ToUpper(mode) + "\n",
		} {
			if got := must(t, nixClosure(), "inspect", "--format", format, id); got != want {
				t.Errorf("%s: %q, want %q", format, got, want)
			}
		}
		if whole := must(t, nixClosure(), "inspect", id); !strings.Contains(whole, "roots         "+store["env"]+"\n") {
			t.Errorf("the whole is\n%s", whole)
		}
	})
	// A record of before there were engine and way.
	id := container{runtime: "runc", root: "env"}.start(t)
	p := planted{t: t, id: id, record: runtimeDir + "/containers/" + id + ".json"}
	for _, field := range []string{"engine", "way"} {
		if err := p.edit(field, nil); err != nil {
			t.Fatal(err)
		}
	}
	if i := inspect(t, id)[0]; i.Engine != "" || i.Way != "" || i.Status != "running" {
		t.Errorf("%+v", i)
	}
	found, status := verify(t, id)
	checkOK(t, found, status, id)
}

// A command line that is not understood has its own exit status.
func TestVerifyUsage(t *testing.T) {
	one := container{runtime: "runc", root: "env", flags: []string{"--name=same-1"}}.start(t)
	for _, args := range [][]string{
		{"verify", "--nothing"}, {"verify", "nothing"}, {"verify", ""}, {"verify", "--watch=-1s"},
		{"inspect", "--format={{"},
		{"inspect", "--format={{.Nothing}}", one}, {"inspect", "--json", "--format=x"}, {"inspect", "nothing"},
	} {
		cmd := exec.Command(nixClosure(), args...)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run()
		if cmd.ProcessState.ExitCode() != 2 || strings.Count(errs.String(), "\n") != 1 || out.Len() > 0 {
			t.Errorf("%q: status %d, %s%s", args, cmd.ProcessState.ExitCode(), out.String(), errs.String())
		}
	}
	// What is not unique is no name.
	var first []string
	for range 17 {
		first = append(first, container{runtime: "runc", root: "env"}.start(t)[:1])
	}
	slices.Sort(first)
	i := 1
	for ; first[i] != first[i-1]; i++ {
	}
	stdout, stderr, err := call(nixClosure(), "verify", first[i])
	if err == nil || stdout != "" || !strings.Contains(stderr, "an ID that begins with it") {
		t.Errorf("%q: %v %s%s", first[i], err, stdout, stderr)
	}
}

// The examples of --help run.
func TestCommandExamples(t *testing.T) {
	id := container{runtime: "crun", root: "env"}.start(t)
	metrics := "/var/lib/prometheus/node-exporter"
	if err := os.MkdirAll(metrics, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"inspect", "verify"} {
		_, text, _ := strings.Cut(must(t, nixClosure(), command, "--help"), "Examples:\n")
		text, _, _ = strings.Cut(text, "\n\n")
		lines := strings.Split(text, "\n")
		if len(lines) < 4 {
			t.Fatalf("examples of %s: %q", command, lines)
		}
		for _, line := range lines {
			line, filter, _ := strings.Cut(strings.ReplaceAll(line, "3f1c", id[:12]), " | jq ")
			cmd := exec.Command("timeout", "--preserve-status", "--signal=INT", "2", "sh", "-c",
				"exec "+strings.TrimSpace(line))
			cmd.Env = append(os.Environ(), "PATH="+*bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil || len(out) == 0 || filter != "" && !json.Valid(out) {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		}
	}
	text, err := os.ReadFile(metrics + "/nix-closure.prom")
	if err != nil || !strings.Contains(string(text), "nix_closure_verify_containers{state=\"ok\"} 1\n") {
		t.Errorf("%v\n%s", err, text)
	}
}

// With --watch, what changes is printed when it does, and the metrics say so.
func TestVerifyWatch(t *testing.T) {
	p := plantable(t, container{runtime: "runc", root: "env", flags: []string{"--name=watched"}})
	file := p.dir + "/metrics.prom"
	cmd := exec.Command(nixClosure(), "verify", "--watch=100ms", "--textfile", file)
	var out, errs lockedText
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func(pattern string) {
		t.Helper()
		for range 200 {
			if regexp.MustCompile(pattern).MatchString(out.String()) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("nothing like %q in\n%s%s", pattern, out.String(), errs.String())
	}
	gauge := fmt.Sprintf("nix_closure_verify_container_ok{id=%q,name=\"watched\",state=", p.id)
	wait(`(?m)^ok +` + p.id + ` watched \(overlay, \d+ paths\)$`)
	checkMetrics(t, file, gauge+`"ok"} 1`)
	if err := p.show(storeDir, "/tmp/shown"); err != nil {
		t.Fatal(err)
	}
	wait(`(?m)^\d{4}-\S+Z ` + p.id + ` watched wrong: mount on /tmp/shown: shows /nix/store`)
	checkMetrics(t, file, gauge+`"wrong"} 0`)
	if err := p.unmount("/tmp/shown"); err != nil {
		t.Fatal(err)
	}
	wait(`(?m)^\d{4}-\S+Z ` + p.id + ` watched ok$`)
	remove(t, p.id)
	wait(`(?m)^\d{4}-\S+Z ` + p.id + ` watched gone$`)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || errs.String() != "" {
		t.Errorf("%v %s", err, errs.String())
	}
	if lines := strings.Count(out.String(), "\n"); lines != 4 {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o644 {
		t.Errorf("%v %v", st, err)
	}
	if entries, err := os.ReadDir(p.dir); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

func checkMetrics(t *testing.T, file, want string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), want+"\n") {
		t.Errorf("%v\n%s\nwant %s", err, text, want)
	}
}

// lockedText is what a program writes while it is read.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
