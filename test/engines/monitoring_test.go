// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const (
	ruleFile  = examples + "/monitoring/rules.yaml"
	dashboard = examples + "/monitoring/dashboard.json"
)

// rules calls what asks Prometheus' parser and engine.
func rules(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(*bin, "stack/rules"), args...).CombinedOutput()
	return string(out), err
}

// scrape writes what the plugin and verify say now into a file, as Prometheus would see it.
func scrape(t *testing.T, p *plugin) (file string) {
	t.Helper()
	file = t.TempDir() + "/scrape.prom"
	// Its status is that of the containers.
	out, err := exec.Command(filepath.Join(*bin, "nix-closure"), "verify", "--textfile", file).CombinedOutput()
	verified, err2 := os.ReadFile(file)
	if err2 != nil {
		t.Fatalf("verify: %v %v\n%s", err, err2, out)
	}
	_, metrics := p.get("/metrics")
	if err := os.WriteFile(file, append([]byte(metrics), verified...), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// changed is a scrape in which a pattern is something else.
func changed(t *testing.T, scrape, pattern, text string) (file string) {
	t.Helper()
	before := readFile(t, scrape)
	after := regexp.MustCompile("(?m)"+pattern).ReplaceAllString(before, text)
	if after == before {
		t.Fatalf("%q is not in\n%s", pattern, before)
	}
	file = t.TempDir() + "/scrape.prom"
	if err := os.WriteFile(file, []byte(after), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// The rules are what Prometheus takes, and they and the dashboard name the metrics and the
// labels that the plugin and verify write when they run, all of them and no others. Each
// alert fires when it should.
func TestExampleMonitoring(t *testing.T) {
	if out, err := rules("check", ruleFile); err != nil || out != "" {
		t.Errorf("%v %s", err, out)
	}
	// Its handler passes annotations on, so that verify knows what a container asked for.
	n := newNode(t, nodeOptions{gvisor: true, handlers: map[string]string{"runc": filepath.Join(*bin, "stack/runc")}})
	plugin := n.startPlugin(t, "--gvisor", "gvisor")
	good := n.run(t, "runc", podConfig(t, roots("env")))
	good.start(t, "a")
	well := scrape(t, plugin)
	checkUses(t, well)

	// fires fails if other alerts than these fire after these scrapes.
	fires := func(scrapes []string, want ...string) {
		t.Helper()
		out, err := rules(append([]string{"fires", ruleFile}, scrapes...)...)
		if got := names(out); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v: %q, want %q\n%s", err, got, want, readFile(t, scrapes[len(scrapes)-1]))
		}
	}
	long := func(scrape string) []string { return slices.Repeat([]string{scrape}, 16) } // minutes
	fires([]string{well, well})
	fires(long(well))

	// A container is refused.
	bad := n.run(t, "", podConfig(t, map[string]string{"nix-closure/root": store["env"]}))
	if _, err := bad.create(t.Context(), "a"); err == nil {
		t.Error("not refused")
	}
	bad.remove(t)
	fires([]string{well, scrape(t, plugin)}, "NixClosureRefused")

	// gVisor's containers are unknown. Verify says so at once, the alert after some minutes.
	unknown := n.run(t, "gvisor", podConfig(t, roots("env")))
	unknown.start(t, "a")
	lasting := scrape(t, plugin)
	fires([]string{lasting})
	fires(long(lasting), "NixClosureContainerUnknown")
	unknown.remove(t)

	// Without the plugin, one starts without its closure.
	plugin.end(t, syscall.SIGKILL)
	good.start(t, "b", wholeStore)
	plugin = n.startPlugin(t)
	fires([]string{scrape(t, plugin)}, "NixClosureContainerWrong", "NixClosureMissing")

	// What would take minutes, or a broken disk.
	fires(long(changed(t, well, `^nix_closure_verify_troubles 0$`, "nix_closure_verify_troubles 1")),
		"NixClosureVerifyIncomplete")
	fires([]string{changed(t, well, `^nix_closure_verify_timestamp_seconds \d+$`,
		"nix_closure_verify_timestamp_seconds 1700000000")}, "NixClosureVerifyOld")
	slow := changed(t, well, `^(nix_closure_create_container_seconds_(?:bucket\{le="\+Inf"\}|count)) \d+$`, "$1 100")
	fires([]string{well, slow}, "NixClosurePluginSlow")
	const job = "nix-closure"
	for up, want := range map[string][]string{"1": nil, "0": {"NixClosurePluginDown"}} {
		file := t.TempDir() + "/up.prom"
		// Prometheus itself writes this one.
		if err := os.WriteFile(file, []byte("up{job=\""+job+"\"} "+up+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		fires([]string{file, file}, want...)
	}

	// The controls: what is wrong is found.
	for old, c := range map[string]struct{ new, want string }{
		"without_closure > 0":   {"without_closure > > 0", "unexpected"},
		"for: 15m":              {"for: quarter", "not a valid duration"},
		"severity: critical}\n": {"severity: critical}\n    sound: loud\n", "field sound not found"},
		"$labels.name":          {"$labels.name | shout", `function "shout" not defined`},
	} {
		file := t.TempDir() + "/rules.yaml"
		text := strings.Replace(readFile(t, ruleFile), old, c.new, 1)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := rules("check", file); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v %s\nwant %s", c.new, err, out, c.want)
		}
	}
}

// checkUses compares what the rules and the dashboard name with what a scrape has.
func checkUses(t *testing.T, scrape string) {
	t.Helper()
	has := map[string]bool{}
	for line := range strings.Lines(readFile(t, scrape)) {
		m := regexp.MustCompile(`^(\w+)(?:\{(.*)\})? \S+$`).FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue // a comment
		}
		has[m[1]] = true
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			has[m[1]+" "+label[1]] = true
		}
	}
	out, err := rules("uses", ruleFile, dashboard)
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	uses := map[string]bool{}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		uses[line] = true
		_, label, _ := strings.Cut(line, " ")
		// Prometheus itself writes these.
		if label != "instance" && label != "job" && line != "up" && !has[line] {
			t.Errorf("they name %q, and there is none in\n%s", line, readFile(t, scrape))
		}
	}
	for name := range has {
		if !strings.Contains(name, " ") && !uses[name] {
			t.Errorf("neither the rules nor the dashboard name %s", name)
		}
	}
	if len(has) < 15 {
		t.Errorf("the scrape has %q", slices.Sorted(maps.Keys(has)))
	}
	// The control.
	other := t.TempDir() + "/dashboard.json"
	text := strings.ReplaceAll(readFile(t, dashboard), "nix_closure_verify_troubles", "nix_closure_verify_worries")
	if err := os.WriteFile(other, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := rules("uses", other); err != nil || has["nix_closure_verify_worries"] ||
		!strings.Contains(out, "nix_closure_verify_worries\n") {
		t.Errorf("%v %s", err, out)
	}
}

// The dashboard is what Grafana imports: each panel has a number, a title, a description,
// a place of its own and the data source that the reader chooses.
func TestExampleDashboard(t *testing.T) {
	type dataSource struct{ Type, UID string }
	var d struct {
		Title, UID    string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name, Type string }
		}
		Panels []struct {
			ID                       int
			Title, Description, Type string
			DataSource               dataSource
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct {
				RefID, Expr, LegendFormat string
				DataSource                dataSource
			}
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion == 0 || len(d.Panels) == 0 {
		t.Errorf("%+v", d)
	}
	chosen := dataSource{"prometheus", "${datasource}"}
	taken := map[[2]int]int{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" || p.Description == "" || p.DataSource != chosen ||
			len(p.Targets) == 0 || !slices.Contains([]string{"stat", "timeseries", "table"}, p.Type) {
			t.Errorf("%+v", p)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				place := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if place[0] >= 24 || taken[place] != 0 {
					t.Errorf("%s is on panel %d, or outside", p.Title, taken[place])
				}
				taken[place] = p.ID
			}
		}
		for _, target := range p.Targets {
			if target.RefID == "" || target.DataSource != chosen {
				t.Errorf("%s: %+v", p.Title, target)
			}
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if m[1] != "instance" && !strings.Contains(target.Expr, "by ("+m[1]+")") {
					t.Errorf("%s: no label %s in %s", p.Title, m[1], target.Expr)
				}
			}
			for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				if m[1] != "__rate_interval" && !slices.ContainsFunc(d.Templating.List,
					func(v struct{ Name, Type string }) bool { return v.Name == m[1] }) {
					t.Errorf("%s: no variable %s", p.Title, m[1])
				}
			}
		}
	}
}
