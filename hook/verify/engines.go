// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// engines is what engines say of the containers that run.
type engines struct {
	names    map[string]string // by ID
	running  []found
	troubles []error
}

// engineTimeout bounds each question.
const engineTimeout = 10 * time.Second

// askEngines asks podman and Docker. The bundles of containerd's containers are where
// every root can read them.
func askEngines(ctx context.Context, userDir string) engines {
	e := engines{names: map[string]string{}}
	for _, ask := range []func(context.Context, string) error{e.askPodman, e.askDocker} {
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		if err := ask(ctx, userDir); err != nil {
			e.troubles = append(e.troubles, err)
		}
		cancel()
	}
	return e
}

// podmans are where podman is. This program looks into no PATH: under sudo or a timer that
// may be anything.
var podmans = []string{"/usr/bin/podman", "/usr/local/bin/podman", "/run/current-system/sw/bin/podman"}

// askPodman asks podman, if this user has used it since the host was started: its first
// call makes directories.
func (e *engines) askPodman(ctx context.Context, userDir string) error {
	isThere := func(path string) bool { _, err := os.Stat(path); return err == nil }
	state := "/run/libpod"
	if userDir != "" {
		state = userDir + "/libpod/tmp"
	}
	i := slices.IndexFunc(podmans, isThere)
	if i < 0 || !isThere(state) {
		return nil
	}
	var list []struct {
		ID    string `json:"Id"`
		Names []string
		Pid   int
	}
	if err := podman(ctx, podmans[i], &list, "ps", "--format", "json"); err != nil {
		return err
	}
	var ids []string
	for _, c := range list {
		if len(c.Names) > 0 {
			e.names[c.ID] = c.Names[0]
		}
		ids = append(ids, c.ID)
	}
	if len(ids) == 0 {
		return nil
	}
	var details []struct {
		ID            string `json:"Id"`
		OCIConfigPath string
		State         struct{ Pid int }
	}
	if err := podman(ctx, podmans[i], &details, append([]string{"container", "inspect"}, ids...)...); err != nil {
		return err
	}
	for _, d := range details {
		if pid := started(d.State.Pid, 0); pid > 0 {
			e.running = append(e.running, found{d.ID, Running{
				Pid: pid, Bundle: strings.TrimSuffix(d.OCIConfigPath, "/config.json"), Config: d.OCIConfigPath, From: "podman",
			}})
		}
	}
	return nil
}

func podman(ctx context.Context, program string, to any, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	// What has ended meanwhile is missing, and podman fails; the others are there.
	err := cmd.Run()
	if decoded := json.Unmarshal(out.Bytes(), to); decoded != nil {
		return fmt.Errorf("asking podman: %w", errors.Join(err, decoded, errors.New(strings.TrimSpace(said.String()))))
	}
	return nil
}

// dockerSocket is Docker's. Podman's speaks the same language, and is asked otherwise.
const dockerSocket = "/run/docker.sock"

// mostAnswer bounds an answer, in bytes.
const mostAnswer = 16 << 20

// askDocker asks Docker's daemon for names. Its containers' bundles are containerd's.
func (e *engines) askDocker(ctx context.Context, _ string) error {
	if _, err := os.Stat(dockerSocket); err != nil {
		return nil //nolint:nilerr // there is no Docker, or it is not for this user
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", dockerSocket)
		},
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/json", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("asking Docker for the names of containers: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	var list []struct {
		ID    string `json:"Id"`
		Names []string
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, mostAnswer)).Decode(&list); err != nil {
		return fmt.Errorf("asking Docker for the names of containers: %s: %w", answer.Status, err)
	}
	for _, c := range list {
		if len(c.Names) > 0 {
			e.names[c.ID] = strings.TrimPrefix(c.Names[0], "/")
		}
	}
	return nil
}

// nameOf is the name that Kubernetes has for a container, as its annotations say it.
func nameOf(c Container) string {
	file := ""
	switch {
	case c.Running != nil:
		file = c.Running.Config
	case c.Record != nil:
		file = c.Record.Bundle + "/config.json"
	default:
		return ""
	}
	annotations, err := annotationsIn(file)
	if err != nil {
		return ""
	}
	for _, keys := range [][2]string{
		{"io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"},
		{"io.kubernetes.pod.name", "io.kubernetes.container.name"},
	} {
		if name := annotations[keys[1]]; name != "" {
			return strings.TrimPrefix(annotations[keys[0]]+"/"+name, "/")
		}
	}
	return ""
}
