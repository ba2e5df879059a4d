// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// crio looks at CRI-O's hook files and runtimes, as the daemon that runs has them, or as
// its files do.
func (e *exam) crio(ctx context.Context) {
	c, err := engineconfig.FindCRIO("")
	if c == nil {
		return
	}
	if err != nil {
		e.broken("crio-config", "cri-o", "CRI-O", err)
		return
	}
	if c.PID != 0 {
		if err := e.crioInForce(ctx, c); err != nil {
			e.unknown("cri-o", "what the daemon has in force, by "+c.Socket, err)
		}
	}
	wrapper := isWrapper(c.Runtimes[c.Default])
	e.hookFiles("cri-o", "this host", c.HooksDirs, wrapper)
	for _, name := range sortedKeys(c.Runtimes) {
		if !isWrapper(c.Runtimes[name]) {
			continue
		}
		e.program("cri-o", c.Runtimes[name], engineconfig.RuntimeProgram, whereMissing{
			severity: Closed, consequence: "no container that comes by the runtime " + name + " starts",
			fix: []string{e.install("cri-o"), engineconfig.RestartCRIO},
		})
		e.wrapped("cri-o")
		if name == c.Default && e.config.Engine != "cri-o" {
			e.find(Finding{
				ID: "crio-engine", Severity: Closed, Engine: "cri-o",
				What:        "the wrapper is CRI-O's default, and " + e.Config + ` has no engine = "cri-o"`,
				Consequence: "pods with a key for one of their containers are refused",
				Fix:         []string{fmt.Sprintf(`sed -i '1i engine = "cri-o"' %s`, quote(e.Config))},
			})
		}
	}
	e.podmansForCRIO(c)
	if e.Canary {
		e.criCanary(ctx, "cri-o", c.PID, c.Socket, engineconfig.Runtimes{Default: c.Default})
	}
}

// podmansForCRIO: podman's hook files refuse what CRI-O calls its containers.
func (e *exam) podmansForCRIO(c *engineconfig.CRIO) {
	files, _ := engineconfig.HookFiles(c.HooksDirs)
	if slices.ContainsFunc(files, func(f engineconfig.HookFile) bool { return f.Ours() && f.Engine() == "podman" }) {
		e.find(Finding{
			ID: "crio-podmans", Severity: Closed, Engine: "cri-o",
			What:        "CRI-O reads podman's hook files, which say --engine podman",
			Consequence: "its containers with an annotation are refused for the name that CRI-O gives them",
			Fix:         []string{e.install("cri-o"), engineconfig.RestartCRIO},
		})
	}
}

// crioInForce takes what the daemon says for what the files do.
func (e *exam) crioInForce(ctx context.Context, c *engineconfig.CRIO) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client := http.Client{Transport: unixTransport(c.Socket)}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crio/config", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return err
	}
	return c.Add("the daemon", text)
}
