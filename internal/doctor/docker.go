// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// docker looks at Docker's runtimes, as the daemon that runs has them and as its file
// will have them when it is read again.
func (e *exam) docker(ctx context.Context) {
	d, err := engineconfig.FindDocker("")
	if d == nil {
		return
	}
	if err != nil {
		e.broken("docker-config", "docker", "Docker", err)
		return
	}
	files := e.other()
	files.dockerRuntimes(d, d.Default, d.Runtimes)
	if d.PID != 0 {
		inForce, err := dockerInfo(ctx, d.Socket)
		if err != nil {
			e.unknown("docker", "what the daemon has in force, by "+d.Socket, err)
		} else if !files.report.FailsOpen() {
			now := e.other()
			now.dockerRuntimes(d, inForce.DefaultRuntime, inForce.paths())
			if now.report.FailsOpen() {
				e.find(Finding{
					ID: "docker-stale", Severity: Open, Engine: "docker",
					What:        "Docker runs with other runtimes than " + d.Config + " has now",
					Consequence: now.report.Findings[0].What + ": " + now.report.Findings[0].Consequence,
					Fix:         []string{engineconfig.ReloadDocker},
				})
			}
		}
	}
	e.report.Facts = append(e.report.Facts, files.report.Facts...)
	for _, f := range files.report.Findings {
		e.find(f)
	}
	if e.Canary {
		e.dockerCanary(ctx, d)
	}
}

func (e *exam) dockerRuntimes(d *engineconfig.Docker, standard string, runtimes map[string]string) {
	fix := []string{e.install("docker", "--set-as-default"), engineconfig.ReloadDocker}
	if d.Config != engineconfig.DockerConfig {
		fix[0] = e.install("docker", "--set-as-default", "--config", quote(d.Config))
	}
	var wrappers []string
	for _, name := range sortedKeys(runtimes) {
		if !isWrapper(runtimes[name]) {
			continue
		}
		wrappers = append(wrappers, name)
		e.program("docker", runtimes[name], engineconfig.RuntimeProgram, whereMissing{
			severity: Closed, consequence: "no container that comes by the runtime " + name + " starts",
			fix: []string{
				fmt.Sprintf("install -m 0755 %s %s %s/",
					quote(filepath.Join(e.programs(), engineconfig.RuntimeProgram)),
					quote(filepath.Join(e.programs(), engineconfig.HookProgram)), quote(filepath.Dir(runtimes[name]))),
				fmt.Sprintf("install -m 0755 %s %s/", quote(e.self), quote(filepath.Dir(runtimes[name]))),
			},
		})
	}
	e.fact("docker", fmt.Sprintf("the default runtime is %q; the wrapper is %q", standard, wrappers))
	if len(wrappers) > 0 {
		e.wrapped("docker")
	}
	if isWrapper(runtimes[standard]) {
		return
	}
	f := Finding{
		ID: "docker-default", Severity: Open, Engine: "docker", Fix: fix,
		What:        fmt.Sprintf("the default runtime %q is not the wrapper", standard),
		Consequence: "containers with an annotation that name no runtime start without their closure",
	}
	if len(wrappers) == 0 {
		f.ID, f.What = "docker-no-way", "no runtime of Docker's is "+engineconfig.RuntimeProgram
		f.Consequence = withoutClosure
	}
	e.find(f)
}

// dockerState is what Docker says of itself.
type dockerState struct {
	DefaultRuntime string
	ServerVersion  string
	Runtimes       map[string]struct {
		Path string `json:"path"`
	}
}

func (s dockerState) paths() map[string]string {
	paths := map[string]string{}
	for name, runtime := range s.Runtimes {
		paths[name] = runtime.Path
	}
	return paths
}

func dockerInfo(ctx context.Context, socket string) (s dockerState, _ error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return s, dockerCall(ctx, socket, http.MethodGet, "/info", nil, &s)
}

// dockerCall asks Docker's API. An answer that is an error is one.
func dockerCall(ctx context.Context, socket, method, path string, body, answer any) error {
	client := http.Client{Transport: unixTransport(socket)}
	defer client.CloseIdleConnections()
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = strings.NewReader(string(text))
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, sent)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return err
	}
	if response.StatusCode >= 400 {
		var said struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(text, &said)
		return fmt.Errorf("%s: %s", response.Status, said.Message)
	}
	if answer == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
}
