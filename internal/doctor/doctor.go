// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out whether a host would start a container without its closure,
// or not at all: the kernel and the runtime directory (host.go), the store (store.go),
// the configuration and its policy (configured.go), the CDI devices (devices.go), the
// programs (program.go), and each engine's configuration as it is in force (podman.go,
// containerd.go, crio.go, docker.go). The canary (canary.go) starts a container that must
// be refused.
//
// It changes nothing on the host; only the canary makes something, and removes it.
package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// Severity is what a finding does to containers with an annotation.
type Severity string

// The severities, the worst first.
const (
	// Open: they start without their closure, or somebody can make them.
	Open Severity = "open"
	// Closed: they do not start, or not all of them.
	Closed Severity = "closed"
	// Warning: they start with their closure, and something else is not as it should be.
	Warning Severity = "warning"
	// Unknown: it could not be found out.
	Unknown Severity = "unknown"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	ID          string   `json:"id"`
	Severity    Severity `json:"severity"`
	Engine      string   `json:"engine,omitempty"`
	What        string   `json:"what"`
	Consequence string   `json:"consequence"`
	// Fix are commands for a shell, in order; empty: no command does it, see Advice.
	Fix    []string `json:"fix"`
	Advice string   `json:"advice,omitempty"`
}

// Fact is something that was found out, and is as it should be.
type Fact struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

// Report is what doctor found.
type Report struct {
	Findings []Finding `json:"findings"`
	Facts    []Fact    `json:"facts"`
}

// FailsOpen tells whether anything lets containers start without their closure.
func (r Report) FailsOpen() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Open })
}

// Options say what is examined.
type Options struct {
	Config  string   // this program's configuration
	Engines []string // empty: all that the host has
	Canary  bool
	// Users are those whose podman is looked at, root first.
	Users []User
}

// User is a user of podman.
type User struct {
	Name string
	UID  int
	engineconfig.PodmanUser
}

// exam is one examination.
type exam struct {
	Options
	config config.Config
	self   string // this program
	owner  int    // who, besides root, may own what is looked at
	report Report
}

// Examine looks at the host.
func Examine(ctx context.Context, o Options) (Report, error) {
	self, err := os.Executable()
	if err != nil {
		return Report{}, err
	}
	e := &exam{Options: o, self: self, owner: os.Geteuid(), report: Report{Findings: []Finding{}, Facts: []Fact{}}}
	e.kernel()
	if e.configured() {
		e.runtimeDir()
		e.store(ctx)
		e.views(ctx)
		e.policy()
		e.devices(ctx)
	}
	for _, engine := range []struct {
		name    string
		examine func(ctx context.Context)
	}{
		{"podman", e.podman}, {"containerd", e.containerd}, {"cri-o", e.crio}, {"docker", e.docker},
	} {
		if len(o.Engines) == 0 || slices.Contains(o.Engines, engine.name) {
			engine.examine(ctx)
		}
	}
	order := []Severity{Open, Closed, Warning, Unknown}
	slices.SortStableFunc(e.report.Findings, func(a, b Finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	return e.report, nil
}

// other is an examination of another configuration on the same host.
func (e *exam) other() *exam {
	return &exam{Options: e.Options, config: e.config, self: e.self, owner: e.owner}
}

// find adds a finding, once.
func (e *exam) find(f Finding) {
	if f.Fix == nil {
		f.Fix = []string{}
	}
	same := func(g Finding) bool { return f.ID == g.ID && f.What == g.What }
	if !slices.ContainsFunc(e.report.Findings, same) {
		e.report.Findings = append(e.report.Findings, f)
	}
}

// broken finds a configuration that its engine does not understand either.
func (e *exam) broken(id, engine, name string, err error) {
	e.find(Finding{
		ID: id, Severity: Closed, Engine: engine, What: oneLine(err),
		Consequence: name + " does not start", Advice: "mend the file",
	})
}

func (e *exam) unknown(engine, what string, err error) {
	advice := ""
	if os.Geteuid() != 0 {
		advice = "run as root"
	}
	e.find(Finding{
		ID: "unknown", Severity: Unknown, Engine: engine, What: what + ": " + err.Error(),
		Consequence: "whether containers get their closure here is not known", Advice: advice,
	})
}

func (e *exam) fact(subject, text string) {
	e.report.Facts = append(e.report.Facts, Fact{subject, text})
}

// install is the command that puts the hook into an engine.
func (e *exam) install(engine string, options ...string) string {
	return strings.Join(append([]string{quote(e.self), "install", engine}, options...), " ")
}

// programs is where this program and those beside it are.
func (e *exam) programs() string { return filepath.Dir(e.self) }

// quote makes one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("/._-+:@=", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func quoteAll(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = quote(s)
	}
	return strings.Join(quoted, " ")
}
